"""What passes a relay, and what does not: permissions, channels, sizes and times."""

from __future__ import annotations

import os
import random
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from twisted.trial.unittest import SynchronousTestCase

from orama.wire import stun
from tests.attacks.stage import AttackTestCase, opened
from tests.contract import turn
from tests.node import NodeProcess
from tests.turn.world import PEER, World


class DataTests(AttackTestCase):
    def attacked(self) -> NodeProcess:
        return opened()

    def test_peer_without_permission(self) -> None:
        """RFC 8656, 11.3: what a peer sends that has no permission is dropped, before and after others have one."""
        client, peer, friend = self.allocated(), self.bound("127.0.0.1"), self.bound("127.0.0.9")
        peer.sendto(b"x", self.relayed)
        self.assertEqual(client.permit("127.0.0.9"), 0)
        peer.sendto(b"x", self.relayed)
        friend.sendto(b"friend", self.relayed)
        self.assertEqual(client.relayed(), b"friend")
        self.silent(client)

    def test_other_port_of_a_permitted_peer(self) -> None:
        """RFC 8656, 9 and 12.7: a permission is for an address; what has no channel comes in a Data indication."""
        client, bound, other = self.allocated(), self.bound("127.0.0.1"), self.bound("127.0.0.1")
        self.assertEqual(client.bind(bound.getsockname()), 0)
        bound.sendto(b"by channel", self.relayed)
        raw = client.receive()
        assert raw is not None
        self.assertEqual(raw, struct.pack("!HH", 0x4000, 10) + b"by channel")
        other.sendto(b"in a message", self.relayed)
        raw = client.receive()
        assert raw is not None
        message = turn.parse(raw)
        self.assertEqual(message.kind, turn.DATA | turn.INDICATION)
        self.assertEqual(message.address(turn.XOR_PEER_ADDRESS), other.getsockname())

    def test_send_without_permission(self) -> None:
        """RFC 8656, 11.2: Send to a peer without a permission is dropped, and gets none by being sent."""
        client, peer = self.allocated(), self.bound("127.0.0.1")
        client.indicate(peer.getsockname(), b"x")
        peer.sendto(b"x", self.relayed)
        self.silent(client)
        peer.settimeout(turn.SILENCE)
        with self.assertRaises(TimeoutError):
            peer.recv(100)

    def test_channel_of_nobody(self) -> None:
        """RFC 8656, 12.6: ChannelData on a channel that was not bound is dropped, also where another one was."""
        client, peer = self.allocated(), self.bound("127.0.0.1")
        self.assertEqual(client.bind(peer.getsockname(), 0x4001), 0)
        for number in (0x4000, 0x4002, 0x4FFF, 0x5000, 0x7FFF):
            client.channel_data(b"x", number)
        client.channel_data(b"mine", 0x4001)
        self.assertEqual(peer.recv(100), b"mine")

    def test_channel_data_that_says_more_than_it_has(self) -> None:
        """RFC 8656, 12.6: ChannelData whose length goes beyond the datagram is dropped; nothing else is read for it."""
        client, peer = self.allocated(), self.bound("127.0.0.1")
        self.assertEqual(client.bind(peer.getsockname()), 0)
        for length in (5, 8, 1000, 0xFFFF):
            client.send(struct.pack("!HH", 0x4000, length) + b"data")
        client.send(b"\x40\0\0")
        client.channel_data(b"whole")
        self.assertEqual(peer.recv(100), b"whole")

    def test_channel_of_another_client(self) -> None:
        """RFC 8656, 12: a channel belongs to a five-tuple: the same number from elsewhere goes nowhere."""
        client, peer = self.allocated(), self.bound("127.0.0.1")
        self.assertEqual(client.bind(peer.getsockname()), 0)
        mine = self.relayed
        thief = self.allocated()
        thief.channel_data(b"stolen")
        stranger = self.client()
        stranger.channel_data(b"stolen")
        client.channel_data(b"mine")
        self.assertEqual(peer.recvfrom(100), (b"mine", mine))

    def test_sizes(self) -> None:
        """Datagrams from nothing to the longest, both ways, by Send and by channel: whole or not at all."""
        client, peer = self.allocated(), self.bound("127.0.0.1")
        self.assertEqual(client.permit("127.0.0.1"), 0)
        sizes = (0, 1, 3, 1200, 1472, 1500, 9000, 65000, 65507)
        for by_channel in (False, True):
            if by_channel:
                self.assertEqual(client.bind(peer.getsockname()), 0)
            for size in sizes:
                data = os.urandom(size)
                try:
                    client.channel_data(data) if by_channel else client.indicate(peer.getsockname(), data)
                except OSError:  # the header is on top of it
                    self.assertGreater(size, 65000)
                else:
                    self.assertEqual(peer.recv(65535), data)
                peer.sendto(data, self.relayed)
                if size <= 65000:
                    self.assertEqual(client.relayed(), data)
                else:
                    self.silent(client)

    def test_nothing_after_the_end(self) -> None:
        """RFC 8656, 8.2: when an allocation is gone so is its relay, and its channels are nobody's."""
        client, peer = self.allocated(), self.bound("127.0.0.1")
        self.assertEqual(client.bind(peer.getsockname()), 0)
        self.assertEqual(client.code(turn.REFRESH, (turn.LIFETIME, bytes(4))), 0)
        peer.sendto(b"late", self.relayed)
        client.channel_data(b"late")
        self.silent(client)
        again = client.allocate()
        self.assertEqual(again.code, 0)
        self.relayed = again.address(turn.XOR_RELAYED_ADDRESS)
        client.channel_data(b"late")
        peer.sendto(b"late", self.relayed)
        self.silent(client)
        peer.settimeout(turn.SILENCE)
        with self.assertRaises(TimeoutError):
            peer.recv(100)

    def test_answers_of_a_peer_are_data(self) -> None:
        """A peer that speaks STUN to a relay speaks to the client: it gets no answer, and changes nothing."""
        client, peer = self.allocated(), self.bound("127.0.0.1")
        self.assertEqual(client.permit("127.0.0.1"), 0)
        for raw in (
            turn.build(turn.BINDING),
            client.signed(turn.REFRESH, [(turn.LIFETIME, bytes(4))]),
            struct.pack("!HH", 0x4000, 4) + b"data",
        ):
            peer.sendto(raw, self.relayed)
            self.assertEqual(client.relayed(), raw)
        peer.settimeout(turn.SILENCE)
        with self.assertRaises(TimeoutError):
            peer.recv(100)
        self.assertEqual(client.code(turn.REFRESH), 0)

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Let what is sent meanwhile wait at the node, so that it is read at once."""
        self.node.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.node.signal(signal.SIGCONT)

    def test_clients_that_send_at_once(self) -> None:
        """What several clients sent in whatever order is read at once, and leaves by each one's own relay."""
        peer, clients, relays = self.bound("127.0.0.1"), [], []
        for _ in range(3):
            clients.append(self.allocated())
            relays.append(self.relayed)
            self.assertEqual(clients[-1].bind(peer.getsockname()), 0)
        order = random.Random(3).choices(range(3), k=150)
        with self.unwatched():
            for which in order:
                clients[which].channel_data(b"of %d" % which)
        for _ in order:
            payload, source = peer.recvfrom(100)
            self.assertEqual(payload, b"of %d" % relays.index(source))

    def test_peers_that_send_at_once(self) -> None:
        """What several peers sent in whatever order is read at once, and comes by each one's own channel."""
        client, peers = self.allocated(), [self.bound("127.0.0.1") for _ in range(3)]
        for number, peer in enumerate(peers):
            self.assertEqual(client.bind(peer.getsockname(), 0x4000 + number), 0)
        order = random.Random(4).choices(range(3), k=150)
        with self.unwatched():
            for which in order:
                peers[which].sendto(b"of %d" % which, self.relayed)
        for _ in order:
            raw = client.receive()
            assert raw is not None
            self.assertEqual(raw[4:], b"of %d" % raw[1])

    def test_a_relay_and_itself(self) -> None:
        """A loop of packets, relay to relay and relay to itself, is refused or stops where it began."""
        client = self.allocated()
        mine = self.relayed
        code = client.bind(mine)
        self.assertIn(code, (0, 403))
        other = self.allocated()
        self.assertIn(other.bind(mine), (0, 403))
        self.assertIn(client.bind(self.relayed, 0x4001), (0, 403))
        for _ in range(10):
            client.channel_data(b"x")
            client.channel_data(b"x", 0x4001)
            other.channel_data(b"x")
        received = 0
        client.socket.settimeout(turn.SILENCE)
        other.socket.settimeout(turn.SILENCE)
        for each in (client, other):
            try:
                while each.socket.recv(100):
                    received += 1
            except TimeoutError:
                pass
        self.assertLessEqual(received, 30)


