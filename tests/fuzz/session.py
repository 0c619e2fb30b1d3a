"""A session with a whole TURN server, written in bytes, so that fuzzers of bytes get behind the authentication.

A step is an operation, a length and that many bytes. Requests are signed after their attributes were taken from the
input as they are. Whatever the steps say: no exception, faultless packets, data for permitted peers alone, and at the
end everything given back.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from orama.turn.credentials import issue
from orama.wire import stun
from orama.wire.stun import Class, Method
from tests.fuzz.outgoing import CheckedClient, taken_ports
from tests.turn.world import MYAPP, PEER, SFU, MemoryLink, World

#: Steps of one session.
MAX_STEPS = 24
#: What the first namespace may reach.
_OPEN = tuple(ip_network(text) for text in ("198.51.100.0/24", "10.0.0.0/30"))
_METHODS = (
    *(Method.ALLOCATE, Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND),
    *(Method.CONNECT, Method.CONNECTION_BIND, Method.SEND),
)


def steps(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The operations in *data* and their bytes."""
    at = 0
    for _ in range(MAX_STEPS):
        if at + 2 > len(data):
            return
        yield data[at], data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]


def write(*given: tuple[int, bytes]) -> bytes:
    """The bytes of these steps."""
    return b"".join(bytes((operation, len(body))) + body for operation, body in given)


class Session:
    """One server and two clients: one over UDP, one over a stream."""

    def __init__(self) -> None:
        self.world = World(unauthenticated_rate=0, tcp_relays=True)
        self.sfu = self.world.sfu()
        self.clients = [
            CheckedClient(self.world, ("203.0.113.9", 40000), self.world.credentials(user="ann")),
            CheckedClient(self.world, ("203.0.113.9", 40001), self.world.credentials(user="bob")),
        ]
        self.clients[1].verified = True
        self.granted = 0

    def step(self, operation: int, body: bytes) -> None:
        """Do one of eight things: the low bits say which, the next one for whom."""
        client = self.clients[operation >> 3 & 1]
        kind = operation & 7
        if kind <= 2:
            self.request(client, operation >> 4 & 7, body)
        elif kind == 3:
            client.give(body)
        elif kind == 4:
            client.give(*(body[at : at + 40] for at in range(0, len(body), 40)))
        elif kind == 5:
            self.from_peers(body)
        elif kind == 6:
            self.world.clock.advance(body[0] if body else 1)
            self.world.server.tick()
        else:
            CheckedClient(self.world, ("192.0.2.1", 9), client.credentials).give(body)
        self.look()

    def request(self, client: CheckedClient, method: int, body: bytes) -> None:
        """A request whose attributes are *body* and then who asks, signed."""
        if not client.nonce:
            client.challenge()
        client.credentials = issue(
            MYAPP.secrets[0], "myapp", 600, self.world.now, client.credentials.username.rpartition(":")[2]
        )
        proof = stun.build(0, Class.REQUEST, bytes(12), client.proof())[stun.HEADER_LENGTH :]
        body = body[: len(body) & ~3] + proof
        kind = stun.build(_METHODS[method], Class.REQUEST, bytes(12))[:2]
        head = kind + struct.pack("!HI12s", len(body) + 24, stun.COOKIE, client.transaction())
        signature = hmac.digest(client.key, head + body, "sha1")
        for answer in client.give(head + body + struct.pack("!HH", stun.MESSAGE_INTEGRITY.type, 20) + signature):
            message = stun.parse(answer)
            if message.cls == Class.ERROR:
                client.nonce = message.get(stun.NONCE) or client.nonce
            elif message.cls == Class.SUCCESS and message.method != Method.BINDING:
                assert message.verify(client.key), "a success that is not signed"
                self.granted += 1

    def from_peers(self, body: bytes) -> None:
        """*body* comes to every relay from its peers."""
        for link, received in list(self.world.opened.values()):
            if not link.closed:
                received([memoryview(bytearray(body))], PEER)
                received([memoryview(bytearray(body))], (PEER[0], 7))
        for address in [relay for relay in self.world.opened if self.world.fabric.has(relay)]:
            self.world.fabric.deliver([body], SFU, address)

    def look(self) -> None:
        """Only permitted peers hear anything, and relays are in the namespace's block."""
        for address, (link, _) in self.world.opened.items():
            assert MYAPP.relay_ports[0] <= address[1] <= MYAPP.relay_ports[1]
            for _, to in link.sent:
                assert any(ip_address(to[0]) in network for network in _OPEN), f"data for {to}"
            link.sent.clear()
        assert len(self.world.server) <= len(self.clients)

    def end(self) -> None:
        """Time takes everything back."""
        self.world.clock.advance(1_000_000)
        self.world.server.tick()
        assert len(self.world.server) == 0
        assert taken_ports(self.world.server) == 0
        assert all(link.closed for link, _ in self.world.opened.values() if isinstance(link, MemoryLink))
        self.world.server.stop()


def run_session(data: bytes) -> bool:
    """Any session; taken when it was granted anything."""
    session = Session()
    for operation, body in steps(data):
        session.step(operation, body)
    session.end()
    return session.granted > 0


def repair_session(data: bytearray) -> None:
    """Lengths that end with the input."""
    at = 0
    while at + 2 <= len(data):
        data[at + 1] = min(data[at + 1], len(data) - at - 2)
        at += 2 + data[at + 1]
