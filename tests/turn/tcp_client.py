"""A client on a stream in memory, that makes TCP allocations and binds connections to streams of its own."""

from __future__ import annotations

from typing import Any

from orama.net.fabric import Address, Buffer
from orama.turn.allocating import TCP
from orama.wire import stun
from orama.wire.stun import Attribute, Class, Message, Method
from tests.turn.streams import MemoryStream
from tests.turn.world import Client, World


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
