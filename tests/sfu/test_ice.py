"""The ICE-lite agent and the media port, without a socket."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from orama.net.burst import BurstSocket
from orama.net.fabric import Address, AddressInUse, Buffer, Burst, Fabric, Receiver
from orama.net.poll import Poll
from orama.sfu.ice import DEAD, ICE_CHARS, MAX_SOURCES, IceAgent, IceCounters, MediaPort, RelayOnly
from orama.wire import stun

MEDIA: Address = ("10.0.0.1", 20000)
#: A relay of our own TURN server, in the namespace's block.
RELAY: Address = ("10.0.0.1", 50000)
OTHER_RELAY: Address = ("10.0.0.1", 50001)
#: A relay of another process.
FAR: Address = ("10.0.0.2", 50000)
RULE = RelayOnly(("10.0.0.1", 50000, 50799), (("10.0.0.2", 49152, 65535), ("10.0.0.4", 51000, 51799)))
TRANSACTION = bytes(range(12))

RTP = bytes([0x80, 96]) + bytes(30)
RTCP = bytes([0x81, 205]) + bytes(30)
DTLS = bytes([22]) + bytes(30)


class MemorySocket:
    """Keeps what is sent; the test feeds ``received``."""

    def __init__(self, address: Address = MEDIA) -> None:
        self.address = address
        self.received: Receiver = lambda packets, source: None
        self.sent: list[tuple[list[bytes], Address]] = []
        self.closed = False

    def send(self, packets: Burst, to: Address) -> None:
        self.sent.append(([bytes(packet) for packet in packets], to))

    def close(self) -> None:
        self.closed = True


def check(
    agent: IceAgent,
    *,
    ufrag: str | None = None,
    username: str | None = None,
    pwd: str | None = None,
    nominate: bool = False,
    priority: int | None = 1000,
    fingerprint: bool = True,
    extra: Sequence[tuple[stun.Attribute[Any], Any]] = (),
    method: int = stun.Method.BINDING,
    cls: stun.Class = stun.Class.REQUEST,
) -> bytes:
    """A connectivity check as a controlling client sends it."""
    name = f"{ufrag or agent.local_ufrag}:them" if username is None else username
    attributes: list[tuple[stun.Attribute[Any], Any]] = [(stun.USERNAME, name), (stun.ICE_CONTROLLING, 7)]
    if priority is not None:
        attributes.append((stun.PRIORITY, priority))
    if nominate:
        attributes.append((stun.USE_CANDIDATE, True))
    attributes.extend(extra)
    key = (agent.local_pwd if pwd is None else pwd).encode()
    return stun.build(method, cls, TRANSACTION, attributes, key=key, fingerprint=fingerprint)


class Listener:
    """What a peer sets on its agent."""

    def __init__(self, agent: IceAgent) -> None:
        self.media: list[list[bytes]] = []
        self.dtls: list[bytes] = []
        self.selections: list[Address | None] = []
        agent.on_media = lambda packets: self.media.append([bytes(packet) for packet in packets])
        agent.on_dtls = self.dtls.append
        agent.on_selected = lambda: self.selections.append(agent.selected)


class PortCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.fabric = Fabric(self.clock)
        self.socket = MemorySocket()
        self.random = random.Random(1)
        self.port = MediaPort("default", self.fabric, self.socket, RULE)
        self.agent = IceAgent(self.clock, self.random)
        self.port.add(self.agent)
        self.seen = Listener(self.agent)
        #: What relays of this process got, by relay address.
        self.relayed: dict[Address, list[bytes]] = {}
        for relay in (RELAY, OTHER_RELAY):
            self.attach_relay(relay)

    def attach_relay(self, relay: Address) -> None:
        kept = self.relayed[relay] = []

        def receive(packets: Burst, source: Address) -> None:
            self.assertEqual(source, MEDIA)
            kept.extend(bytes(packet) for packet in packets)

        self.fabric.attach(relay, receive)

    def through_fabric(self, *packets: Buffer, source: Address = RELAY) -> None:
        self.assertTrue(self.fabric.deliver(list(packets), source, MEDIA))

    def through_kernel(self, *packets: Buffer, source: Address = FAR) -> None:
        self.socket.received(list(packets), source)

    def dropped(self) -> dict[str, int]:
        return dict(self.port.counters.dropped)


class CheckTests(PortCase):
    """RFC 8445, 7.3: what is answered, and how."""

    def test_answer(self) -> None:
        """A right check is answered with the mapped address, integrity by our password, and a fingerprint."""
        self.through_fabric(check(self.agent))
        (answer,) = self.relayed[RELAY]
        message = stun.parse(answer)
        self.assertEqual((message.method, message.cls), (stun.Method.BINDING, stun.Class.SUCCESS))
        self.assertEqual(message.transaction_id, TRANSACTION)
        self.assertEqual(message.get(stun.XOR_MAPPED_ADDRESS), RELAY)
        self.assertTrue(message.verify(self.agent.local_pwd.encode()))
        self.assertIn(stun.FINGERPRINT, message)
        self.assertEqual(self.port.counters.checks, 1)
        self.assertEqual(self.socket.sent, [])

    def test_answer_through_the_kernel(self) -> None:
        """A check from another process's relay is answered over the socket it came by."""
        self.through_kernel(check(self.agent))
        ((packets, to),) = self.socket.sent
        self.assertEqual(to, FAR)
        self.assertEqual(stun.parse(packets[0]).get(stun.XOR_MAPPED_ADDRESS), FAR)

    def test_bad_checks(self) -> None:
        """A check with anything wrong about who it is gets no answer, leaves nothing behind, and is counted."""
        good = check(self.agent)
        bent = bytearray(good)
        bent[30] ^= 1
        stranger = IceAgent(self.clock, self.random)
        cases = {
            "bad_stun": [good[:19], good[:-1], bytes(bent), b"\x00", b"\x01" * 600],
            "unknown_ufrag": [
                check(stranger),
                check(self.agent, username=self.agent.local_ufrag),
                check(self.agent, username=""),
                check(self.agent, username=f"them:{self.agent.local_ufrag}"),
            ],
            "bad_integrity": [
                check(self.agent, pwd="x" * 24),
                check(self.agent, pwd=""),
                check(self.agent, fingerprint=False),
                stun.build(
                    stun.Method.BINDING,
                    stun.Class.REQUEST,
                    TRANSACTION,
                    [(stun.USERNAME, f"{self.agent.local_ufrag}:them"), (stun.PRIORITY, 1)],
                    fingerprint=True,
                ),
            ],
            "not_a_check": [
                check(self.agent, cls=stun.Class.INDICATION),
                check(self.agent, cls=stun.Class.SUCCESS),
                check(self.agent, method=stun.Method.ALLOCATE),
            ],
        }
        for reason, packets in cases.items():
            for packet in packets:
                before = self.dropped().get(reason, 0)
                self.through_fabric(packet)
                self.through_kernel(packet)
                self.assertEqual(self.dropped().get(reason, 0), before + 2, (reason, packet))
        self.assertEqual(self.relayed[RELAY], [])
        self.assertEqual(self.socket.sent, [])
        self.assertIsNone(self.agent.selected)
        self.through_fabric(RTP, DTLS)
        self.assertEqual((self.seen.media, self.seen.dtls), ([], []))
        self.assertEqual(self.dropped()["unknown_source"], 2)

    def test_errors_for_the_authenticated(self) -> None:
        """Who knows the password gets the RFC's error codes: 420, 400, and 487 for the wrong role."""
        unknown = stun.Attribute(0x7777, "UNKNOWN", stun.PRIORITY.format)
        for packet, code in (
            (check(self.agent, extra=[(unknown, 1)]), 420),
            (check(self.agent, priority=None), 400),
            (check(self.agent, extra=[(stun.ICE_CONTROLLED, 1)]), 487),
        ):
            self.through_fabric(packet)
            message = stun.parse(self.relayed[RELAY].pop())
            error = message.get(stun.ERROR_CODE)
            assert error is not None
            self.assertEqual((message.cls, error[0]), (stun.Class.ERROR, code))
            self.assertTrue(message.verify(self.agent.local_pwd.encode()))
            if code == 420:
                self.assertEqual(tuple(message.get(stun.UNKNOWN_ATTRIBUTES) or ()), (0x7777,))
        self.assertIsNone(self.agent.selected)

    def test_liveness(self) -> None:
        """The time of the last right check is kept; wrong ones and media do not count."""
        self.assertEqual(self.agent.last_check, 1000)
        self.clock.advance(5)
        self.through_fabric(check(self.agent))
        self.assertEqual(self.agent.last_check, 1005)
        self.clock.advance(5)
        self.through_fabric(check(self.agent, pwd="wrong"), RTP)
        self.assertEqual(self.agent.last_check, 1005)


