"""A session with a whole TURN server, written in bytes, so that fuzzers of bytes get behind the authentication.

A step is two bytes that say what is done, a length and that many bytes. Requests are signed after their attributes were
taken from the input as they are. Whatever the steps say: no exception, faultless packets, data for permitted peers
alone, and at the end everything given back.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from attrs import define, field

from orama.net.fabric import Address, Buffer, Burst
from orama.wire import stun
from orama.wire.stun import Attribute, Class, Message, Method
from tests.fuzz import reference
from tests.fuzz.outgoing import CheckedClient, taken_ports
from tests.turn.streams import MemoryStream
from tests.turn.world import INTERNAL_IP, MYAPP, OTHER, PEER, SFU, World

#: Steps of one session.
MAX_STEPS = 24
#: What the first namespace may reach.
_OPEN = tuple(ip_network(text) for text in ("198.51.100.0/24", "10.0.0.0/30", "fd00::/64"))
#: Ports of the second namespace, for media and for relays.
_OTHERS = (OTHER.sfu_media[0][1:], OTHER.relay_ports)
RELAY_IP6 = "fd00::1"
METHODS = (
    *(Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND),
    *(Method.CONNECT, Method.CONNECTION_BIND, Method.BINDING, Method.SEND),
)
#: What a later request may name, by the attribute in which the server gave it.
_NAMED: tuple[Attribute[Any], ...] = (stun.RESERVATION_TOKEN, stun.MOBILITY_TICKET, stun.CONNECTION_ID)
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


def is_open(peer: Address, any_port: bool = False) -> bool:
    """Whether the first namespace may reach *peer*: its networks without what is another's, and our listener."""
    ip, port = peer
    if not any(ip_address(ip) in network for network in _OPEN):
        return False
    return any_port or ip != INTERNAL_IP or (port != 3478 and not any(first <= port <= last for first, last in _OTHERS))


