"""Debian's Chromium, headless, with devices that are made up, driven by chromedriver."""

from __future__ import annotations

import shutil
from typing import Any

from tests.browser.page import SCRIPT_TIMEOUT, Page

BINARY = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
#: Why there is no Chromium here; empty when there is.
MISSING = "" if BINARY and DRIVER else "chromium and chromium-driver are not installed"

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--ignore-certificate-errors",
    "--use-fake-device-for-media-stream=fps=20",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--window-size=1280,800",
)


class _Window:
    def __init__(self, driver: Any, handle: str) -> None:
        self._driver = driver
        self._handle = handle

    def navigate(self, url: str) -> None:
        self._driver.switch_to.window(self._handle)
        self._driver.get(url)

    def execute(self, script: str, arguments: list[Any]) -> Any:
        self._driver.switch_to.window(self._handle)
        return self._driver.execute_async_script(script, *arguments)

    def close(self) -> None:
        if self._handle in self._driver.window_handles:
            self._driver.switch_to.window(self._handle)
            self._driver.close()


class Chromium:
    """One browser; every page is a window of its own.

    :param devices: whether the person at it lets pages have camera, microphone and screen.
    """

    def __init__(self, devices: bool = True) -> None:
        self.driver = self._drive(self._options(devices))
        self.driver.set_script_timeout(SCRIPT_TIMEOUT)
        self._home = self.driver.current_window_handle

    def page(self) -> Page:
        self.driver.switch_to.window(self._home)
        self.driver.switch_to.new_window("window")
        return Page(_Window(self.driver, self.driver.current_window_handle))

    def _drive(self, options: Any) -> Any:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        return webdriver.Chrome(options=options, service=Service(DRIVER))

    @staticmethod
    def _options(devices: bool) -> Any:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = BINARY
        permission = "--use-fake-ui-for-media-stream" if devices else "--deny-permission-prompts"
        for argument in (*_ARGUMENTS, permission):
            options.add_argument(argument)
        return options

    def quit(self) -> None:
        self.driver.quit()
