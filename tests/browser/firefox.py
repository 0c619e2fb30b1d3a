"""Debian's Firefox, headless, with devices that are made up, driven by Marionette: there is no geckodriver."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.browser.page import SCRIPT_TIMEOUT, Page
from tests.ports import free_port

BINARY = shutil.which("firefox-esr")
CERTUTIL = shutil.which("certutil")
#: Why there is no Firefox here; empty when there is.
MISSING = "" if BINARY and CERTUTIL else "firefox-esr and libnss3-tools are not installed"

_ARGUMENTS = ("--headless", "--no-remote", "--marionette", "--remote-allow-system-access")
_PREFERENCES: dict[str, object] = {
    "media.navigator.streams.fake": True,
    "media.navigator.permission.disabled": True,
    "media.peerconnection.ice.loopback": True,
    "media.autoplay.default": 0,
    "media.gmp-manager.url": "data:text/plain,",
    "media.gmp-provider.enabled": False,
    "app.update.enabled": False,
    "app.normandy.enabled": False,
    "browser.safebrowsing.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
    "toolkit.telemetry.server": "data:,",
    "dom.min_background_timeout_value": 10,
}


class _Window:
    def __init__(self, client: Any) -> None:
        self._client = client

    def navigate(self, url: str) -> None:
        self._client.navigate(url)

    def execute(self, script: str, arguments: list[Any]) -> Any:
        return self._client.execute_async_script(script, script_args=arguments, sandbox=None)

    def close(self) -> None:
        self._client.navigate("about:blank")


class Firefox:
    """One browser with one window.

    :param authority: PEM file of a certificate authority to trust, beside the usual ones.
    """

    def __init__(self, authority: Path | None = None) -> None:
        from marionette_driver.marionette import Marionette

        assert BINARY is not None and CERTUTIL is not None
        self._home = Path(tempfile.mkdtemp(prefix="firefox-"))
        port = free_port()
        written = {**_PREFERENCES, "marionette.port": port}
        lines = [f'user_pref("{name}", {_literal(value)});' for name, value in written.items()]
        (self._home / "user.js").write_text("\n".join(lines))
        database = f"sql:{self._home}"
        subprocess.run([CERTUTIL, "-N", "-d", database, "--empty-password"], check=True)
        if authority is not None:
            trust = [CERTUTIL, "-A", "-d", database, "-n", "tests", "-t", "CT,,", "-i", str(authority)]
            subprocess.run(trust, check=True)
        self._process = self._launch([BINARY, "--profile", str(self._home), *_ARGUMENTS])
        self._client = Marionette(host="127.0.0.1", port=port)
        self._client.raise_for_port(timeout=60)
        self._client.start_session()
        self._client.timeout.script = SCRIPT_TIMEOUT

    def _launch(self, command: list[str]) -> subprocess.Popen[Any]:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def page(self) -> Page:
        return Page(_Window(self._client))

    def quit(self) -> None:
        try:
            self._client.delete_session()
        finally:
            self._end()
            shutil.rmtree(self._home, ignore_errors=True)

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else f'"{value}"'
