"""The room page and the JavaScript client, as they are in the package ``orama.web``.

Read once when the site is made: what is served is in memory, and nothing of a request names a file.
"""

from __future__ import annotations

import re
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable

from twisted.web.resource import Resource
from twisted.web.server import Request

from orama.rest.json_resource import JsonResource, Reply, header
from orama.rest.origins import Origins

INDEX = "index.html"
#: Files of other kinds are not served.
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
#: Everything from here, no inline script and no inline style, in nobody's frame.
_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob: mediastream:; connect-src 'self'{sockets}; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
#: What a ``Host`` header must look like to be put into a policy.
_HOST = re.compile(r"(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?\Z")


class WebFile(JsonResource):
    """One file."""

    def __init__(self, origins: Origins, name: str, content: bytes) -> None:
        super().__init__(origins)
        self._content = content
        self._type = TYPES[_suffix(name)]
        self._etag = f'"{sha256(content).hexdigest()[:32]}"'

    async def get(self, request: Request) -> Reply:
        headers = {"ETag": self._etag, "Cache-Control": "no-cache"}
        if self._type.startswith("text/html"):
            headers["Content-Security-Policy"] = _policy(header(request, "host") or "")
        seen = [tag.strip().removeprefix("W/") for tag in (header(request, "if-none-match") or "").split(",")]
        if self._etag in seen:
            return Reply(304, None, headers)
        return Reply(200, self._content, headers, self._type)


def put_page(root: Resource, origins: Origins) -> None:
    """Serve the package's files under *root*, and the page at ``/``."""
    _put(root, origins, files("orama.web"))


def _put(parent: Resource, origins: Origins, folder: Traversable) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            inner = JsonResource(origins)
            _put(inner, origins, entry)
            if inner.children:
                parent.putChild(entry.name.encode(), inner)
        elif _suffix(entry.name) in TYPES:
            content = entry.read_bytes()
            parent.putChild(entry.name.encode(), WebFile(origins, entry.name, content))
            if entry.name == INDEX:
                parent.putChild(b"", WebFile(origins, entry.name, content))


def _policy(host: str) -> str:
    """Not every browser takes 'self' to cover WebSockets, so they are named."""
    return _POLICY.format(sockets=f" ws://{host} wss://{host}" if _HOST.match(host) else "")


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2].lower()
