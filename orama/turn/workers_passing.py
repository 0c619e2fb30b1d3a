"""Passing on what has come to one TURN worker and is another one's: the client is the same, its address is not.

A Refresh with a ticket (RFC 8016, 3.2) and a ConnectionBind (RFC 6062, 5.4) come from another address than that of the
allocation that they are about, and so to any worker. Tickets and connection ids say which one has it. A datagram is
sent there as it is, and the answer leaves from there, since all workers have the same port; from then on a route passes
on all that comes from that address. A stream stays where it is: it is joined, end to end, to a stream between the two
workers, which the other one takes for the client's. Everything goes over sockets that only the workers have.
"""

from __future__ import annotations

import array
import socket
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum

from attrs import frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.net.burst import BurstSocket
from orama.net.fabric import Address, Buffer, Burst, Receiver
from orama.net.poll import Poll
from orama.net.stream import Stream
from orama.turn.server import Server
from orama.turn.shared import Crew
from orama.turn.stream import Pipe, StreamClient, StreamClients
from orama.wire.stun import Method

#: Routes of one worker; the oldest makes room.
MAX_ROUTES = 8192
#: Seconds between two times at which a worker says that it still has a client, and after which nobody believes it.
SAY_TIME = 5.0
ROUTE_TIME = 15.0
#: Seconds that one end of a stream gets to take what there is when the other one is gone.
CLOSE_TIME = 30.0
#: Messages of one visit.
MAX_READS = 64
_MAX_MESSAGE = 1 << 16
_TRANSPORTS = ("udp", "tcp", "tls")
#: Kind, worker, number of the front socket or of the transport, port, length of the IP's text, which follows.
_head = struct.Struct("!BBBHB")
_ANCILLARY = socket.CMSG_SPACE(4)
_REFRESH = Method.REFRESH.to_bytes(2, "big")

_log = Logger()


class Kind(IntEnum):
    """What one worker says to another."""

    #: A datagram of a client; it follows.
    PACKET = 1
    #: What comes from this address is to be passed on to me, or no more.
    ROUTE = 2
    NO_ROUTE = 3
    #: A stream of a client, whose descriptor is sent along.
    STREAM = 4


@frozen
class _Route:
    """Where the packets of an address go, and until when."""

    worker: int
    expires: float