class RelayTests(PortCase):
    """Nobody reaches the SFU beside a relay."""

    def test_rule(self) -> None:
        """Own relays count through the fabric, other processes' through the kernel, nothing else does."""
        for source, fabric, kernel in (
            (RELAY, True, False),
            (("10.0.0.1", 50799), True, False),
            (("10.0.0.1", 50800), False, False),
            (("10.0.0.1", 49999), False, False),
            (FAR, False, True),
            (("10.0.0.2", 40000), False, False),
            (("10.0.0.3", 50000), False, False),
            (("10.0.0.4", 51799), False, True),
            (("10.0.0.4", 51800), False, False),
            (("10.0.0.4", 50000), False, False),
            (("127.0.0.1", 50000), False, False),
            (("::ffff:10.0.0.1", 50000), False, False),
        ):
            self.assertEqual((RULE(source, True), RULE(source, False)), (fabric, kernel), source)

    def test_not_looked_at(self) -> None:
        """From an address outside the rule even a right check gets no answer, by either way."""
        for source in (("192.0.2.1", 50000), ("10.0.0.1", 40000), RELAY):
            self.through_kernel(check(self.agent, nominate=True), RTP, DTLS, source=source)
        for source in (("10.0.0.1", 60000), FAR):
            self.through_fabric(check(self.agent, nominate=True), RTP, DTLS, source=source)
        self.assertEqual(self.dropped(), {"not_a_relay": 15})
        self.assertEqual(self.socket.sent, [])
        self.assertIsNone(self.agent.selected)

    def test_forged_source(self) -> None:
        """What comes through the kernel with a source that was proved through the fabric is not that client's."""
        self.through_fabric(check(self.agent, nominate=True))
        self.through_kernel(RTP, DTLS, source=RELAY)
        self.assertEqual((self.seen.media, self.seen.dtls), ([], []))
        self.assertEqual(self.dropped(), {"not_a_relay": 2})

    def test_never_beside(self) -> None:
        """When the relay is gone from the fabric, packets for it are lost, not sent through the kernel."""
        self.through_fabric(check(self.agent, nominate=True))
        self.relayed[RELAY].clear()
        self.fabric.detach(RELAY)
        self.agent.send([RTP, RTP])
        self.assertEqual(self.socket.sent, [])
        self.assertEqual(self.dropped(), {"relay_gone": 2})