class TimeTests(SynchronousTestCase):
    """What nobody can wait for, on a clock of the test's."""

    def setUp(self) -> None:
        self.world = World()
        self.client = self.world.client()
        self.client.allocate((stun.LIFETIME, 3600))
        self.addCleanup(self.world.server.stop)

    def passes(self) -> bool:
        """Whether what the peer sends reaches the client."""
        _, received = self.world.opened[self.client.relay]
        self.client.link.packets()
        received([b"down"], PEER)
        return bool(self.client.link.packets())

    def arrives(self, number: int) -> bool:
        """Whether what the client sends on a channel reaches the peer."""
        link, _ = self.world.opened[self.client.relay]
        link.packets()
        self.client.data(number, b"up")
        return bool(link.packets())

    def test_data_keeps_no_permission(self) -> None:
        """RFC 8656, 9: a permission is over 300 seconds after it was asked for, however much passed meanwhile."""
        self.client.permit(PEER)
        for _ in range(299):
            self.world.clock.advance(1)
            self.client.send(PEER, b"up")
            self.assertTrue(self.passes())
        self.world.clock.advance(1)
        self.assertFalse(self.passes())

    def test_data_keeps_no_channel(self) -> None:
        """RFC 8656, 12: a channel is over after 600 seconds, and its permission after 300, data or not."""
        self.client.bind(0x4000, PEER)
        for _ in range(299):
            self.world.clock.advance(1)
            self.assertTrue(self.arrives(0x4000))
        self.world.clock.advance(1)
        self.assertFalse(self.passes())
        self.client.permit(PEER)
        for _ in range(299):
            self.world.clock.advance(1)
            self.assertTrue(self.arrives(0x4000))
        self.world.clock.advance(1)
        self.assertFalse(self.arrives(0x4000))

    def test_data_keeps_no_allocation(self) -> None:
        """RFC 8656, 8: nor does an allocation live longer for being used; its port is free when it is over."""
        self.client.bind(0x4000, PEER)
        for _ in range(3599):
            self.world.clock.advance(1)
            self.client.data(0x4000, b"up")
        self.assertEqual(len(self.world.server), 1)
        self.world.clock.advance(1)
        self.world.server.tick()
        self.assertEqual(len(self.world.server), 0)
        self.assertTrue(self.world.opened[self.client.relay][0].closed)