def steps(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The operations in *data*, their arguments and bytes."""
    at = 0
    for _ in range(MAX_STEPS):
        if at + 3 > len(data):
            return
        yield data[at], data[at + 1], data[at + 3 : at + 3 + data[at + 2]]
        at += 3 + data[at + 2]


def write(*given: tuple[int, int, bytes]) -> bytes:
    """The bytes of these steps."""
    return b"".join(bytes((operation, argument, len(body))) + body for operation, argument, body in given)


@define(eq=False)
class StreamLink(MemoryStream):
    """A client's stream, which keeps messages apart."""

    sent: list[bytes] = field(factory=list)

    def send(self, packets: Burst, to: Address, headers: Sequence[Buffer] | None = None) -> None:
        if headers is None:
            self.sent += map(bytes, packets)
        else:
            self.sent += [
                b"".join((header, packet, _PADDING[len(packet) % 4]))
                for header, packet in zip(headers, packets, strict=True)
            ]

    def packets(self) -> list[bytes]:
        taken, self.sent = self.sent, []
        return taken


class Session:
    """One server, and one user's clients: two over UDP, two on streams."""

    def __init__(self) -> None:
        self.world = World(relay_ip6=RELAY_IP6, unauthenticated_rate=0, tcp_relays=True)
        self.world.sfu()
        self.streams = [StreamLink(self.world.clock), StreamLink(self.world.clock)]
        self.clients = [
            CheckedClient(self.world, ("203.0.113.9", 40000 + number), self.world.credentials(user="ann"), link)
            for number, link in enumerate((None, self.streams[0], None, self.streams[1]))
        ]
        for client in self.clients[1::2]:
            client.verified = True
        self.peers: list[MemoryStream] = []
        self.granted = 0
        #: By attribute type, the newest one that the server gave away.
        self.named: dict[int, object] = {}

    def step(self, operation: int, argument: int, body: bytes) -> None:
        """Do one of eight things: the low bits say which, the next two for whom."""
        client = self.clients[operation >> 3 & 3]
        kind = operation & 7
        if isinstance(client.link, StreamLink) and client.link.flow is not None and kind <= 4:
            client.link.gives(body)
        elif kind <= 2:
            self.request(client, METHODS[argument & 7], body, named=bool(argument & 8))
        elif kind == 3:
            self.hear(client, client.give(body))
        elif kind == 4:
            self.hear(client, client.give(*(body[at : at + 40] for at in range(0, len(body), 40))))
        elif kind == 5:
            self.from_peers(argument, body)
        elif kind == 6:
            self.world.clock.advance(argument)
            self.world.server.tick()
        elif argument & 1:
            self.world.server.disconnected(client.link, client.address)
        else:
            CheckedClient(self.world, ("192.0.2.1", 9), client.credentials).give(body)
        self.look()

    def request(self, client: CheckedClient, method: Method, body: bytes, named: bool) -> None:
        """A request whose attributes are *body* and then who asks, signed.

        :param named: with what the server gave away last that the method can name.
        """
        if not client.nonce:
            client.challenge()
        client.credentials = self.world.credentials(user="ann")
        pairs = [
            (row, self.named[row.type])
            for row in _NAMED
            if named and row.type in self.named and (row is stun.MOBILITY_TICKET) == (method == Method.REFRESH)
        ]
        transaction = client.transaction()
        proof = stun.build(0, Class.REQUEST, transaction, [*pairs, *client.proof()])[stun.HEADER_LENGTH :]
        body = body[: len(body) & ~3] + proof
        kind = stun.build(method, Class.REQUEST, transaction)[:2]
        head = kind + struct.pack("!HI12s", len(body) + 24, stun.COOKIE, transaction)
        signature = hmac.digest(client.key, head + body, "sha1")
        packet = head + body + struct.pack("!HH", stun.MESSAGE_INTEGRITY.type, 20) + signature
        before = self.granted
        self.hear(client, client.give(packet))
        asked = reference.read(packet)
        if self.granted > before and asked is not None:
            peers = [
                reference.address(kind, value, transaction) for kind, value in asked.counted if kind == reference.PEER
            ]
            if method == Method.CREATE_PERMISSION:
                assert all(is_open(peer, any_port=True) for peer in peers), f"a permission for one of {peers}"
            elif method == Method.CHANNEL_BIND:
                assert is_open(peers[0]), f"a channel to {peers[0]}"

    def hear(self, client: CheckedClient, packets: list[bytes]) -> None:
        """Look at what a client got, and keep what it may name later."""
        for packet in packets:
            if packet[0] & 0xC0:
                continue
            message: Message = stun.parse(packet)
            if message.cls == Class.ERROR:
                client.nonce = message.get(stun.NONCE) or client.nonce
            elif message.cls == Class.SUCCESS and message.method != Method.BINDING:
                assert message.verify(client.key), "a success that is not signed"
                self.granted += 1
            for row in _NAMED:
                if row in message:
                    self.named[row.type] = message.get(row)

    def from_peers(self, argument: int, body: bytes) -> None:
        """*body* comes to every relay from its peers; connections are taken, refused and made."""
        for link, received in list(self.world.opened.values()):
            if not link.closed:
                received([memoryview(bytearray(body))], PEER)
                received([memoryview(bytearray(body))], (PEER[0], 7))
        for address in [relay for relay in self.world.opened if self.world.fabric.has(relay)]:
            self.world.fabric.deliver([body], SFU, address)
        for attempt in self.world.tcp.attempts:
            if not attempt.done.called and not attempt.cancelled:
                if argument & 1:
                    self.peers.append(attempt.succeeds())
                else:
                    attempt.fails()
        if argument & 2:
            for address, listener in list(self.world.tcp.listeners.items()):
                if not listener.closed:
                    self.peers.append(self.world.tcp.arrives(address, (PEER[0], argument + 1)))
        for stream in self.peers:
            stream.gives(body)
            if argument & 4:
                stream.ends()
            if argument & 8:
                stream.breaks()
        self.world.clock.advance(0)

    def look(self) -> None:
        """Only permitted peers hear anything, and relays are in the namespace's block."""
        for address, (link, _) in self.world.opened.items():
            assert MYAPP.relay_ports[0] <= address[1] <= MYAPP.relay_ports[1]
            for _, to in link.sent:
                assert is_open(to), f"data for {to}"
            link.sent.clear()
        for attempt in self.world.tcp.attempts:
            assert is_open(attempt.peer), f"a connection to {attempt.peer}"
        for client in self.clients:
            self.hear(client, client.checked(client.link.packets()))
        assert len(self.world.server) <= len(self.clients)

    def end(self) -> None:
        """Time takes everything back."""
        self.world.clock.advance(1_000_000)
        self.world.server.tick()
        self.world.clock.advance(100)
        assert len(self.world.server) == 0
        assert taken_ports(self.world.server) == 0
        assert all(link.closed for link, _ in self.world.opened.values())
        assert all(listener.closed for listener in self.world.tcp.listeners.values())
        assert all(attempt.done.called or attempt.cancelled for attempt in self.world.tcp.attempts)
        assert all(stream.aborted or stream.gone or stream.finished for stream in self.peers)
        self.world.server.stop()
        assert self.world.clock.getDelayedCalls() == []


def run_session(data: bytes) -> bool:
    """Any session; taken when it was granted anything."""
    session = Session()
    for operation, argument, body in steps(data):
        session.step(operation, argument, body)
    session.end()
    return session.granted > 0


def repair_session(data: bytearray) -> None:
    """Lengths that end with the input."""
    at = 0
    while at + 3 <= len(data):
        data[at + 2] = min(data[at + 2], len(data) - at - 3)
        at += 3 + data[at + 2]