class SelectionTests(PortCase):
    """Which address is used for what we send."""

    def test_before_nomination(self) -> None:
        """Until one is nominated the last address whose check was right is used: DTLS comes before nomination."""
        self.through_fabric(check(self.agent))
        self.assertEqual(self.agent.selected, RELAY)
        self.through_fabric(check(self.agent), source=OTHER_RELAY)
        self.assertEqual(self.agent.selected, OTHER_RELAY)
        self.assertFalse(self.agent.nominated)
        self.assertEqual(self.seen.selections, [RELAY, OTHER_RELAY])
        self.agent.send([RTP])
        self.assertEqual(self.relayed[OTHER_RELAY][-1], RTP)

    def test_nomination(self) -> None:
        """A nominated address stays while others are merely checked, and yields to another nomination."""
        self.through_fabric(check(self.agent, nominate=True))
        self.through_fabric(check(self.agent), source=OTHER_RELAY)
        self.assertEqual(self.agent.selected, RELAY)
        self.assertTrue(self.agent.nominated)
        self.through_kernel(check(self.agent, nominate=True))
        self.assertEqual(self.agent.selected, FAR)
        self.agent.send([RTP])
        self.assertEqual(self.socket.sent[-1], ([RTP], FAR))
        self.assertEqual(self.port.counters.nominations, 2)

    def test_aggressive_nomination(self) -> None:
        """Of several nominated in turn the highest priority is used; when it falls silent, the other."""
        for _ in range(5):
            self.through_fabric(check(self.agent, nominate=True, priority=2000))
            self.through_fabric(check(self.agent, nominate=True, priority=1000), source=OTHER_RELAY)
            self.clock.advance(1)
        self.assertEqual(self.seen.selections, [RELAY])
        self.clock.advance(3)
        self.through_fabric(check(self.agent, nominate=True, priority=1000), source=OTHER_RELAY)
        self.assertEqual(self.agent.selected, OTHER_RELAY)

    def test_nothing_selected(self) -> None:
        """Without an address packets are lost and counted; without a port nothing happens."""
        self.agent.send([RTP])
        self.assertEqual(self.dropped(), {"no_address": 1})
        IceAgent(self.clock, self.random).send([RTP])

    def test_address_used_again(self) -> None:
        """A right check of another client takes a source over: packets from and to it are that client's."""
        other = IceAgent(self.clock, self.random)
        self.port.add(other)
        heard = Listener(other)
        self.through_fabric(check(self.agent, nominate=True))
        self.through_fabric(RTP)
        self.through_fabric(check(other), RTP, RTCP)
        self.assertEqual(self.seen.media, [[RTP]])
        self.assertEqual(heard.media, [[RTP, RTCP]])
        self.assertIsNone(self.agent.selected)
        self.assertEqual(other.selected, RELAY)

    def test_many_addresses(self) -> None:
        """A client keeps a bounded number of addresses; the one in use is never the one that goes."""
        self.through_fabric(check(self.agent, nominate=True))
        for i in range(3 * MAX_SOURCES):
            self.clock.advance(1)
            self.through_fabric(check(self.agent), source=("10.0.0.1", 50010 + i))
        self.assertEqual(len(self.agent.addresses()), MAX_SOURCES)
        self.assertEqual(self.agent.selected, RELAY)
        self.through_fabric(RTP)
        self.through_fabric(RTP, source=("10.0.0.1", 50010))
        self.assertEqual(self.seen.media, [[RTP]])
        self.assertEqual(self.dropped()["unknown_source"], 1)


