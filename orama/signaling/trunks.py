"""Trunks: WebSockets to the SFUs of other nodes, one for each client whose room is there (RFC 6455).

A trunk opens at the namespace's signalling port on the other node's internal address; or, where this node's rooms are
spread over processes of its own, at the Unix socket of the one that has the room. Its handshake is signed for that
node, with the visitor in the query; after it, frames go both ways as they are. Every hop has its own pings and its own
bounded queue: who does not read is dropped, on a trunk as on a client's socket. A trunk is as good as dead when its
connection is lost, when nothing is heard for a ping and its answer, or when the node is said to be dead and does not
answer a ping at once; that others say so alone is not enough, since they may be the ones who are cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import random
from typing import Any, Protocol
from urllib.parse import urlencode

from attrs import frozen
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.logger import Logger

from orama.errors import Unavailable
from orama.settings import SignalingSettings
from orama.signaling.codes import NORMAL, SERVICE_RESTART
from orama.signaling.interfaces import Hop, OwnerGone, Record, Visitor
from orama.signaling.visitors import VISITOR, write_visitor
from orama.signaling.websocket import CLOSE_TIMEOUT, MAX_REASON, Backlog, NoLog

PATH = "/v1/webrtc/signal"
#: Seconds for the TCP connection, and from there to the end of the handshake. Nodes are near each other.
CONNECT_TIMEOUT = 2.0
HANDSHAKE_TIMEOUT = 3.0
#: Seconds that a node which is said to be dead gets to answer a ping.
PROBE_TIMEOUT = 1.0
#: Seconds before the second attempt to hand a client over, and at most before any.
FIRST_PAUSE = 0.1
LAST_PAUSE = 1.0
#: Bytes of a message of an SFU; the description of a room with a hundred tracks has some 300 kB.
MAX_MESSAGE = 16 << 20

_log = Logger()


class Place(Protocol):
    """Where a namespace's SFU answers on one node (``cluster.namespaces.SfuPlace``)."""

    @property
    def node_id(self) -> str: ...
    @property
    def ip(self) -> str: ...
    @property
    def signaling_port(self) -> int: ...


class Inward(Protocol):
    """The processes of this node that its rooms are spread over (``cluster.workers.Workers``)."""

    @property
    def node_id(self) -> str:
        """This node's."""

    def way(self, namespace: str, room_id: str) -> str | None:
        """Path of the Unix socket of the process that has a room, or gets it; None when there is no process.

        :raises Unavailable: none takes anybody yet.
        """


