"""What the TURN server keeps in memory: little for an allocation, nothing for strangers or for those who left."""

from __future__ import annotations

import gc
import sys
import tracemalloc

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from orama.wire import stun
from orama.wire.stun import Class, Method
from tests.fuzz.outgoing import kept
from tests.turn.world import MYAPP, REALM, SFU, Client, World, code

#: Bytes that one allocation may take, with a permission and a channel.
PER_ALLOCATION = 8192
ALLOCATIONS = 1000
STRANGERS = 20_000
TURNOVER = 20_000
#: Bytes and objects that may come and go for other reasons: caches of fixed size, free lists of Python.
SLACK = 64 * 1024
SLACK_OBJECTS = 500


def world() -> World:
    """One without limits, with room for many, whose SFU is in the same process."""
    made = World(allocations_per_user=0, allocations_per_namespace=0, unauthenticated_rate=100)
    made.tenants.put(evolve(MYAPP, relay_ports=(50000, 50000 + 2 * ALLOCATIONS), allowed_peers=()))
    made.tenants.remove("other")
    made.sfu()
    return made


def traced() -> int:
    """Bytes that are allocated, and traced."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


class MemoryTests(SynchronousTestCase):
    def tracing(self) -> None:
        """Trace from here to the end of the test."""
        if not tracemalloc.is_tracing():
            tracemalloc.start()
            self.addCleanup(tracemalloc.stop)

    def test_per_allocation(self) -> None:
        """A thousand allocations, each with a permission and a channel, take 8 KiB each at the most."""
        there = world()
        clients = [
            there.client(port=1024 + number, ip=f"203.0.113.{number % 64}", user=f"user{number}")
            for number in range(ALLOCATIONS + 1)
        ]
        for client in clients:
            client.challenge()

        def begin(client: Client) -> None:
            self.assertEqual(code(client.allocate()), 0)
            self.assertEqual(code(client.permit(SFU)), 0)
            self.assertEqual(code(client.bind(0x4000, SFU)), 0)
            client.data(0x4000, b"payload")
            client.relay = ("", 0)

        begin(clients[0])
        self.tracing()
        before = traced()
        for client in clients[1:]:
            begin(client)
        each = (traced() - before) / ALLOCATIONS
        self.assertEqual(len(there.server), ALLOCATIONS + 1)
        self.assertLessEqual(each, PER_ALLOCATION)
        self.assertGreater(each, 256, "it has to be measured at all")

    def test_strangers(self) -> None:
        """Twenty thousand sources that ask without credentials, or with wrong ones, leave nothing behind."""
        there = world()
        model = there.client()
        model.challenge()
        bare = stun.build(Method.ALLOCATE, Class.REQUEST, b"t" * 12, [(stun.REQUESTED_TRANSPORT, 17)])
        wrong = stun.build(
            Method.ALLOCATE,
            Class.REQUEST,
            b"t" * 12,
            [
                *((stun.REQUESTED_TRANSPORT, 17), (stun.USERNAME, model.credentials.username)),
                *((stun.REALM, REALM), (stun.NONCE, model.nonce)),
            ],
            key=b"wrong",
        )

        def visit(first: int, count: int) -> None:
            for number in range(first, first + count):
                address = (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1024 + number)
                there.server.received(model.link, [bare, wrong], address)
                model.link.sent.clear()

        visit(0, 2000)
        self.tracing()
        before = traced()
        visit(2000, STRANGERS)
        self.assertLess(traced() - before, SLACK)
        self.assertGreater(there.server.unauthenticated, STRANGERS)

    def test_turnover(self) -> None:
        """After twenty thousand allocations that came and went there is as much as after a few of them."""
        there = world()
        clients = [there.client(port=1024 + number, user=f"user{number}") for number in range(10)]

        def turn(count: int) -> None:
            for number in range(count):
                client = clients[number % len(clients)]
                if code(client.allocate()) or code(client.refresh((stun.LIFETIME, 0))):
                    self.fail(f"turn {number} was refused")

        turn(200)
        there.server.tick()
        gc.collect()
        things, before = kept(there.server), sys.getallocatedblocks()
        turn(TURNOVER)
        there.server.tick()
        gc.collect()
        self.assertEqual(len(there.server), 0)
        self.assertLess(sys.getallocatedblocks() - before, SLACK_OBJECTS)
        self.assertEqual(kept(there.server), things)