class SortTests(PortCase):
    """RFC 7983: packets by their first byte."""

    def setUp(self) -> None:
        super().setUp()
        self.through_fabric(check(self.agent, nominate=True))

    def test_media_only(self) -> None:
        """A burst of media is handed on as it is: the same object, no copy."""
        handed: list[Burst] = []
        self.agent.on_media = handed.append
        burst = [memoryview(RTP), memoryview(RTCP)]
        self.fabric.deliver(burst, RELAY, MEDIA)
        self.assertIs(handed[0], burst)

    def test_mixed(self) -> None:
        """DTLS, media, checks and rubbish in one burst reach each its own, in order."""
        self.relayed[RELAY].clear()
        self.through_fabric(RTP, DTLS, RTCP, check(self.agent), RTP, b"", b"\x40" * 20, b"\xc0", DTLS)
        self.assertEqual(self.seen.media, [[RTP, RTCP], [RTP]])
        self.assertEqual(self.seen.dtls, [DTLS, DTLS])
        self.assertEqual(len(self.relayed[RELAY]), 1)
        self.assertEqual(self.dropped(), {"unknown_protocol": 3})

    def test_views_are_copied_for_dtls(self) -> None:
        """DTLS gets bytes of its own, which may wait."""
        buffer = bytearray(DTLS)
        self.through_fabric(memoryview(buffer))
        buffer[:] = bytes(len(buffer))
        self.assertEqual(self.seen.dtls, [DTLS])

    def test_leaves_within_a_burst(self) -> None:
        """A client that is removed while its burst is read gets nothing more of it."""
        self.agent.on_dtls = lambda datagram: self.port.remove(self.agent)
        self.through_fabric(DTLS, RTP, DTLS)
        self.assertEqual(self.seen.media, [])