class Trunks:
    """All trunks of a node.

    :param places: namespace → where its SFUs are; None when this node has the only one.
    :param sign: (method, target) → headers, for a request without a body.
    :param alive: whether a node is, as far as is known.
    :param processes: those of this node, where its rooms are in several.
    """

    def __init__(
        self,
        reactor: Any,
        settings: SignalingSettings,
        places: Callable[[str], Sequence[Place] | None],
        sign: Callable[[str, str], Mapping[str, str]],
        alive: Callable[[str], bool],
        processes: Inward | None = None,
    ) -> None:
        self._reactor = reactor
        self._processes = processes
        self._settings = settings
        self._places = places
        self._sign = sign
        self._alive = alive
        self._trunks: dict[ForwardTrunk, None] = {}
        #: Connections that are being made, and pauses.
        self._waiting: set[Deferred[Any]] = set()
        self._stopped: Deferred[None] | None = None

    def __len__(self) -> int:
        return len(self._trunks)

    @property
    def inward(self) -> bool:
        return self._processes is not None

    async def connect(self, record: Record, visitor: Visitor, room_id: str, hop: Hop) -> ForwardTrunk:
        """
        :raises OwnerGone: nobody listens there.
        :raises Unavailable: any other reason why not.
        """
        way = self._way(record, visitor.namespace, room_id)
        query = {"room": room_id, "to": record.node_id, VISITOR: write_visitor(visitor, room_id)}
        target = f"{PATH}?{urlencode(query)}"
        factory = _Factory(
            f"ws://{way.host}{target}",
            headers=dict(self._sign("GET", target)),
            reactor=self._reactor,
        )
        factory.setProtocolOptions(
            maxFramePayloadSize=MAX_MESSAGE,
            maxMessagePayloadSize=MAX_MESSAGE,
            failByDrop=False,
            tcpNoDelay=True,
            # Timers are ours.
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            serverConnectionDropTimeout=0,
            autoPingInterval=0,
            autoPingTimeout=0,
        )
        factory.trunk = trunk = ForwardTrunk(self, record.node_id, hop, self._settings, self._reactor.seconds)
        await self._open(way, factory)
        return trunk

    async def _open(self, way: _Way, factory: _Factory) -> None:
        where = way.name
        try:
            await self._wait(way.endpoint.connect(factory))
        except ConnectionRefusedError:
            # Where there are other processes, the room is one of theirs as soon as it is seen that this one is gone.
            refused = Unavailable if way.inward else OwnerGone
            raise refused("sfu_gone", f"nobody listens for {where}") from None
        except (ConnectError, CancelledError, OSError) as error:
            raise Unavailable("sfu_silent", f"{where} cannot be reached: {type(error).__name__}") from None
        trunk = factory.trunk
        impatience = self._reactor.callLater(HANDSHAKE_TIMEOUT, trunk.abort)
        try:
            if not await trunk.opened:
                raise Unavailable("sfu_silent", f"{where} does not take the client")
        finally:
            if impatience.active():
                impatience.cancel()

    async def pause(self, attempt: int) -> None:
        """Wait a little, longer with each *attempt*, and never as long as somebody else."""
        seconds = min(LAST_PAUSE, FIRST_PAUSE * 2**attempt) * (0.5 + random() / 2)  # noqa: S311
        try:
            await self._wait(deferLater(self._reactor, seconds, lambda: None))
        except CancelledError:
            raise Unavailable("sfu_silent", "the node is going down") from None

    async def stop(self) -> None:
        """Cut every trunk, and give up those that are being made. Nothing is left behind."""
        for waiting in tuple(self._waiting):
            waiting.cancel()
        if self._trunks:
            self._stopped = Deferred()
            for trunk in tuple(self._trunks):
                trunk.abort()
            await self._stopped

    def tick(self, now: float) -> None:
        """Look which trunks are dead."""
        for trunk in tuple(self._trunks):
            trunk.tick(now, self._alive(trunk.node_id))

    def opened(self, trunk: ForwardTrunk) -> None:
        self._trunks[trunk] = None

    def closed(self, trunk: ForwardTrunk) -> None:
        self._trunks.pop(trunk, None)
        if self._stopped is not None and not self._trunks:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)

    async def _wait(self, waiting: Deferred[Any]) -> None:
        """Wait for something that :meth:`stop` gives up."""
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)

    def _way(self, record: Record, namespace: str, room_id: str) -> _Way:
        node_id, reactor = record.node_id, self._reactor
        if self._processes is not None and self._processes.node_id == node_id:
            path = self._processes.way(namespace, room_id)
            if path is None:
                raise OwnerGone("sfu_gone", f"no SFU of {namespace} runs on {node_id}")
            return _Way(f"{node_id} at {path}", "localhost", UNIXClientEndpoint(reactor, path, CONNECT_TIMEOUT), True)
        for place in self._places(namespace) or ():
            if place.node_id == node_id:
                host = f"[{place.ip}]" if ":" in place.ip else place.ip
                host = f"{host}:{place.signaling_port}"
                endpoint = HostnameEndpoint(reactor, place.ip, place.signaling_port, CONNECT_TIMEOUT)
                return _Way(f"{node_id} at {host}", host, endpoint)
        raise Unavailable("sfu_unknown", f"it is not known where the SFU of {namespace} on {node_id} is")


@frozen
class _Way:
    """Where an SFU takes clients."""

    #: For the log.
    name: str
    host: str
    endpoint: IStreamClientEndpoint
    #: It is one of several processes of this node.
    inward: bool = False


class ForwardTrunk(WebSocketClientProtocol):
    """One client's way to the SFU of its room; see :class:`~orama.signaling.interfaces.Trunk`."""

    log = NoLog()
    transport: Any

    def __init__(
        self, trunks: Trunks, node_id: str, hop: Hop, settings: SignalingSettings, now: Callable[[], float]
    ) -> None:
        super().__init__()
        self.node_id = node_id
        #: Whether the handshake was a success.
        self.opened: Deferred[bool] = Deferred()
        #: Whether anything came after it.
        self.answered: Deferred[bool] = Deferred()
        self._trunks = trunks
        self._hop: Hop | None = hop
        self._settings = settings
        self._seconds = now
        self._backlog = Backlog()
        self._heard = now()
        self._probed: float | None = None
        self._closing: float | None = None
        #: Code and reason of the other side's closing frame.
        self._told: tuple[int, str] | None = None

    # From Autobahn.

    def connectionMade(self) -> None:
        self.transport.registerProducer(self._backlog, True)
        self._trunks.opened(self)
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        self._heard = self._seconds()
        super().dataReceived(data)

    def onOpen(self) -> None:
        self.opened.callback(True)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self._hop is not None:
            self._hop.forwarded(payload.decode())
            _fire(self.answered, True)

    def onCloseFrame(self, code: int, reasonRaw: bytes) -> bool | None:
        # A frame without a code gives None here, whatever Autobahn says; and it does not pass on every code.
        if code:
            self._told = code, (reasonRaw or b"").decode(errors="replace")
        failed = super().onCloseFrame(code, reasonRaw)
        self.transport.loseConnection()
        return failed

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self._trunks.closed(self)
        hop, self._hop = self._hop, None
        was_answered = self.answered.called
        _fire(self.opened, False)
        _fire(self.answered, False)
        if hop is not None and was_answered:
            hop.trunk_lost(*(self._told or (SERVICE_RESTART, "the node of the room is gone")))

    # From the session and the trunks.

    def send(self, text: str | bytes) -> None:
        """Pass a frame on; a node that does not read is dropped."""
        if self.state != self.STATE_OPEN:
            return
        payload = text.encode() if isinstance(text, str) else text
        self.sendMessage(payload)
        self._backlog.wrote(len(payload))
        if self._backlog.waiting > self._settings.send_queue:
            self._drop("it does not read")

    def close(self) -> None:
        """The client is gone."""
        self._hop = None
        self._closing = self._seconds()
        if self.state == self.STATE_OPEN:
            self.sendCloseFrame(code=NORMAL, reasonUtf8=b"the client is gone"[:MAX_REASON])
        self.transport.loseConnection()

    def tick(self, now: float, alive: bool) -> None:
        if self._closing is not None:
            if now - self._closing >= CLOSE_TIMEOUT:
                self.abort()
        elif now - self._heard >= self._settings.ping_interval + self._settings.ping_timeout:
            self._drop("it is silent")
        elif alive or (self._probed is not None and self._heard > self._probed):
            self._probed = None
        elif self._probed is None:
            self._probed = now
            if self.state == self.STATE_OPEN:
                self.sendPing(b"")
        elif now - self._probed >= PROBE_TIMEOUT:
            self._drop("it is dead")

    def abort(self) -> None:
        """Cut the connection at once."""
        self.transport.abortConnection()

    def _drop(self, why: str) -> None:
        if self._closing is None:
            self._closing = self._seconds()
            _log.info("a trunk to {node} is dropped: {why}", node=self.node_id, why=why)
            self.abort()


class _Factory(WebSocketClientFactory):
    """Makes one trunk."""

    log = NoLog()
    noisy = False
    trunk: ForwardTrunk

    def buildProtocol(self, address: Any) -> ForwardTrunk:
        self.trunk.factory = self
        return self.trunk


def _fire(waiting: Deferred[bool], value: bool) -> None:
    if not waiting.called:
        waiting.callback(value)
