"""Chromium in a client's machine: chromedriver runs in there, and so does the thread that speaks to it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

from tests.browser.chromium import DRIVER, Chromium
from tests.browser.page import Page
from tests.lab.machine import Machine

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


class FarChromium(Chromium):
    """One browser in *machine*; it resolves names and reaches addresses as that machine does."""

    def __init__(self, machine: Machine) -> None:
        self._process = machine.spawn("chromedriver", str(DRIVER), f"--port={_PORT}")
        self._process.wait_for("started successfully")
        self._network = ExitStack()
        self._pool = ThreadPoolExecutor(1, initializer=lambda: self._network.enter_context(machine.inside()))
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

    def _ask(self, function: Callable[..., T], *arguments: Any) -> T:
        return self._pool.submit(function, *arguments).result()

    def _end(self) -> None:
        self._ask(self._network.close)
        self._pool.shutdown()
        self._process.stop()