class RestartTests(PortCase):
    """RFC 8445, 9."""

    def test_credentials(self) -> None:
        """Credentials are of ICE's characters and long enough, and no two agents share a ufrag."""
        self.assertGreaterEqual(len(self.agent.local_ufrag), 4)
        self.assertGreaterEqual(len(self.agent.local_pwd), 22)
        self.assertLessEqual(set(self.agent.local_ufrag + self.agent.local_pwd), set(ICE_CHARS))
        twin = IceAgent(self.clock, random.Random(1))
        self.assertEqual(twin.local_ufrag, self.agent.local_ufrag)
        self.port.add(twin)
        self.assertNotEqual(twin.local_ufrag, self.agent.local_ufrag)

    def test_restart(self) -> None:
        """New and old credentials both count for ten seconds, then only the new; the address in use stays."""
        self.through_fabric(check(self.agent, nominate=True))
        old, pwd = self.agent.local_ufrag, self.agent.local_pwd
        self.agent.restart()
        self.assertNotEqual((self.agent.local_ufrag, self.agent.local_pwd), (old, pwd))
        self.assertEqual(self.agent.selected, RELAY)
        self.clock.advance(9)
        self.relayed[RELAY].clear()
        self.through_fabric(check(self.agent, ufrag=old, pwd=pwd))
        self.assertTrue(stun.parse(self.relayed[RELAY].pop()).verify(pwd.encode()))
        self.through_fabric(check(self.agent, ufrag=old))
        self.assertEqual(self.dropped(), {"bad_integrity": 1})
        self.through_fabric(check(self.agent), source=OTHER_RELAY)
        self.assertEqual(self.agent.selected, RELAY)
        self.through_fabric(check(self.agent, nominate=True), source=OTHER_RELAY)
        self.assertEqual(self.agent.selected, OTHER_RELAY)
        self.clock.advance(2)
        self.through_fabric(check(self.agent, ufrag=old, pwd=pwd))
        self.assertEqual(self.relayed[RELAY], [])
        self.assertEqual(self.dropped(), {"bad_integrity": 1, "unknown_ufrag": 1})

    def test_reverted(self) -> None:
        """A restart that the client has not heard of is undone, however long ago it was; both pairs count for now."""
        for seconds in (1, 30):
            before = (self.agent.local_ufrag, self.agent.local_pwd)
            self.agent.restart()
            given = (self.agent.local_ufrag, self.agent.local_pwd)
            self.clock.advance(seconds)
            if seconds > 10:
                self.through_fabric(check(self.agent, ufrag=before[0], pwd=before[1]))
                self.assertEqual(self.dropped(), {"unknown_ufrag": 1})
            self.agent.revert()
            self.assertEqual((self.agent.local_ufrag, self.agent.local_pwd), before)
            self.relayed[RELAY].clear()
            for ufrag, pwd in (before, given):
                self.through_fabric(check(self.agent, ufrag=ufrag, pwd=pwd))
            self.assertEqual(len(self.relayed[RELAY]), 2)
            self.assertEqual(set(self.port._ufrags), {before[0], given[0]})
        self.agent.revert()
        self.assertEqual(self.agent.local_ufrag, before[0])

    def test_network_change(self) -> None:
        """Through a restart the old address is used until a new one is nominated, and both are heard all along."""
        self.through_fabric(check(self.agent, nominate=True))
        self.agent.restart()
        for _ in range(3):
            self.clock.advance(1)
            self.through_fabric(check(self.agent))
            self.through_fabric(check(self.agent), RTP, source=OTHER_RELAY)
            self.through_fabric(RTP)
            self.agent.send([RTCP])
            self.assertEqual((self.relayed[RELAY].pop(), self.seen.media), (RTCP, [[RTP], [RTP]]))
            self.seen.media.clear()
        self.through_fabric(check(self.agent, nominate=True, priority=1), source=OTHER_RELAY)
        self.assertEqual(self.seen.selections, [RELAY, OTHER_RELAY])

    def test_dead_address(self) -> None:
        """After a restart an address that is not checked any more is left at the first check from another."""
        self.through_fabric(check(self.agent, nominate=True))
        self.agent.restart()
        self.clock.advance(DEAD + 0.1)
        self.through_fabric(check(self.agent), source=OTHER_RELAY)
        self.assertEqual(self.agent.selected, OTHER_RELAY)

    def test_many_restarts(self) -> None:
        """However often a client restarts, two pairs of credentials are known at most."""
        first = self.agent.local_ufrag
        pwd = self.agent.local_pwd
        for _ in range(50):
            self.agent.restart()
        self.through_fabric(check(self.agent, ufrag=first, pwd=pwd))
        self.assertEqual(self.dropped(), {"unknown_ufrag": 1})
        self.assertEqual(len(self.agent.ufrags()), 2)
        self.assertEqual(set(self.port._ufrags), set(self.agent.ufrags()))

    def test_removal(self) -> None:
        """Of a removed client nothing is left: its checks are unknown, and so are its addresses."""
        self.agent.restart()
        self.through_fabric(check(self.agent, nominate=True))
        packet = check(self.agent)
        self.port.remove(self.agent)
        self.port.remove(self.agent)
        self.assertIsNone(self.agent.selected)
        self.through_fabric(packet, RTP)
        self.assertEqual(self.dropped(), {"unknown_ufrag": 1, "unknown_source": 1})
        self.assertEqual(self.seen.media, [])

    def test_close(self) -> None:
        """A closed port has given its address back, here and in the fabric."""
        self.port.close()
        self.assertTrue(self.socket.closed)
        self.assertFalse(self.fabric.has(MEDIA))
        self.assertIsNone(self.agent.selected)

    def test_address_in_use(self) -> None:
        """Two ports cannot have one address of the fabric."""
        self.assertRaises(AddressInUse, MediaPort, "other", self.fabric, MemorySocket(), RULE)


