"""Two hundred thousand bent datagrams for the whole TURN server: it lives, keeps nothing, answers only questions."""

from __future__ import annotations

import random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from orama.wire import stun
from orama.wire.stun import Attribute, Class, Method
from tests.fuzz.mutation import corpus, inputs
from tests.fuzz.outgoing import CheckedClient, kept
from tests.fuzz.parsers import repair_stun
from tests.turn.world import PEER, REALM, Client, World, code

Pair = tuple[Attribute[Any], Any]

COUNT = 100_000
BURST = 10


class TurnFuzzTests(SynchronousTestCase):
    def seeds(self, client: Client) -> list[bytes]:
        """The corpora of STUN and ChannelData, and one right request of each kind."""
        parts: list[Pair] = [
            (stun.USERNAME, client.credentials.username),
            (stun.REALM, REALM),
            (stun.NONCE, client.nonce),
        ]
        requests: dict[Method, list[Pair]] = {
            Method.ALLOCATE: [(stun.REQUESTED_TRANSPORT, 17), (stun.EVEN_PORT, True)],
            Method.REFRESH: [(stun.LIFETIME, 0)],
            Method.CREATE_PERMISSION: [(stun.XOR_PEER_ADDRESS, PEER)],
            Method.CHANNEL_BIND: [(stun.CHANNEL_NUMBER, 0x4000), (stun.XOR_PEER_ADDRESS, PEER)],
        }
        signed = [
            stun.build(method, Class.REQUEST, b"t" * 12, [*attributes, *parts], key=client.key)
            for method, attributes in requests.items()
        ]
        return [*corpus("stun"), *corpus("indications"), *corpus("channeldata"), *signed, *signed]

    def test_strangers(self) -> None:
        """Bent and random datagrams from many sources: no exception, no allocation, no port, nothing kept."""
        world = World()
        source = random.Random(3478)
        model = world.client()
        model.challenge()
        before, given = kept(world.server), 0
        burst: list[bytes] = []
        for data in inputs(self.seeds(model), 3478, COUNT, repair_stun):
            burst.append(data if source.random() < 0.9 else source.randbytes(source.randrange(64)))
            if len(burst) == BURST:
                number = given // BURST
                address = (f"10.{number >> 8 & 255}.{number & 255}.1", source.randrange(0x10000))
                client = CheckedClient(world, address, model.credentials)
                self.assertLessEqual(len(client.give(*burst)), BURST)
                world.clock.advance(0.01)
                given += len(burst)
                burst = []
        self.assertEqual(given, COUNT)
        self.assertEqual((len(world.server), world.opened), (0, {}))
        self.assertEqual(kept(world.server), before)
        self.assertEqual(code(world.client(port=1).allocate()), 0)

    def test_on_an_allocation(self) -> None:
        """The same from a client with an allocation: it stands, and only its own peer hears anything."""
        world = World(allocations_per_user=0)
        source = random.Random(5349)
        client = CheckedClient(world, ("203.0.113.9", 40000), world.credentials(user="ann"))
        client.allocate()
        client.bind(0x4000, PEER)
        ended = given = 0
        burst: list[bytes] = []
        for data in inputs(self.seeds(client), 5349, COUNT, repair_stun):
            burst.append(data)
            if len(burst) < BURST:
                continue
            client.give(*burst)
            given += len(burst)
            burst = []
            if not len(world.server):
                ended += 1  # a Refresh that was bent behind its signature is still the client's own
                client.allocate(transaction_id=source.randbytes(12))
        self.assertEqual(given, COUNT)
        self.assertLess(ended, COUNT // 100)
        for link, _ in world.opened.values():
            self.assertEqual({to[0] for _, to in link.sent} - {PEER[0]}, set())
        self.assertEqual(len(world.server), 1)
        self.assertEqual(code(client.refresh()), 0)
