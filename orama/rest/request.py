"""One HTTP request, bounded: a body over the limit is refused while it comes in, not after.

The answer to an over-long body leaves at once. What the client still sends is read and dropped for a
moment, because closing a socket with unread data resets it and takes the answer along (RFC 9112, 9.6).
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from twisted.python.failure import Failure
from twisted.web import server

from orama.errors import TooLarge
from orama.rest.json_resource import Reply, error_reply, failure_reply, send

if TYPE_CHECKING:
    from orama.rest.site import Site

#: Bytes and seconds that a refused client gets to stop sending.
LINGER_BYTES = 1 << 20
LINGER_SECONDS = 5.0


class Request(server.Request):
    """A request of our :class:`~orama.rest.site.Site`, which knows the limits."""

    site: Site
    content: BytesIO
    _received = 0
    _refused = False
    _linger: Any = None

    def gotLength(self, length: int | None) -> None:
        """The headers are complete. A body that says itself that it is too long ends here."""
        self.content = BytesIO()
        channel: Any = self.channel
        self.site = channel.site
        if length is not None and length > self.site.max_body:
            # Nobody is told to continue with what we refuse (RFC 9110, 10.1.1).
            self.requestHeaders.removeHeader(b"Expect")
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._refused:
            if self._received > self.site.max_body + LINGER_BYTES:
                self._hang_up()
        elif self._received > self.site.max_body:
            self._refuse()
        else:
            self.content.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self._refused:
            self._hang_up()
        else:
            super().requestReceived(command, path, version)

    def process(self) -> None:
        if self.path == b"*":  # OPTIONS * (RFC 9110, 9.3.7) is about no resource of ours
            self.path = b"/*"
        super().process()

    def processingFailed(self, reason: Failure) -> Failure:
        """A resource raised where nothing may: a 500 that shows nothing."""
        send(self, failure_reply(reason))
        return reason

    def connectionLost(self, reason: Failure) -> None:
        self._stop_lingering()
        super().connectionLost(reason)

    def _refuse(self) -> None:
        self._refused = True
        self.channel.persistent = False
        self.clientproto = b"HTTP/1.1"
        self.content = BytesIO()
        error = error_reply(TooLarge("body_too_large", f"the body may have {self.site.max_body} bytes"))
        self.site.decorate(self)
        self._linger = self.site.clock.callLater(LINGER_SECONDS, self._hang_up)
        send(self, Reply(error.status, error.body, {"Connection": "close"}), finish=False)

    def _hang_up(self) -> None:
        self._stop_lingering()
        if not self.finished:
            self.finish()

    def _stop_lingering(self) -> None:
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        self._linger = None
