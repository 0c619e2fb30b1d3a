"""A client on a stream in memory, that makes TCP allocations and binds connections to streams of its own."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from orama.net.fabric import Address, Buffer
from orama.turn.allocating import TCP
from orama.wire import stun
from orama.wire.stun import Attribute, Class, Message, Method
from tests.turn.streams import MemoryStream
from tests.turn.world import PEER, Client, World, code


class TcpClient(Client):
    """Like :class:`Client`, on a stream."""

    def __init__(self, world: World, port: int = 40000, ip: str = "203.0.113.9", **who: Any) -> None:
        self.stream = MemoryStream(world.clock)
        super().__init__(world, (ip, port), world.credentials(**who), self.stream)  # type: ignore[arg-type]

    def give(self, *packets: Buffer) -> list[bytes]:
        self.stream.takes()
        burst = [memoryview(bytearray(packet)) for packet in packets]
        self.world.server.received(self.stream, burst, self.address, verified=True)
        return self.stream.packets()

    def allocate(self, *attributes: tuple[Attribute[Any], Any], **more: Any) -> Message:
        answer = self.ask(Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, TCP), *attributes, **more)
        self.relay = answer.get(stun.XOR_RELAYED_ADDRESS) or self.relay
        return answer

    def begin(self, method: int, *attributes: tuple[Attribute[Any], Any]) -> list[bytes]:
        """A signed request whose answer may come later; what came at once."""
        if not self.nonce:
            self.challenge()
        signed = [
            *attributes,
            (stun.USERNAME, self.credentials.username),
            (stun.REALM, "orama"),
            (stun.NONCE, self.nonce),
        ]
        return self.give(stun.build(method, Class.REQUEST, self.transaction(), signed, key=self.key))

    def connect(self, peer: Address) -> list[bytes]:
        """A Connect; what came at once."""
        return self.begin(Method.CONNECT, (stun.XOR_PEER_ADDRESS, peer))

    def heard(self) -> Message:
        """The one message that has come since."""
        message = stun.parse(self.stream.takes())
        assert not message.protected or message.verify(self.key)
        return message

    def bind_connection(self, id_: int | None) -> Message:
        """A ConnectionBind."""
        return self.ask(Method.CONNECTION_BIND, *([] if id_ is None else [(stun.CONNECTION_ID, id_)]))


class TcpTests(SynchronousTestCase):
    """A world with TCP relays."""

    settings: dict[str, Any] = {}

    def setUp(self) -> None:
        self.world = World(tcp_relays=True, **self.settings)

    def client(self, port: int = 40000, **who: Any) -> TcpClient:
        """A client with a TCP allocation."""
        client = TcpClient(self.world, port, **who)
        self.assertEqual(code(client.allocate()), 0)
        return client

    def pass_time(self, seconds: float) -> None:
        """Second by second, with the server's look at each."""
        for _ in range(int(seconds)):
            self.world.clock.advance(1)
            self.world.server.tick()

    def turn(self) -> None:
        """Another turn of the reactor."""
        self.world.clock.advance(0)

    def connected(self, client: TcpClient, peer: tuple[str, int] = PEER) -> tuple[MemoryStream, int]:
        """A pending connection to *peer*: the peer's stream, and the CONNECTION-ID."""
        self.assertEqual(client.connect(peer), [])
        stream = self.world.tcp.attempts[-1].succeeds()
        id_ = client.heard().get(stun.CONNECTION_ID)
        assert id_ is not None
        return stream, id_

    def joined(self, client: TcpClient, port: int = 41000, **who: Any) -> tuple[MemoryStream, MemoryStream]:
        """The two streams of a data connection: the peer's, and the client's."""
        peer, id_ = self.connected(client)
        data = TcpClient(self.world, port, **who)
        self.assertEqual(code(data.bind_connection(id_)), 0)
        self.turn()
        return peer, data.stream

    def connections(self) -> float:
        return self.world.figures().get(("orama_turn_connections", "myapp"), 0)