class ListenTests(TestCase):
    """The port over a real socket."""

    timeout = 20

    async def test_listen(self) -> None:
        """The first free port of the block is taken, and a check over the kernel is answered."""
        fabric = Fabric(reactor)
        client_got: Deferred[bytes] = Deferred()
        client = BurstSocket(Poll(reactor, fabric), lambda packets, source: client_got.callback(bytes(packets[0])))
        client.listen(("127.0.0.1", 0))
        self.addCleanup(client.close)
        taken = BurstSocket(Poll(reactor, fabric), lambda packets, source: None)
        taken.listen(("127.0.0.1", 13510))
        self.addCleanup(taken.close)
        rule = RelayOnly(None, (("127.0.0.1", 1, 65535),))
        counters = IceCounters()
        port = MediaPort.listen(Poll(reactor, fabric), "default", "127.0.0.1", range(13510, 13520), rule, counters)
        self.addCleanup(port.close)
        self.assertEqual(port.address, ("127.0.0.1", 13511))
        agent = IceAgent(reactor, random.SystemRandom())
        port.add(agent)
        client.send([check(agent)], port.address)
        self.assertEqual(stun.parse(await client_got).get(stun.XOR_MAPPED_ADDRESS), client.address)
        self.assertEqual(counters.checks, 1)

    def test_no_port_left(self) -> None:
        """A block without a free port, and an empty one, raise CannotListenError."""
        fabric = Fabric(reactor)
        taken = BurstSocket(Poll(reactor, fabric), lambda packets, source: None)
        taken.listen(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        for ports in ([taken.address[1]], []):
            with self.assertRaises(CannotListenError):
                MediaPort.listen(Poll(reactor, fabric), "default", "127.0.0.1", ports, RULE)
