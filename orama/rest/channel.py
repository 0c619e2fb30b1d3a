"""One HTTP/1.1 connection, whose answers to what is no HTTP are like all others.

HTTP/2 is not offered: the limits of :mod:`orama.rest.request` and the WebSocket are those of HTTP/1.1, and a
proxy in front of us speaks it to browsers.
"""

from __future__ import annotations

import json

from twisted.web.http import HTTPChannel

_BODY = json.dumps({"error": "this is not a well-formed request", "code": "malformed_request"}).encode()
_HEAD = (
    "HTTP/1.1 400 Bad Request\r\n"
    "Content-Type: application/json\r\n"
    f"Content-Length: {len(_BODY)}\r\n"
    "Permissions-Policy: camera=(self), microphone=(self)\r\n"
    "X-Content-Type-Options: nosniff\r\n"
    "Cache-Control: no-store\r\n"
    "Connection: close\r\n\r\n"
).encode()


class Channel(HTTPChannel):
    """Twisted's channel; a test holds the one private method that it replaces."""

    def lineLengthExceeded(self, line: bytes) -> None:
        """A request line or a header beyond 16 KiB."""
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        if self.transport is not None:
            self.transport.write(_HEAD + _BODY)
        self.loseConnection()
