"""The TCP of relays in the kernel (RFC 6062): listening on a relayed address, and connecting from that very address.

Both at once need ``SO_REUSEADDR`` and ``SO_REUSEPORT``. What becomes of a connection is ``connections``'s.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError

from orama.net.fabric import Address, Buffer
from orama.net.poll import Poll
from orama.net.stream import Flow, Listener, Stream
from orama.turn.connections import PeerStream, Pipe

#: Connections of peers that may wait to be accepted.
BACKLOG = 64


class _Nobody:
    """Has a stream that is no pipe yet, and unread."""

    def received(self, data: Buffer) -> None: ...
    def ended(self) -> None: ...
    def lost(self) -> None: ...
    def full(self) -> None: ...
    def drained(self) -> None: ...


_NOBODY = _Nobody()


class KernelStream:
    """A connection with a peer, unread until the pipe that it becomes is resumed."""

    def __init__(self, poll: Poll, connection: socket.socket) -> None:
        self._stream = Stream(poll, connection, _NOBODY)
        self._stream.pause()

    def pipe(self, flow: Flow) -> Pipe:
        self._stream.flow = flow
        return self._stream

    def abort(self) -> None:
        self._stream.abort()


class _Attempt:
    """A connection that is being made, in the poll."""

    def __init__(self, poll: Poll, connecting: socket.socket) -> None:
        self._poll = poll
        self._socket = connecting
        self.done: Deferred[PeerStream] = Deferred(self._cancelled)
        poll.add(self, writing=True)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self, deep: bool) -> None:
        self._look()

    def room(self) -> None:
        self._look()

    def failed(self) -> None:
        self._look()

    def _look(self) -> None:
        """The kernel has an outcome."""
        if self.done.called:  # it is told in several ways
            return
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._poll.remove(self)
        if error:
            self._socket.close()
            self.done.errback(OSError(error, os.strerror(error)))
        else:
            self.done.callback(KernelStream(self._poll, self._socket))

    def _cancelled(self, _: Deferred[PeerStream]) -> None:
        self._poll.remove(self)
        self._socket.close()


class KernelTcp:
    """``connections.Tcp`` on the kernel's sockets."""

    def __init__(self, poll: Poll) -> None:
        self._poll = poll

    def listen(self, address: Address, arrived: Callable[[PeerStream, Address], None]) -> Listener:
        """Give *arrived* each connection that comes to *address*.

        :raises CannotListenError: the address is taken or not ours.
        """
        listener = Listener(
            self._poll, lambda connection, source: arrived(KernelStream(self._poll, connection), source)
        )
        try:
            listening = _bound(address)
            try:
                listening.listen(BACKLOG)
            except OSError:
                listening.close()
                raise
        except OSError as error:
            raise CannotListenError(address[0], address[1], error) from error
        listener.adopt(listening)
        return listener

    def connect(self, source: Address, peer: Address) -> Deferred[PeerStream]:
        """A connection from *source* to *peer*; fails with what the kernel says, and in its time unless cancelled."""
        try:
            connecting = _bound(source)
        except OSError as error:
            return _failed(error)
        try:
            connecting.connect(peer)
        except BlockingIOError:
            pass
        except OSError as error:
            connecting.close()
            return _failed(error)
        return _Attempt(self._poll, connecting).done


def _failed(error: OSError) -> Deferred[PeerStream]:
    failed: Deferred[PeerStream] = Deferred()
    failed.errback(error)
    return failed


def _bound(address: Address) -> socket.socket:
    """A socket on *address* that shares it with others of ours."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock
