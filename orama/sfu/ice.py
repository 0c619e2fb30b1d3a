"""ICE for a lite agent (RFC 8445, 2.5 and 7.3), and the media port that all clients of a namespace share.

A :class:`MediaPort` is one UDP address. It tells STUN, DTLS and media apart by the first byte
(RFC 7983), and clients by the ufrag of their connectivity checks, then by the source address that a
check proved. It answers checks from relay addresses alone, and keeps nothing of what it refuses.
There is no gathering, no check of our own and no DTLS or SRTP here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from attrs import define, field
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorTime

from orama.net.burst import BurstSocket
from orama.net.fabric import Address, Buffer, Burst, Fabric, Receiver
from orama.net.poll import Poll
from orama.net.run import Run
from orama.wire import stun

if TYPE_CHECKING:
    from orama.sfu.media import RandomBits

#: RFC 8839, 5.4: ufrag and password are of these; at least 4 and 22 of them.
ICE_CHARS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
UFRAG_LENGTH = 8
PWD_LENGTH = 24
#: Seconds that credentials from before a restart still count: checks and answers cross on the way.
PREVIOUS_LIFETIME = 10.0
#: Addresses one client can have proved at a time; the one not heard of for longest goes.
MAX_SOURCES = 32
#: Seconds for which a nominated address of higher priority is kept against another nomination. A peer
#: that nominates everything (the aggressive nomination of RFC 5245) would otherwise switch at each check.
NOMINATION_HOLD = 3.0
#: Seconds without a check after which the address from before a restart is left unbidden; Chromium checks every 2.5.
DEAD = 4.0


@define(eq=False)
class IceCounters:
    """What a media port has seen. ``dropped`` counts packets (checks among them) by reason."""

    checks: int = 0
    nominations: int = 0
    restarts: int = 0
    dropped: Counter[str] = field(factory=Counter)


class DatagramSocket(Protocol):
    """What a media port needs of :class:`orama.net.burst.BurstSocket`."""

    received: Receiver

    @property
    def address(self) -> Address: ...
    def send(self, packets: Burst, to: Address) -> None: ...
    def close(self) -> None: ...


#: Where relays are: an IP as :data:`Address` spells it, the first and the last port.
RelayPlace: TypeAlias = tuple[str, int, int]


@define(eq=False)
class RelayOnly:
    """The rule of the contract: the SFU is reached from TURN relay addresses, and from nowhere else.

    Through the fabric that is *own*, the namespace's block on the TURN server of this process; through the kernel it is
    one of *others*, its blocks on all other TURN servers. A relay of our own never comes through the kernel: such a
    source is forged. Where TURN is another process of this host, or several are, its block is one of the others.
    """

    own: RelayPlace | None
    others: tuple[RelayPlace, ...] = ()

    def __call__(self, source: Address, through_fabric: bool) -> bool:
        if through_fabric:
            return self.own is not None and _within(source, self.own)
        return any(_within(source, place) for place in self.others)


def _within(address: Address, place: RelayPlace) -> bool:
    host, port = address
    ip, first, last = place
    return host == ip and first <= port <= last


def _ignore_dtls(datagram: bytes) -> None:
    """Nobody listens yet."""


def _ignore_media(packets: Burst) -> None:
    """Nobody listens yet."""


def _ignore_selected() -> None:
    """Nobody listens yet."""


@define(eq=False)
class _Path:
    """An address that a check proved, and the way it came: through the fabric or through the kernel."""

    address: Address
    through_fabric: bool
    checked_at: float
    priority: int = 0
    nominated_at: float | None = None


class IceAgent:
    """One client's end of ICE on our side: credentials, proved addresses, and the one in use.

    The peer sets ``on_dtls``, ``on_media`` and ``on_selected``. Packets handed to ``on_media`` are good
    only until it returns.
    """

    def __init__(self, clock: IReactorTime, random: RandomBits) -> None:
        self._clock = clock
        self._random = random
        self.local_ufrag = self._text(UFRAG_LENGTH)
        self.local_pwd = self._text(PWD_LENGTH)
        self.remote_ufrag = ""
        self.remote_pwd = ""
        #: Time of the last valid check; before the first one, of the agent's making.
        self.last_check: float = clock.seconds()
        self.on_dtls: Callable[[bytes], None] = _ignore_dtls
        self.on_media: Callable[[Burst], None] = _ignore_media
        #: The address in use has changed, or there is one now.
        self.on_selected: Callable[[], None] = _ignore_selected
        self._previous: tuple[str, str, float] | None = None
        #: Those from before the last restart, however long ago.
        self._former: tuple[str, str] | None = None
        self._paths: dict[tuple[Address, bool], _Path] = {}
        self._path: _Path | None = None
        self._port: MediaPort | None = None

    @property
    def selected(self) -> Address | None:
        """The nominated address, or before nomination the last one whose check was right."""
        return None if self._path is None else self._path.address

    @property
    def nominated(self) -> bool:
        return self._path is not None and self._path.nominated_at is not None

    def set_remote(self, ufrag: str, pwd: str) -> None:
        """What the client's description said. A lite agent sends no checks, so it needs neither to answer."""
        self.remote_ufrag = ufrag
        self.remote_pwd = pwd

    def restart(self) -> None:
        """New credentials (RFC 8445, 9); the old ones count for ten seconds more, the address in use stays."""
        now = self._clock.seconds()
        port = self._port
        if port is not None:
            if self._previous is not None:
                port.forget_ufrag(self._previous[0], self)
            port.counters.restarts += 1
        self._former = (self.local_ufrag, self.local_pwd)
        self._previous = (*self._former, now + PREVIOUS_LIFETIME)
        self.renew()
        if port is not None:
            port.add_ufrag(self)
        for path in self._paths.values():
            path.nominated_at = None
        if self._path is not None:
            # It is held on to until another is nominated, or it is dead: then the client is elsewhere already.
            self._path.nominated_at = float("-inf")

    def revert(self) -> None:
        """The client has not heard of the last restart: what was before it counts, and for ten seconds what it gave."""
        if self._former is None:
            return
        given, (self.local_ufrag, self.local_pwd) = (self.local_ufrag, self.local_pwd), self._former
        self._previous, self._former = (*given, self._clock.seconds() + PREVIOUS_LIFETIME), None
        if self._port is not None:
            self._port.add_ufrag(self)

    def renew(self) -> None:
        """Draw credentials afresh, for when the ufrag is taken."""
        self.local_ufrag = self._text(UFRAG_LENGTH)
        self.local_pwd = self._text(PWD_LENGTH)

    def send(self, packets: Burst) -> None:
        """Send to the address in use; without one the packets are lost and counted."""
        port, path = self._port, self._path
        if port is None:
            return
        if path is None:
            port.counters.dropped["no_address"] += len(packets)
            return
        port.send(packets, path.address, path.through_fabric)

    # ---- what the media port calls ----------------------------------------------------------------

    def attached(self, port: MediaPort | None) -> None:
        """The agent belongs to *port* from now on, or to none."""
        self._port = port
        if port is None:
            self._paths.clear()
            self._path = None

    def ufrags(self) -> list[str]:
        previous = [] if self._previous is None else [self._previous[0]]
        return [self.local_ufrag, *previous]

    def addresses(self) -> list[tuple[Address, bool]]:
        return list(self._paths)

    def password(self, ufrag: str) -> str | None:
        """The password that goes with *ufrag*, None when it has had its time."""
        if ufrag == self.local_ufrag:
            return self.local_pwd
        if self._previous is not None and ufrag == self._previous[0]:
            if self._clock.seconds() < self._previous[2]:
                return self._previous[1]
            self._previous = None
        return None

    def checked(
        self, source: Address, through_fabric: bool, priority: int, nominates: bool
    ) -> tuple[Address, bool] | None:
        """A check from *source* was right. Gives back an address that had to go to make room."""
        now = self._clock.seconds()
        self.last_check = now
        key = (source, through_fabric)
        path = self._paths.get(key)
        if path is None:
            path = self._paths[key] = _Path(source, through_fabric, now)
        path.checked_at = now
        path.priority = priority
        current = self._path
        if nominates:
            held = (
                current is not None
                and current is not path
                and current.nominated_at is not None
                and now - current.nominated_at < NOMINATION_HOLD
                and current.priority > priority
            )
            path.nominated_at = now
            if not held:
                self._select(path)
        elif current is None or current.nominated_at is None:
            self._select(path)
        elif current.nominated_at < 0 and now - current.checked_at > DEAD:
            self._select(path)  # from before a restart
        if len(self._paths) <= MAX_SOURCES:
            return None
        oldest = min((p for p in self._paths.values() if p is not self._path), key=lambda p: p.checked_at)
        gone = (oldest.address, oldest.through_fabric)
        del self._paths[gone]
        return gone

    def lost(self, source: Address, through_fabric: bool) -> None:
        """*source* has become another client's."""
        path = self._paths.pop((source, through_fabric), None)
        if path is not None and path is self._path:
            self._path = None

    def _select(self, path: _Path) -> None:
        if path is not self._path:
            self._path = path
            self.on_selected()

    def _text(self, length: int) -> str:
        bits = self._random.getrandbits(6 * length)
        return "".join(ICE_CHARS[bits >> 6 * i & 63] for i in range(length))


