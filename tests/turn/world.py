"""A TURN server without sockets, its clock, its peers and its clients: everything is in memory and in plain sight."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from typing import Any

from attrs import define, field
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock

from orama.net.fabric import Address, Buffer, Burst, Fabric, Receiver
from orama.net.icmp import IcmpError
from orama.settings import TurnSettings
from orama.turn.credentials import Credentials, issue
from orama.turn.peers import Peers
from orama.turn.server import Server
from orama.turn.tenants import Tenant, Tenants
from orama.wire import channeldata, stun
from orama.wire.stun import Algorithm, Attribute, Class, Message, Method, PasswordAlgorithm
from tests.turn.streams import MemoryTcp

NOW = 1_800_000_000
REALM = "orama"
INTERNAL_IP = "10.0.0.1"
#: An SFU port of the first namespace on this node, and of one on another node.
SFU = (INTERNAL_IP, 20000)
FAR_SFU = ("10.0.0.2", 20007)
#: An SFU port and a relay port of the second namespace.
OTHER_SFU = (INTERNAL_IP, 20500)
OTHER_RELAY = (INTERNAL_IP, 50800)
#: A peer that the first namespace may reach by its configuration.
PEER = ("198.51.100.7", 4000)

MYAPP = Tenant(
    namespace="myapp",
    secrets=("north", "old-north"),
    relay_ports=(50000, 50799),
    sfu_media=((INTERNAL_IP, 20000, 20499), ("10.0.0.2", 20000, 20499)),
    allowed_peers=(ip_network("198.51.100.0/24"), ip_network("10.0.0.0/30")),
)
OTHER = Tenant(
    namespace="other",
    secrets=("south",),
    relay_ports=(50800, 51599),
    sfu_media=((INTERNAL_IP, 20500, 20999),),
)


@define(eq=False, slots=False)
class MemoryLink:
    """Keeps what is sent over it."""

    sent: list[tuple[list[bytes], Address]] = field(factory=list)
    transport = "udp"
    closed: bool = False
    unreachable: Callable[[IcmpError], None] | None = None
    #: What was sent so that nobody may fragment it.
    whole: list[bytes] = field(factory=list)

    def send_whole(self, packets: Burst, to: Address) -> None:
        self.whole += map(bytes, packets)
        self.send(packets, to)

    def send(self, packets: Burst, to: Address, headers: Sequence[Buffer] | None = None) -> None:
        if headers is None:
            joined = [bytes(packet) for packet in packets]
        else:
            joined = [bytes(header) + bytes(packet) for header, packet in zip(headers, packets, strict=True)]
        self.sent.append((joined, to))

    def close(self) -> None:
        self.closed = True

    def packets(self) -> list[bytes]:
        """All packets since the last call."""
        packets = [packet for burst, _ in self.sent for packet in burst]
        self.sent.clear()
        return packets


class World:
    """One server with two tenants."""

    def __init__(
        self, *, relay_ip: str = INTERNAL_IP, relay_ip6: str = "", all_issued_here: bool = False, **settings: Any
    ) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.fabric = Fabric(self.clock)
        self.tenants = Tenants()
        self.tenants.put(MYAPP)
        self.tenants.put(OTHER)
        self.peers = Peers(self.tenants, relay_ip, [(INTERNAL_IP, 3478)], relay_ip6)
        #: What the kernel has open, by address.
        self.opened: dict[Address, tuple[MemoryLink, Receiver]] = {}
        #: The kernel's TCP.
        self.tcp = MemoryTcp(self.clock)
        #: Ports that the kernel does not give.
        self.busy: Callable[[Address], bool] = lambda address: False
        settings.setdefault("default_namespace", "myapp")
        self.server = Server(
            clock=self.clock,
            random=random.Random(7),
            settings=TurnSettings(**settings),
            realm=REALM,
            relay_ip=relay_ip,
            tenants=self.tenants,
            peers=self.peers,
            fabric=self.fabric,
            open_socket=self._open,
            tcp=self.tcp,
            relay_ip6=relay_ip6,
            all_issued_here=all_issued_here,
        )

    def _open(self, address: Address, received: Receiver) -> MemoryLink:
        if self.busy(address):
            raise CannotListenError(address[0], address[1], OSError("in use"))
        link = MemoryLink()
        self.opened[address] = (link, received)
        return link

    @property
    def now(self) -> float:
        return self.clock.seconds()

    def credentials(self, namespace: str = "myapp", user: str = "", ttl: int = 600) -> Credentials:
        tenant = self.tenants.get(namespace)
        assert tenant is not None
        return issue(tenant.secrets[0], namespace, ttl, self.now, user)

    def client(self, port: int = 40000, ip: str = "203.0.113.9", **who: Any) -> Client:
        return Client(self, (ip, port), self.credentials(**who))

    def sfu(self, address: Address = SFU) -> list[tuple[list[bytes], Address]]:
        """Attach an SFU to the fabric; gives the list that what it receives goes into."""
        received: list[tuple[list[bytes], Address]] = []
        self.fabric.attach(
            address, lambda packets, source: received.append(([bytes(each) for each in packets], source))
        )
        return received

    def figures(self) -> dict[tuple[str, ...], float]:
        """The samples by name and label values."""
        return {(name, *labels.values()): value for name, labels, value in self.server.samples()}


class Client:
    """A TURN client that signs its requests, and remembers the nonce."""

    def __init__(
        self, world: World, address: Address, credentials: Credentials, link: MemoryLink | None = None
    ) -> None:
        self.world = world
        self.address = address
        self.credentials = credentials
        self.link = link or MemoryLink()
        self.nonce = b""
        self.relay: Address = ("", 0)
        #: On a stream, so that its address cannot be forged.
        self.verified = False
        #: What it signs with and names (RFC 8489, 9.2.5), None where it is a client of RFC 5389.
        self.algorithm: PasswordAlgorithm | None = None
        self.algorithms: Sequence[Algorithm] = ()
        #: Sends USERHASH in the place of USERNAME.
        self.hidden = False
        self._transactions = 0

    @property
    def key(self) -> bytes:
        algorithm = self.algorithm or PasswordAlgorithm.MD5
        return stun.long_term_key(self.credentials.username, REALM, self.credentials.password, algorithm)

    def proof(self) -> list[tuple[Attribute[Any], Any]]:
        """The attributes of who it is, without the integrity."""
        name = self.credentials.username
        proof: list[tuple[Attribute[Any], Any]] = [
            (stun.USERHASH, stun.userhash(name, REALM)) if self.hidden else (stun.USERNAME, name),
            (stun.REALM, REALM),
            (stun.NONCE, self.nonce),
        ]
        if self.algorithm is not None:
            proof += [(stun.PASSWORD_ALGORITHMS, self.algorithms), (stun.PASSWORD_ALGORITHM, (self.algorithm, b""))]
        return proof

    def give(self, *packets: Buffer) -> list[bytes]:
        """Hand packets to the server as one burst; what it sends back."""
        self.link.packets()
        views = [memoryview(bytearray(packet)) for packet in packets]
        self.world.server.received(self.link, views, self.address, verified=self.verified)
        return self.link.packets()

    def transaction(self) -> bytes:
        self._transactions += 1
        return self._transactions.to_bytes(12, "big")

    def ask(
        self,
        method: int,
        *attributes: tuple[Attribute[Any], Any],
        signed: bool = True,
        transaction_id: bytes | None = None,
        **build: Any,
    ) -> Message:
        """One request and its answer, whose signature is checked when there is one."""
        all_attributes = list(attributes)
        if signed:
            if not self.nonce:
                self.challenge()
            all_attributes += self.proof()
            build.setdefault("key", self.key)
            build.setdefault("sha256", self.algorithm is not None)
        transaction_id = transaction_id or self.transaction()
        (answer,) = self.give(stun.build(method, Class.REQUEST, transaction_id, all_attributes, **build))
        message = stun.parse(answer)
        assert message.transaction_id == transaction_id
        assert not message.protected or message.verify(self.key)
        return message

    def challenge(self) -> None:
        """Get a nonce, by a request that is long enough for the whole offer where that is wanted."""
        longer = [(stun.SOFTWARE, "a client of RFC 8489")] if self.algorithm is not None else []
        answer = self.ask(Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 17), *longer, signed=False)
        self.nonce = answer.get(stun.NONCE) or b""
        self.algorithms = answer.get(stun.PASSWORD_ALGORITHMS) or ()
        assert self.nonce

    def allocate(self, *attributes: tuple[Attribute[Any], Any], **more: Any) -> Message:
        answer = self.ask(Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 17), *attributes, **more)
        self.relay = answer.get(stun.XOR_RELAYED_ADDRESS) or self.relay
        return answer

    def refresh(self, *attributes: tuple[Attribute[Any], Any], **more: Any) -> Message:
        return self.ask(Method.REFRESH, *attributes, **more)

    def permit(self, *peers: Address, **more: Any) -> Message:
        return self.ask(Method.CREATE_PERMISSION, *((stun.XOR_PEER_ADDRESS, peer) for peer in peers), **more)

    def bind(self, number: int, peer: Address, **more: Any) -> Message:
        return self.ask(Method.CHANNEL_BIND, (stun.CHANNEL_NUMBER, number), (stun.XOR_PEER_ADDRESS, peer), **more)

    def send(self, peer: Address, data: bytes) -> list[bytes]:
        """A Send indication."""
        return self.give(
            stun.build(
                Method.SEND, Class.INDICATION, self.transaction(), [(stun.XOR_PEER_ADDRESS, peer), (stun.DATA, data)]
            )
        )

    def data(self, number: int, *payloads: bytes) -> list[bytes]:
        """A burst of ChannelData."""
        return self.give(*(channeldata.pack(number, payload) for payload in payloads))


def code(message: Message) -> int:
    """The error code of an answer, 0 for a success."""
    error = message.get(stun.ERROR_CODE)
    assert (error is None) == (message.cls == Class.SUCCESS)
    return error[0] if error else 0
