"""Byte streams in a poll: accepted TCP connections, with TLS on them or without.

A read brings all that is there, up to 64 KiB, and a burst that is sent leaves in one system call.
What stands on the stream is not known here; the PROXY header before everything else is.
"""

from __future__ import annotations

import errno
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol, cast

from twisted.logger import Logger

from orama.net.fabric import Address, Buffer
from orama.net.hello import ClientHello
from orama.net.poll import Poll
from orama.net.proxy import ProxyError, read_header
from orama.net.tls import ServerCertificates

#: Connections that are accepted in one visit.
MAX_ACCEPTS = 64
#: Bytes in one read.
MAX_READ = 1 << 16
#: Bytes that wait to be written when a stream is full; it is no more when all of them are written.
FULL = 1 << 16
#: Beyond this a stream is not worth having: who writes on, though it is full, loses it.
MAX_WAITING = 1 << 21
_LINGER_NOT = struct.pack("ii", 1, 0)
_SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log = Logger()


class Flow(Protocol):
    """Who has a stream: what comes of it."""

    def received(self, data: Buffer) -> None:
        """Bytes, in a view that dies when the call returns."""

    def ended(self) -> None:
        """They send no more; what is sent to them still arrives."""

    def lost(self) -> None:
        """The connection is gone, whoever ended it. Called once, and never out of a call to the stream."""

    def full(self) -> None:
        """64 KiB wait to be written."""

    def drained(self) -> None:
        """And no more."""


class Stream:
    """One connection, read from the start.

    :param flow: who has it; may be replaced.
    :param certificates: speak TLS with these.
    :param identified: a PROXY header comes first, and this is told whose the connection is; None is the proxy itself.
    """

    __slots__ = (
        "_closed",
        "_ended",
        "_finishing",
        "_full",
        "_header",
        "_identified",
        "_poll",
        "_reading",
        "_socket",
        "_tls",
        "_waiting",
        "flow",
    )

    #: All streams read into this.
    _arena = memoryview(bytearray(MAX_READ))

    def __init__(
        self,
        poll: Poll,
        connection: socket.socket,
        flow: Flow,
        certificates: ServerCertificates | None = None,
        identified: Callable[[Address | None], None] | None = None,
    ) -> None:
        self.flow = flow
        self._identified = identified
        self._poll = poll
        self._socket = connection
        self._tls = None if certificates is None else Tls(certificates)
        self._header = None if identified is None else bytearray()
        self._waiting = bytearray()
        self._full = self._ended = self._finishing = self._closed = False
        self._reading = True
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.add(self)

    # ---- for its owner ------------------------------------------------------------------------

    def send(self, parts: Sequence[Buffer]) -> None:
        """Write *parts*, over TLS each in a record of its own, for there are clients (coturn's) that take a record
        for a message. Copies what the kernel does not take at once. Nothing happens on a stream that is closing."""
        if self._closed or self._finishing:
            return
        if self._tls is not None:
            self._put(self._tls.sealed(parts))
        else:
            self._put(parts[0] if len(parts) == 1 else b"".join(parts))

    def write(self, data: Buffer) -> None:
        """Write *data*."""
        self.send((data,))

    def pause(self) -> None:
        """Read no more, so that the sender has to wait."""
        if not self._closed and self._reading:
            self._reading = False
            self._watch()

    def resume(self) -> None:
        """Read again, in a later turn."""
        if not self._closed and not self._reading and not self._ended:
            self._reading = True
            self._watch()

    def finish(self) -> None:
        """Send no more after what was written; reading goes on."""
        if self._closed or self._finishing:
            return
        if self._tls is not None:
            self._put(self._tls.farewell())
        self._finishing = True
        self._finished()

    def abort(self) -> None:
        """Drop the connection at once, with what waits."""
        if not self._closed:
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            self._close()

    @property
    def waiting(self) -> int:
        """Bytes that wait to be written."""
        return len(self._waiting)

    # ---- for the poll -------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self, deep: bool) -> None:
        """Read once; a poll comes again when there is more."""
        if not self._reading:  # held, and called all the same: both directions are closed, and there may be the rest
            self._poll.remove(self)
            return
        try:
            size = self._socket.recv_into(self._arena)
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        if not size:
            self._end()
            return
        data: Buffer = self._arena[:size]
        if self._header is not None:
            data = self._behind_header(data)
        if data:
            self._take(data)

    def room(self) -> None:
        """Write on."""
        waiting, self._waiting = self._waiting, bytearray()
        self._put(waiting)
        if self._closed or self._waiting:
            return
        self._watch()
        if self._full:
            self._full = False
            self.flow.drained()
        self._finished()

    def failed(self) -> None:
        """The kernel has an error: the connection is gone."""
        self.abort()

    # ---- in between ---------------------------------------------------------------------------

    def _behind_header(self, data: Buffer) -> bytes:
        """What follows the PROXY header; nothing while that is incomplete."""
        assert self._header is not None and self._identified is not None
        self._header += data
        try:
            header = read_header(self._header)
        except ProxyError:
            self.abort()
            return b""
        if header is None:
            return b""
        rest = bytes(self._header[header.length :])
        self._header = None
        self._identified(header.source)
        return b"" if self._closed else rest

    def _take(self, data: Buffer) -> None:
        if self._tls is None:
            self.flow.received(data)
            return
        try:
            plain, ended = self._tls.opened(data)
        except TlsError as error:
            self._put(error.alert)
            self._close()
            return
        if answer := self._tls.outgoing.read():
            self._put(answer)
        if plain and not self._closed:
            self.flow.received(plain)
        if ended:
            self._end()

    def _end(self) -> None:
        if self._closed or self._ended:
            return
        self._ended = True
        self._reading = False
        self._watch()
        self.flow.ended()
        self._finished()

    def _put(self, data: Buffer) -> None:
        """Write *data* behind what waits."""
        if self._closed or not data:
            return
        if not self._waiting:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.abort()
                return
            if sent == len(data):
                return
            self._waiting += memoryview(data)[sent:]
            self._watch()
        else:
            self._waiting += data
        if len(self._waiting) > MAX_WAITING:
            self.abort()
        elif len(self._waiting) >= FULL and not self._full:
            self._full = True
            self.flow.full()

    def _finished(self) -> None:
        """Close our direction when everything is written, and the connection when theirs is closed too."""
        if self._closed or not self._finishing or self._waiting:
            return
        if self._ended:
            self._close()
            return
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._poll.remove(self)
            self._socket.close()
            self._waiting.clear()
            self._poll.fabric.later(self._gone)

    def _watch(self) -> None:
        if self._closed:
            return
        (self._poll.add if self._reading else self._poll.hold)(self, writing=bool(self._waiting))

    def _gone(self) -> None:
        self.flow.lost()


