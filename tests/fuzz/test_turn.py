"""A hundred thousand bad datagrams for the whole TURN server: it lives, keeps nothing, and answers only questions."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from orama.turn.ratelimit import MAX_SOURCES
from orama.wire import channeldata, stun
from orama.wire.stun import Class, Method
from tests.fuzz.test_stun import COUNT, SEEDS, damaged
from tests.turn.world import PEER, REALM, Client, World, code

BURST = 10


class TurnFuzzTests(SynchronousTestCase):
    def signed(self, client: Client) -> list[bytes]:
        """One right request of each kind, to be damaged."""
        parts = [(stun.USERNAME, client.credentials.username), (stun.REALM, REALM), (stun.NONCE, client.nonce)]
        return [
            stun.build(method, Class.REQUEST, b"t" * 12, [*attributes, *parts], key=client.key)
            for method, attributes in (
                (Method.ALLOCATE, [(stun.REQUESTED_TRANSPORT, 17), (stun.EVEN_PORT, True)]),
                (Method.REFRESH, [(stun.LIFETIME, 0)]),
                (Method.CREATE_PERMISSION, [(stun.XOR_PEER_ADDRESS, PEER)]),
                (Method.CHANNEL_BIND, [(stun.CHANNEL_NUMBER, 0x4000), (stun.XOR_PEER_ADDRESS, PEER)]),
            )
        ]

    def test_strangers(self) -> None:
        """Damaged and random datagrams from many sources: no exception, no allocation, no port, a bounded table."""
        world = World()
        source = random.Random(3478)
        model = world.client()
        model.challenge()
        seeds = [*SEEDS, *self.signed(model), channeldata.pack(0x4000, b"payload")]
        for number in range(COUNT // BURST):
            client = world.client(port=source.randrange(0x10000), ip=f"10.{number >> 8}.{number & 255}.1")
            burst = [
                source.randbytes(source.randrange(64))
                if source.random() < 0.3
                else damaged(source, seeds[at % len(seeds)])
                for at in range(BURST)
            ]
            answers = client.give(*burst)
            self.assertLessEqual(len(answers), BURST)
            for answer in answers:
                self.assertIn(stun.parse(answer).cls, (Class.SUCCESS, Class.ERROR))
        self.assertEqual(len(world.server), 0)
        self.assertEqual(world.opened, {})
        self.assertLessEqual(len(world.server._strangers), MAX_SOURCES)
        self.assertEqual(code(world.client(port=1).allocate()), 0)

    def test_on_an_allocation(self) -> None:
        """The same from a client with an allocation: it stands, and only its own peer hears anything."""
        world = World(allocations_per_user=0)
        source = random.Random(5349)
        client = world.client(user="ann")
        client.allocate()
        client.bind(0x4000, PEER)
        seeds = [*SEEDS, *self.signed(client), channeldata.pack(0x4000, b"payload")]
        ended = 0
        for _ in range(COUNT // BURST):
            client.give(*(damaged(source, source.choice(seeds)) for _ in range(BURST)))
            if not len(world.server):
                ended += 1  # a Refresh that was damaged behind its signature is still the client's own
                client.allocate(transaction_id=source.randbytes(12))
        self.assertLess(ended, COUNT // 100)
        for link, _ in world.opened.values():
            self.assertEqual({to[0] for _, to in link.sent} - {PEER[0]}, set())
        self.assertEqual(len(world.server), 1)
        self.assertEqual(code(client.refresh()), 0)
