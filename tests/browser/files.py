"""An origin of its own for test pages: they and the client's modules, over plain HTTP on loopback."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

from tests.browser.page import PAGES

CLIENT = Path(str(files("orama") / "web"))


class _Handler(SimpleHTTPRequestHandler):
    def translate_path(self, path: str) -> str:
        name = Path(urlsplit(path).path).name
        ours = PAGES / name
        return str(ours if ours.exists() else CLIENT / name)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: nobody reads it."""


class Files:
    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(PAGES)))
        self.origin = f"http://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