class TlsError(Exception):
    """TLS ends; the alert is to be sent."""

    def __init__(self, alert: bytes) -> None:
        super().__init__(alert)
        self.alert = alert


class Tls:
    """Our side of TLS on one stream, without the stream (RFC 8446)."""

    __slots__ = ("_certificates", "_connection", "_hello", "_incoming", "_shaken", "outgoing")

    #: What one read and the record before it can hold; all streams open into this.
    _plain = memoryview(bytearray(MAX_READ + (1 << 15)))

    def __init__(self, certificates: ServerCertificates) -> None:
        self._certificates = certificates
        self._incoming = ssl.MemoryBIO()
        #: What has to go to the client.
        self.outgoing = ssl.MemoryBIO()
        self._connection = certificates.ssl_context().wrap_bio(self._incoming, self.outgoing, server_side=True)
        self._hello: ClientHello | None = ClientHello()
        self._shaken = False

    def opened(self, data: Buffer) -> tuple[memoryview, bool]:
        """The plaintext that *data* brings, in a view that the next call overwrites, and whether they end TLS.

        :raises TlsError: it is no TLS, or none that we speak.
        """
        if self._hello is not None:
            self._hello.feed(bytes(data))
            if self._hello.done:
                alert = self._certificates.refusal(self._hello)
                self._hello = None
                if alert:
                    raise TlsError(alert)
        self._incoming.write(data)
        plain, size = self._plain, 0
        try:
            if not self._shaken:
                self._connection.do_handshake()
                self._shaken = True
            while got := cast(int, self._connection.read(len(plain) - size, plain[size:])):
                size += got
        except ssl.SSLWantReadError:
            return plain[:size], False
        except ssl.SSLError as error:
            if not isinstance(error, ssl.SSLZeroReturnError):
                raise TlsError(self.outgoing.read()) from None
        return plain[:size], True

    def sealed(self, parts: Sequence[Buffer]) -> bytes:
        """The records of *parts*; nothing before the handshake is over."""
        if not self._shaken:
            return b""
        for part in parts:
            self._connection.write(part)
        return self.outgoing.read()

    def farewell(self) -> bytes:
        """The record that says that we send no more."""
        try:
            self._connection.unwrap()
        except ssl.SSLError:
            pass  # they have not said so yet, and need not
        return self.outgoing.read()


class Listener:
    """A listening socket in a poll.

    :param accepted: gets each connection and where it comes from.
    """

    def __init__(self, poll: Poll, accepted: Callable[[socket.socket, Address], None]) -> None:
        self._poll = poll
        self._accepted = accepted
        self._socket: socket.socket | None = None
        self._held = False
        self.address: Address = ("", 0)

    def adopt(self, listening: socket.socket) -> None:
        """Accept from a socket that listens and does not block; :meth:`close` closes it."""
        self._socket = listening
        host, port = listening.getsockname()[:2]
        self.address = host, port
        self._poll.add(self)

    def resume(self) -> None:
        """Accept again where descriptors or memory had run out."""
        if self._held and self._socket is not None:
            self._held = False
            self._poll.add(self)

    def close(self) -> None:
        """Give the address back. Nothing happens the second time."""
        if self._socket is not None:
            self._poll.remove(self)
            self._socket.close()
            self._socket = None

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def read(self, deep: bool) -> None:
        """Accept who waits."""
        for _ in range(MAX_ACCEPTS):
            if self._socket is None:
                return
            try:
                connection, source = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _SCARCE:
                    _log.warn("cannot accept on {address}: {error}", address=self.address, error=error)
                    self._held = True
                    self._poll.hold(self)
                    return
                continue  # that one has left already
            self._accepted(connection, (source[0].partition("%")[0], source[1]))

    def room(self) -> None:
        """Nothing is written here."""

    def failed(self) -> None:
        """An error of a connection that was never accepted."""
