"""A client's stream, in one piece and in many: what the server does must not depend on how the bytes arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orama.turn.stream import STRANGER_MESSAGES, StreamClient, StreamClients
from orama.wire import channeldata, stun
from orama.wire.stun import Attribute, Class, Method
from tests.fuzz.outgoing import check
from tests.turn.test_stream import Wire
from tests.turn.world import PEER, REALM, World

Pair = tuple[Attribute[Any], Any]

CHANNEL = 0x4000
#: A stranger may send so many messages; of so many bytes there cannot be more.
_STRANGERS_BYTES = STRANGER_MESSAGES * channeldata.HEADER.size


def _signed(world: World, nonce: bytes, method: Method, *attributes: Pair) -> bytes:
    credentials = world.credentials()
    key = stun.long_term_key(credentials.username, REALM, credentials.password)
    proof: list[Pair] = [(stun.XOR_PEER_ADDRESS, PEER), (stun.USERNAME, credentials.username), (stun.REALM, REALM)]
    return stun.build(method, Class.REQUEST, b"t" * 12, [*attributes, *proof, (stun.NONCE, nonce)], key=key)


def _connected(world: World, known: bool) -> tuple[StreamClient, Wire]:
    """A stranger on a stream, or a client with an allocation and a channel to PEER."""
    client = StreamClients(world.clock, world.server, world.fabric).arrive(("203.0.113.9", 40000), "tcp")
    client.begin(wire := Wire(client))
    if known:
        client.received(stun.build(Method.ALLOCATE, Class.REQUEST, b"t" * 12))
        nonce = stun.parse(wire.take()).get(stun.NONCE) or b""
        client.received(_signed(world, nonce, Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 17)))
        client.received(_signed(world, nonce, Method.CHANNEL_BIND, (stun.CHANNEL_NUMBER, CHANNEL)))
        wire.take()
        assert len(world.server) == 1
    return client, wire


def heard(data: bytes, pieces: Sequence[int], known: bool) -> tuple[list[bytes], list[bytes], bool]:
    """What the client, and what the peer is sent for *data*, and whether the connection was dropped.

    :param pieces: bytes that come at a time, from the first again when all have come.
    """
    world = World()
    client, wire = _connected(world, known)
    at = number = 0
    while at < len(data):
        piece = data[at : at + pieces[number % len(pieces)]]
        client.received(memoryview(bytearray(piece)))
        at, number = at + len(piece), number + 1
    relayed = [packet for link, _ in world.opened.values() for burst, _ in link.sent for packet in burst]
    return wire.records, relayed, wire.dropped


def run_stream(data: bytes) -> bool:
    """The same for the whole and for pieces, whoever it is; taken when anything came of it."""
    known = bool(data) and data[0] < 0xC0
    if not known:
        data = data[1 : 1 + _STRANGERS_BYTES]
    whole = heard(data, [len(data) or 1], known)
    for packet in whole[0]:
        check(packet)
    cut = 1 + sum(data) % 61
    for pieces in ([cut, 1, 4], [len(data) // 2 + 1]):
        assert heard(data, pieces, known) == whole, pieces
    return bool(whole[0] or whole[1])