class MediaPort:
    """One address of the SFU, in the kernel and in the fabric, and the clients behind it.

    :param socket: bound already; the port takes over what it receives.
    :param accepts: called with a source address and whether it came through the fabric, before
        anything in the packet is looked at; a source that it refuses gets no answer.
    """

    def __init__(
        self,
        namespace: str,
        fabric: Fabric,
        socket: DatagramSocket,
        accepts: Callable[[Address, bool], bool],
        counters: IceCounters | None = None,
    ) -> None:
        self.namespace = namespace
        self.counters = IceCounters() if counters is None else counters
        self._fabric = fabric
        self._socket = socket
        self._accepts = accepts
        self._ufrags: dict[str, IceAgent] = {}
        #: Who is behind a source address, by the way it came: a membership here is the accept rule kept.
        self._by_fabric: dict[Address, IceAgent] = {}
        self._by_socket: dict[Address, IceAgent] = {}
        self._address = socket.address
        fabric.attach(self._address, self._delivered)
        socket.received = self._received

    @classmethod
    def listen(
        cls,
        poll: Poll,
        namespace: str,
        host: str,
        ports: Iterable[int],
        accepts: Callable[[Address, bool], bool],
        counters: IceCounters | None = None,
        *,
        offload: bool = True,
    ) -> MediaPort:
        """Bind to *host* at the first of *ports* that is free.

        :raises CannotListenError: none of them is.
        """
        failure: CannotListenError | None = None
        for port in ports:
            socket = BurstSocket(poll, _ignore_burst, offload=offload)
            try:
                socket.listen((host, port))
            except CannotListenError as error:
                failure = error
                continue
            try:
                return cls(namespace, poll.fabric, socket, accepts, counters)
            except BaseException:
                socket.close()
                raise
        raise failure or CannotListenError(host, 0, OSError("no ports to choose from"))

    @property
    def address(self) -> Address:
        return self._address

    def add(self, agent: IceAgent) -> None:
        """Answer checks with the agent's ufrag; a ufrag that is taken is drawn again."""
        self.add_ufrag(agent)
        agent.attached(self)

    def remove(self, agent: IceAgent) -> None:
        """Forget all of the agent. Nothing happens when it is not here."""
        for ufrag in agent.ufrags():
            self.forget_ufrag(ufrag, agent)
        for source, through_fabric in agent.addresses():
            table = self._by_fabric if through_fabric else self._by_socket
            if table.get(source) is agent:
                del table[source]
        agent.attached(None)

    def close(self) -> None:
        """Give the address back, in the kernel and in the fabric, and forget every agent."""
        self._fabric.detach(self._address)
        self._socket.close()
        for agent in set(self._ufrags.values()):
            self.remove(agent)

    def add_ufrag(self, agent: IceAgent) -> None:
        while self._ufrags.get(agent.local_ufrag, agent) is not agent:
            agent.renew()
        self._ufrags[agent.local_ufrag] = agent

    def forget_ufrag(self, ufrag: str, agent: IceAgent) -> None:
        if self._ufrags.get(ufrag) is agent:
            del self._ufrags[ufrag]

    def send(self, packets: Burst, to: Address, through_fabric: bool) -> None:
        """Send by the way that the address was proved on; the other way would pass beside the relay."""
        if not through_fabric:
            self._socket.send(packets, to)
        elif not self._fabric.deliver(packets, self._address, to):
            self.counters.dropped["relay_gone"] += len(packets)

    # The two ways in. Per burst: one lookup and one look at each first byte, then the media path has it.

    def _received(self, packets: Burst, source: Address) -> None:
        agent = self._by_socket.get(source)
        if agent is None and not self._accepts(source, False):
            self.counters.dropped["not_a_relay"] += len(packets)
            return
        self._sort(agent, packets, source, False)

    def _delivered(self, packets: Burst, source: Address) -> None:
        agent = self._by_fabric.get(source)
        if agent is None and not self._accepts(source, True):
            self.counters.dropped["not_a_relay"] += len(packets)
            return
        self._sort(agent, packets, source, True)

    def _sort(self, agent: IceAgent | None, packets: Burst, source: Address, through_fabric: bool) -> None:
        """Tell the packets apart by their first byte (RFC 7983, 7)."""
        if type(packets) is Run:
            packets = packets.slices()  # once: each is looked at here and again on its way
        if agent is not None:
            for packet in packets:
                if not (packet and 127 < packet[0] < 192):
                    break
            else:
                agent.on_media(packets)
                return
        table = self._by_fabric if through_fabric else self._by_socket
        media: list[Buffer] = []
        for packet in packets:
            first = packet[0] if packet else 255
            if first < 4:
                if media and agent is not None:
                    agent.on_media(media)
                    media = []
                self._check(packet, source, through_fabric)
                agent = table.get(source)
            elif agent is None:
                self.counters.dropped["unknown_source"] += 1
            elif 127 < first < 192:
                media.append(packet)
            elif 19 < first < 64:
                agent.on_dtls(bytes(packet))
                agent = table.get(source)
            else:
                self.counters.dropped["unknown_protocol"] += 1
        if media and agent is not None:
            agent.on_media(media)

    def _check(self, packet: Buffer, source: Address, through_fabric: bool) -> None:
        """Answer a connectivity check (RFC 8445, 7.3), or count why not."""
        refused = self.counters.dropped
        try:
            message = stun.parse(packet)
        except stun.StunError:
            refused["bad_stun"] += 1
            return
        if message.method != stun.Method.BINDING or message.cls != stun.Class.REQUEST:
            refused["not_a_check"] += 1
            return
        ufrag, colon, _ = (message.get(stun.USERNAME) or "").partition(":")
        agent = self._ufrags.get(ufrag)
        if agent is None or not colon:
            refused["unknown_ufrag"] += 1
            return
        password = agent.password(ufrag)
        if password is None:
            self.forget_ufrag(ufrag, agent)
            refused["unknown_ufrag"] += 1
            return
        key = password.encode()
        if stun.FINGERPRINT not in message or not message.verify(key):
            refused["bad_integrity"] += 1
            return
        error: tuple[tuple[stun.Attribute[Any], Any], ...] = ()
        if message.unknown:
            error = ((stun.ERROR_CODE, (420, "Unknown Attribute")), (stun.UNKNOWN_ATTRIBUTES, message.unknown))
        elif message.malformed or stun.PRIORITY not in message:
            error = ((stun.ERROR_CODE, (400, "Bad Request")),)
        elif stun.ICE_CONTROLLED in message:
            # RFC 8445, 7.3.1.1: a lite agent stays controlled against a full one, as if its tie-breaker were 0.
            error = ((stun.ERROR_CODE, (487, "Role Conflict")),)
        if error:
            refused["bad_check"] += 1
            self._answer(stun.Class.ERROR, message, error, key, source, through_fabric)
            return
        self.counters.checks += 1
        nominates = stun.USE_CANDIDATE in message
        self.counters.nominations += nominates
        self._answer(stun.Class.SUCCESS, message, ((stun.XOR_MAPPED_ADDRESS, source),), key, source, through_fabric)
        self._prove(agent, source, through_fabric, message.get(stun.PRIORITY) or 0, nominates)

    def _prove(self, agent: IceAgent, source: Address, through_fabric: bool, priority: int, nominates: bool) -> None:
        """Every check that is right takes the source over: relay ports are used again by others."""
        table = self._by_fabric if through_fabric else self._by_socket
        before = table.get(source)
        if before is not agent:
            if before is not None:
                before.lost(source, through_fabric)
            table[source] = agent
        gone = agent.checked(source, through_fabric, priority, nominates)
        if gone is not None:
            (self._by_fabric if gone[1] else self._by_socket).pop(gone[0], None)

    def _answer(
        self,
        cls: stun.Class,
        request: stun.Message,
        attributes: Iterable[tuple[stun.Attribute[Any], Any]],
        key: bytes,
        source: Address,
        through_fabric: bool,
    ) -> None:
        answer = stun.build(stun.Method.BINDING, cls, request.transaction_id, attributes, key=key, fingerprint=True)
        self.send([answer], source, through_fabric)


def _ignore_burst(packets: Burst, source: Address) -> None:
    """A socket's receiver until a media port takes it over."""