class Passing:
    """One worker's.

    :param fronts: our sockets for UDP, in the order that all workers have.
    :param drops: packets lost, by reason.
    """

    def __init__(
        self,
        crew: Crew,
        poll: Poll,
        clock: IReactorTime,
        server: Server,
        clients: StreamClients,
        fronts: Sequence[BurstSocket],
        drops: Counter[str],
    ) -> None:
        self._crew = crew
        self._poll = poll
        self._clock = clock
        self._server = server
        self._clients = clients
        self._fronts = fronts
        self._drops = drops
        self._buffer = memoryview(bytearray(_MAX_MESSAGE))
        #: By front socket and client.
        self._routes: dict[tuple[int, Address], _Route] = {}
        #: Of whom packets are passed on to us, and by which worker.
        self._ours: dict[tuple[int, Address], int] = {}
        self._said = 0.0
        self._joints: dict[Joint, None] = {}
        self._stopped: Deferred[None] | None = None
        self._inbox = crew.inbox
        poll.add(self)

    def stop(self) -> Deferred[None]:
        """Read no more, and end the streams that were passed on; fires when they are gone."""
        self._poll.remove(self)
        if not self._joints:
            return succeed(None)
        self._stopped = Deferred()
        for joint in list(self._joints):
            joint.abort()
        return self._stopped

    def left(self, joint: Joint) -> None:
        """Both ends of *joint* are gone."""
        self._joints.pop(joint, None)
        if self._stopped is not None and not self._joints:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)

    def tick(self) -> None:
        """Forget routes that are over, and say which ones are not; to be called about once a second."""
        now = self._clock.seconds()
        for key in [key for key, route in self._routes.items() if route.expires <= now]:
            del self._routes[key]
        saying = now - self._said >= SAY_TIME
        for (number, client), worker in list(self._ours.items()):
            if not self._server.has_allocation(self._fronts[number], client):
                del self._ours[number, client]
                self._say(worker, Kind.NO_ROUTE, number, client)
            elif saying:
                self._say(worker, Kind.ROUTE, number, client)
        if saying:
            self._said = now
        for joint in list(self._joints):
            joint.check(now)

    # ---- what comes to us and is another worker's ----------------------------------------------

    def receiver(self, number: int) -> Receiver:
        """What is to be called with all that comes to front socket *number*."""
        front, routes, server = self._fronts[number], self._routes, self._server

        def received(packets: Burst, client: Address) -> None:
            first = packets[0]
            if routes and (route := routes.get((number, client))) is not None:
                self._pass_packets(route.worker, number, packets, client)
            elif first and not first[0] and first[:2] == _REFRESH and self._is_elsewhere(number, first, client):
                received(packets, client)
            else:
                server.received(front, packets, client)

        return received

    def pass_on(self, client: StreamClient, data: Buffer, worker: int) -> None:
        """Have *worker* serve *client* from here on; *data* is what has come already."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            ip = client.address[0].encode()
            head = _head.pack(
                Kind.STREAM, self._crew.worker, _TRANSPORTS.index(client.transport), client.address[1], len(ip)
            )
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))]
            try:
                self._crew.outboxes[worker].sendmsg((head, ip), rights)
            except OSError:
                self._drops["not_passed_on"] += 1
                ours.close()
                client.close()
                return
        joint = Joint(self.left, self._clock)
        self._joints[joint] = None
        joint.join(client, Stream(self._poll, ours, joint.far))
        joint.near.received(data)

    def _is_elsewhere(self, number: int, packet: Buffer, client: Address) -> bool:
        """Whether a Refresh is another worker's; there is a route then.

        Whether its ticket is good is for the other one to say, and by then more of the same client may have come.
        """
        worker = self._server.elsewhere(packet)
        if worker is None or self._server.has_allocation(self._fronts[number], client):
            return False
        self._route(number, client, worker, SAY_TIME)
        return True

    def _pass_packets(self, worker: int, number: int, packets: Burst, client: Address) -> None:
        ip = client[0].encode()
        head = _head.pack(Kind.PACKET, self._crew.worker, number, client[1], len(ip)) + ip
        send = self._crew.outboxes[worker].sendmsg
        for packet in packets:
            try:
                send((head, packet))
            except OSError:
                self._drops["not_passed_on"] += 1

    def _route(self, number: int, client: Address, worker: int, seconds: float) -> None:
        self._routes.pop((number, client), None)
        self._routes[number, client] = _Route(worker, self._clock.seconds() + seconds)
        if len(self._routes) > MAX_ROUTES:
            del self._routes[next(iter(self._routes))]

    # ---- what other workers say ------------------------------------------------------------------

    def fileno(self) -> int:
        return self._inbox.fileno()

    def read(self, deep: bool) -> None:
        """Take what others have sent."""
        for _ in range(MAX_READS):
            try:
                size, ancillary, _flags, _source = self._inbox.recvmsg_into(
                    (self._buffer,), _ANCILLARY, socket.MSG_DONTWAIT
                )
            except OSError:
                return
            descriptor = _descriptor(ancillary)
            connection = None if descriptor is None else socket.socket(fileno=descriptor)
            try:
                self._heard(self._buffer[:size], connection)
            except Exception:  # the next message is somebody else's
                _log.failure("a message of another worker was not understood")

    def room(self) -> None:
        """Nothing is written here."""

    def failed(self) -> None:
        """Nothing fails here."""

    def _heard(self, message: memoryview, connection: socket.socket | None) -> None:
        kind, worker, number, port, length = _head.unpack_from(message)
        client = bytes(message[_head.size : _head.size + length]).decode(), port
        if kind == Kind.PACKET:
            front = self._fronts[number]
            self._server.received(front, (message[_head.size + length :],), client)
            if (number, client) not in self._ours and self._server.has_allocation(front, client):
                self._ours[number, client] = worker
                self._say(worker, Kind.ROUTE, number, client)
        elif kind == Kind.ROUTE:
            self._route(number, client, worker, ROUTE_TIME)
        elif kind == Kind.NO_ROUTE:
            self._routes.pop((number, client), None)
        elif kind == Kind.STREAM and connection is not None:
            arrived = self._clients.arrive(client, _TRANSPORTS[number])
            arrived.begin(Stream(self._poll, connection, arrived))

    def _say(self, worker: int, kind: Kind, number: int, client: Address) -> None:
        ip = client[0].encode()
        with suppress(OSError):  # it is said again
            head = _head.pack(kind, self._crew.worker, number, client[1], len(ip))
            self._crew.outboxes[worker].sendmsg((head, ip))


class _End:
    """One of two streams that are joined: what comes of it goes to the other one."""

    def __init__(self, joint: Joint) -> None:
        self.pipe: Pipe | None = None
        self.other: _End
        self._joint = joint

    def received(self, data: Buffer) -> None:
        if self.other.pipe is not None:
            self.other.pipe.write(data)

    def ended(self) -> None:
        if self.other.pipe is not None:
            self.other.pipe.finish()

    def lost(self) -> None:
        self.pipe = None
        self.ended()
        self._joint.lost_end()

    def full(self) -> None:
        if self.other.pipe is not None:
            self.other.pipe.pause()

    def drained(self) -> None:
        if self.other.pipe is not None:
            self.other.pipe.resume()


class Joint:
    """The stream of a client, and the one to the worker that serves it.

    :param left: called when both are gone.
    """

    def __init__(self, left: Callable[[Joint], None], clock: IReactorTime) -> None:
        self.near, self.far = _End(self), _End(self)
        self.near.other, self.far.other = self.far, self.near
        self._left = left
        self._clock = clock
        self._deadline: float | None = None

    def join(self, client: StreamClient, stream: Stream) -> None:
        self.far.pipe = stream
        self.near.pipe = client.pipe(self.near)

    def lost_end(self) -> None:
        """One end is gone; the other one gets some time for what it has yet to take."""
        self._deadline = self._clock.seconds() + CLOSE_TIME
        if self.near.pipe is self.far.pipe is None:
            self._left(self)

    def check(self, now: float) -> None:
        if self._deadline is not None and self._deadline <= now:
            self.abort()

    def abort(self) -> None:
        for end in (self.near, self.far):
            if end.pipe is not None:
                end.pipe.abort()


def _descriptor(ancillary: Sequence[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors = array.array("i")
            descriptors.frombytes(data[:4])
            return descriptors[0]
    return None
