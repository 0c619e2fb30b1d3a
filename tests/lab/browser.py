"""Browsers in a client's machine: they and their drivers run in there, and so does the thread that speaks to them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

from tests.browser.chromium import DRIVER, Chromium
from tests.browser.firefox import Firefox
from tests.browser.page import Page
from tests.lab.machine import Machine, Process

_PORT = 9515

T = TypeVar("T")


class _FarWindow:
    """A window that another thread has to be asked about."""

    def __init__(self, page: Page, ask: Callable[..., Any]) -> None:
        self._window = page._window
        self._ask = ask

    def navigate(self, url: str) -> None:
        self._ask(self._window.navigate, url)

    def execute(self, script: str, arguments: list[Any]) -> Any:
        return self._ask(self._window.execute, script, arguments)

    def close(self) -> None:
        self._ask(self._window.close)


class _Inside:
    """A thread that makes its sockets in *machine*."""

    def __init__(self, machine: Machine) -> None:
        self._network = ExitStack()
        self._pool = ThreadPoolExecutor(1, initializer=lambda: self._network.enter_context(machine.inside()))

    def ask(self, function: Callable[..., T], *arguments: Any) -> T:
        """What *function* answers in there."""
        return self._pool.submit(function, *arguments).result()

    def end(self) -> None:
        self.ask(self._network.close)
        self._pool.shutdown()


class FarChromium(Chromium):
    """One browser in *machine*; it resolves names and reaches addresses as that machine does."""

    def __init__(self, machine: Machine) -> None:
        self._process = machine.spawn("chromedriver", str(DRIVER), f"--port={_PORT}")
        self._process.wait_for("started successfully")
        self._inside = _Inside(machine)
        self._ask = self._inside.ask
        try:
            self._ask(super().__init__)
        except BaseException:
            self._end()
            raise

    def page(self) -> Page:
        return Page(_FarWindow(self._ask(super().page), self._ask))

    def quit(self) -> None:
        try:
            self._ask(super().quit)
        finally:
            self._end()

    def _drive(self, options: Any) -> Any:
        from selenium import webdriver

        return webdriver.Remote(f"http://127.0.0.1:{_PORT}", options=options)

    def _end(self) -> None:
        self._inside.end()
        self._process.stop()


class FarFirefox(Firefox):
    """One browser with one window in *machine*."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._running: Process | None = None
        self._inside = _Inside(machine)
        self._ask = self._inside.ask
        try:
            self._ask(super().__init__)
        except BaseException:
            self._end()
            self._inside.end()
            raise

    def page(self) -> Page:
        return Page(_FarWindow(self._ask(super().page), self._ask))

    def quit(self) -> None:
        try:
            self._ask(super().quit)
        finally:
            self._inside.end()

    def _launch(self, command: list[str]) -> subprocess.Popen[Any]:
        self._running = self._machine.spawn("firefox", *command)
        return self._running.outer

    def _end(self) -> None:
        # Not as at home: what we have started is nsenter, which would leave the browser behind.
        if self._running is not None and self._running.running:
            self._running.kill()
