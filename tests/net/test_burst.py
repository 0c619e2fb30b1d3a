"""The burst socket over real loopback sockets, and over ones that refuse what the test says."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any
from unittest import skipUnless

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.trial.unittest import TestCase

from orama.net.burst import SOL_UDP, UDP_SEGMENT, BurstSocket
from orama.net.fabric import Address, Burst, Fabric
from orama.net.poll import Poll

LOOPBACK = ("127.0.0.1", 0)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


HAS_IPV6 = _has_ipv6()


class Sink:
    """Keeps copies of what a socket received, and fires when so many packets are here."""

    def __init__(self) -> None:
        self.bursts: list[list[bytes]] = []
        self.sources: list[Address] = []
        self._waiting: list[tuple[int, Deferred[list[bytes]]]] = []

    def __call__(self, packets: Burst, source: Address) -> None:
        self.bursts.append([bytes(packet) for packet in packets])
        self.sources.append(source)
        waiting, self._waiting = self._waiting, []
        for count, deferred in waiting:
            if len(self.packets) >= count:
                deferred.callback(self.packets)
            else:
                self._waiting.append((count, deferred))

    @property
    def packets(self) -> list[bytes]:
        return [packet for burst in self.bursts for packet in burst]

    def wait(self, count: int) -> Deferred[list[bytes]]:
        deferred: Deferred[list[bytes]] = Deferred()
        if len(self.packets) >= count:
            deferred.callback(self.packets)
        else:
            self._waiting.append((count, deferred))
        return deferred


class FaultySocket(socket.socket):
    """A real UDP socket on which some calls fail."""

    #: errno for every send with UDP_SEGMENT.
    segment_error = 0
    #: errnos for the next sends of any kind.
    send_errors: list[int]
    #: errnos for the next reads.
    read_errors: list[int]

    def __init__(self, family: int, kind: int) -> None:
        super().__init__(family, kind)
        self.send_errors = []
        self.read_errors = []

    def _refuse(self, errors: list[int]) -> None:
        if errors:
            raise OSError(errors.pop(0), "refused by the test")

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None) -> int:  # type: ignore[override]
        if self.segment_error and ancdata and ancdata[0][:2] == (SOL_UDP, UDP_SEGMENT):
            raise OSError(self.segment_error, "refused by the test")
        self._refuse(self.send_errors)
        return super().sendmsg(buffers, ancdata, flags, address)

    def sendto(self, data: Any, address: Any) -> int:  # type: ignore[override]
        self._refuse(self.send_errors)
        return super().sendto(data, address)

    def recvmsg_into(self, *arguments: Any) -> Any:
        self._refuse(self.read_errors)
        return super().recvmsg_into(*arguments)


class BurstTests(TestCase):
    """Bursts in, bursts out."""

    timeout = 120

    def setUp(self) -> None:
        self.fabric = Fabric(reactor)
        self.poll = Poll(reactor, self.fabric)

    def socket(
        self,
        received: Callable[[Burst, Address], None] = lambda packets, source: None,
        address: Address = LOOPBACK,
        **options: Any,
    ) -> BurstSocket:
        made = BurstSocket(self.poll, received, **options)
        made.listen(address)
        self.addCleanup(made.close)
        return made

    def faulty(self, **options: Any) -> tuple[BurstSocket, FaultySocket]:
        made: list[FaultySocket] = []

        def make(family: int, kind: int) -> socket.socket:
            made.append(FaultySocket(family, kind))
            return made[0]

        return self.socket(make_socket=make, **options), made[0]

    async def test_burst_arrives_whole(self) -> None:
        """A burst of equal sizes takes one send and arrives as one burst, in order, from the sender's address."""
        sink = Sink()
        receiver, sender = self.socket(sink), self.socket()
        packets = [bytes([i]) * 1200 for i in range(20)]
        sender.send(packets, receiver.address)
        await sink.wait(20)
        self.assertEqual(sink.bursts, [packets])
        self.assertEqual(sink.sources, [sender.address])
        self.assertEqual((sender.counters.sends_out, sender.counters.packets_out), (1, 20))
        self.assertEqual((receiver.counters.bursts_in, receiver.counters.packets_in), (1, 20))
        self.assertEqual((sender.counters.bytes_out, receiver.counters.bytes_in), (24000, 24000))

    async def test_mixed_sizes(self) -> None:
        """Packets of mixed sizes arrive in order, each as it was; a run ends with a shorter packet."""
        sink = Sink()
        receiver, sender = self.socket(sink), self.socket()
        sizes = [100, 100, 100, 40, 100, 1200, 1200, 7, 8, 8, 8, 1, 1400, 1400]
        packets = [bytes([i]) * size for i, size in enumerate(sizes)]
        sender.send(packets, receiver.address)
        self.assertEqual(await sink.wait(len(packets)), packets)
        # (100 100 100 40) (100) (1200 1200 7) (8 8 8 1) (1400 1400)
        self.assertEqual(sender.counters.sends_out, 5)

    async def test_same_bytes_with_and_without_offload(self) -> None:
        """What arrives does not depend on offload, on either side."""
        packets = [bytes([i % 251]) * (1200 if i % 7 else 300 + i) for i in range(150)]
        headers = [bytes([i % 256, 1, 2, 3]) for i in range(150)]
        expected = [h + p for h, p in zip(headers, packets, strict=True)]
        for sending in (True, False):
            for receiving in (True, False):
                sink = Sink()
                receiver, sender = self.socket(sink, offload=receiving), self.socket(offload=sending)
                sender.send(packets, receiver.address, headers)
                self.assertEqual(await sink.wait(150), expected, f"sending {sending}, receiving {receiving}")
                self.assertEqual(sender.offload, sending)
                if not sending:
                    self.assertEqual(sender.counters.sends_out, 150)

    async def test_long_runs_split(self) -> None:
        """A run over 64 segments or 65,000 bytes leaves in several sends and arrives complete."""
        for size, count, sends in ((100, 200, 4), (1400, 130, 3), (20000, 9, 3)):
            sink = Sink()
            receiver, sender = self.socket(sink), self.socket()
            packets = [i.to_bytes(2, "big") * (size // 2) for i in range(count)]
            sender.send(packets, receiver.address)
            self.assertEqual(await sink.wait(count), packets)
            self.assertEqual((sender.counters.sends_out, sender.counters.dropped), (sends, 0))

    async def test_slices_of_one_buffer(self) -> None:
        """Packets may be slices of a buffer that is used again as soon as send returns."""
        sink = Sink()
        receiver, sender = self.socket(sink), self.socket()
        buffer = bytearray(b"a" * 500 + b"b" * 500)
        view = memoryview(buffer)
        sender.send([view[:500], view[500:]], receiver.address)
        buffer[:] = bytes(1000)
        self.assertEqual(await sink.wait(2), [b"a" * 500, b"b" * 500])

    @skipUnless(HAS_IPV6, "no IPv6 here")
    async def test_ipv6(self) -> None:
        """Over IPv6 bursts arrive the same, and the source is canonical text and a port."""
        sink = Sink()
        receiver, sender = self.socket(sink, ("::1", 0)), self.socket(address=("::1", 0))
        packets = [b"x" * 1000] * 5
        sender.send(packets, receiver.address)
        await sink.wait(5)
        self.assertEqual(sink.bursts, [packets])
        self.assertEqual(sink.sources, [sender.address])
        self.assertEqual(sender.address[0], "::1")

    @skipUnless(HAS_IPV6, "no IPv6 here")
    async def test_ipv6_and_ipv4_side_by_side(self) -> None:
        """A socket on the IPv6 wildcard leaves the same port of IPv4 alone."""
        four = self.socket(address=("0.0.0.0", 0))
        six = self.socket(address=("::", four.address[1]))
        self.assertEqual(four.address[1], six.address[1])

    async def test_peer_is_gone(self) -> None:
        """Sending to a port that nobody has raises nothing, and the socket goes on receiving."""
        sink = Sink()
        gone, sender, other = self.socket(), self.socket(sink), self.socket()
        gone.close()
        for _ in range(5):
            sender.send([b"x" * 100] * 3, gone.address)
        other.send([b"still there"], sender.address)
        self.assertEqual(await sink.wait(1), [b"still there"])

    async def test_sources_that_alternate(self) -> None:
        """However the packets of sources alternate, each source's arrive complete, in order and as its own."""
        sink = Sink()
        receiver, senders = self.socket(sink), [self.socket(), self.socket(), self.socket()]
        sent: dict[Address, list[bytes]] = {sender.address: [] for sender in senders}
        for turn, index in enumerate([0, 0, 1, 0, 0, 2, 2, 1, 0, 1, 1, 1, 2, 0, 0]):
            packets = [bytes([index, turn, i]) * 2 for i in range(1 + turn % 3)]
            senders[index].send(packets, receiver.address)
            sent[senders[index].address] += packets
        await sink.wait(sum(map(len, sent.values())))
        got: dict[Address, list[bytes]] = {}
        for source, burst in zip(sink.sources, sink.bursts, strict=True):
            got.setdefault(source, []).extend(burst)
        self.assertEqual(got, sent)

    async def test_empty_datagrams(self) -> None:
        """An empty datagram is handed on like any other, an empty burst sends nothing."""
        sink = Sink()
        receiver, sender = self.socket(sink), self.socket()
        sender.send([], receiver.address)
        self.assertEqual(sender.counters.sends_out, 0)
        packets = [b"", b"", b"a", b"", b"b", b"b", b""]
        sender.send(packets, receiver.address)
        self.assertEqual(await sink.wait(7), packets)

    def test_busy_port(self) -> None:
        """A taken port, and an address that is not ours, raise CannotListenError."""
        first = self.socket()
        for address in (first.address, ("192.0.2.1", 0), ("2001:db8::1", 0)):
            second = BurstSocket(self.poll, lambda packets, source: None)
            self.assertRaises(CannotListenError, second.listen, address)
            self.assertEqual(second.fileno(), -1)

    def test_reuse_port(self) -> None:
        """With reuse_port two sockets share a port."""
        first = BurstSocket(self.poll, lambda packets, source: None)
        second = BurstSocket(self.poll, lambda packets, source: None)
        self.addCleanup(first.close)
        self.addCleanup(second.close)
        first.listen(LOOPBACK, reuse_port=True)
        second.listen(first.address, reuse_port=True)
        self.assertEqual(first.address, second.address)

    async def test_adopted(self) -> None:
        """A socket that somebody else has bound is read and written like one's own, offload included."""
        bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound.setblocking(False)
        bound.bind(LOOPBACK)
        sink, answers = Sink(), Sink()
        adopted = BurstSocket(self.poll, sink)
        adopted.adopt(bound)
        self.addCleanup(adopted.close)
        sender = self.socket(answers)
        self.assertEqual(adopted.offload, sender.offload)
        sender.send([bytes(100)] * 5, adopted.address)
        await sink.wait(5)
        adopted.send([b"x"], sink.sources[0])
        await answers.wait(1)
        self.assertEqual(answers.sources, [adopted.address])

    def test_close(self) -> None:
        """Closing twice is good; the port is free, the reactor has forgotten it, and sends are lost and counted."""
        first = self.socket()
        address = first.address
        first.close()
        first.close()
        self.assertNotIn(first, reactor.getReaders())  # type: ignore[attr-defined]
        self.assertEqual(first.address, address)
        first.send([b"x", b"y"], address)
        self.assertEqual(first.counters.dropped, 2)
        self.socket(address=address)

    async def test_close_while_reading(self) -> None:
        """A receiver may close its socket; nothing more is read from it."""
        seen: list[int] = []
        done: Deferred[None] = Deferred()

        def received(packets: Burst, source: Address) -> None:
            seen.append(len(packets))
            receiver.close()
            done.callback(None)

        receiver, sender, other = self.socket(received), self.socket(), self.socket()
        for source in (sender, other, other):
            source.send([b"x" * 10], receiver.address)
        await done
        self.assertEqual(seen, [1])

    async def test_receiver_that_fails(self) -> None:
        """An exception of the receiver is logged and costs one burst, not the port nor the burst of another source."""
        sink = Sink()

        def received(packets: Burst, source: Address) -> None:
            if packets[0] == b"bad":
                raise RuntimeError("by the test")
            sink(packets, source)

        receiver, sender, other = self.socket(received), self.socket(), self.socket()
        sender.send([b"bad"], receiver.address)
        other.send([b"good!"], receiver.address)
        self.assertEqual(await sink.wait(1), [b"good!"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_flush_at_the_end_of_a_drain(self) -> None:
        """What bursts of one wake-up ask for by ``later`` runs once, after the last of them."""
        order: list[object] = []
        done: Deferred[None] = Deferred()

        def flush() -> None:
            order.append("flush")
            done.callback(None)

        def received(packets: Burst, source: Address) -> None:
            order.extend(map(len, packets))
            self.fabric.later(flush)

        receiver, sender = self.socket(received), self.socket()
        for size in (10, 20, 30):
            sender.send([b"x" * size], receiver.address)
        await done
        self.assertEqual(order, [10, 20, 30, "flush"])

    async def test_offload_refused(self) -> None:
        """EIO, EINVAL and ENOPROTOOPT end the offload of that socket; not a packet is lost, then or later."""
        for number in (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT):
            sink = Sink()
            receiver = self.socket(sink)
            sender, fault = self.faulty()
            fault.segment_error = number
            packets = [bytes([i]) * 900 for i in range(8)]
            sender.send(packets, receiver.address)
            self.assertFalse(sender.offload)
            sender.send(packets, receiver.address, [b"head"] * 8)
            self.assertEqual(await sink.wait(16), packets + [b"head" + p for p in packets])
            self.assertEqual((sender.counters.sends_out, sender.counters.dropped), (16, 0))

    async def test_segment_over_the_path(self) -> None:
        """A run of segments too long for the path goes packet by packet, and the offload stays for others."""
        sink = Sink()
        receiver = self.socket(sink)
        sender, fault = self.faulty()
        fault.segment_error = errno.EINVAL
        sender.send([b"x" * 1400] * 3, receiver.address)
        self.assertEqual(len(await sink.wait(3)), 3)
        self.assertTrue(sender.offload)

    def test_destination_at_fault(self) -> None:
        """A destination that the kernel refuses loses its packets and does not end the offload."""
        sender = self.socket()
        sender.send([b"x" * 100] * 4, ("127.0.0.1", 0))
        self.assertTrue(sender.offload)
        self.assertEqual((sender.counters.dropped, sender.counters.packets_out), (4, 0))

    async def test_full_buffer(self) -> None:
        """EAGAIN and ENOBUFS lose what is left of that call, count it, and hurt nothing else."""
        for offload in (True, False):
            for number in (errno.EAGAIN, errno.ENOBUFS):
                sink = Sink()
                receiver = self.socket(sink)
                sender, fault = self.faulty(offload=offload)
                fault.send_errors = [number]
                sender.send([b"x" * 100] * 4 + [b"y" * 200] * 4, receiver.address)
                self.assertEqual((sender.counters.dropped, sender.counters.packets_out), (8, 0))
                sender.send([b"z" * 10], receiver.address)
                self.assertEqual(await sink.wait(1), [b"z" * 10])

    async def test_icmp_errors(self) -> None:
        """Errors that ICMP left on the socket are counted; the reads and the packets behind them happen."""
        sink = Sink()
        made: list[FaultySocket] = []

        def make(family: int, kind: int) -> socket.socket:
            made.append(FaultySocket(family, kind))
            return made[0]

        receiver, sender = self.socket(sink, make_socket=make), self.socket()
        made[0].read_errors = [errno.ECONNREFUSED, errno.EHOSTUNREACH]
        sender.send([b"through"], receiver.address)
        self.assertEqual(await sink.wait(1), [b"through"])
        self.assertEqual(receiver.counters.icmp_errors, 2)
        made[0].send_errors = [errno.ECONNREFUSED]
        receiver.send([b"a" * 50, b"b" * 50], sender.address)
        self.assertEqual((receiver.counters.packets_out, receiver.counters.dropped), (2, 0))

    async def test_one_source_one_burst(self) -> None:
        """What a source sent in several calls before it was read arrives as one burst where sizes let it."""
        sink = Sink()
        receiver, sender, other = self.socket(sink), self.socket(), self.socket()
        for count in (2, 1, 3):
            sender.send([b"a" * 100] * count, receiver.address)
        for packet in (b"b", b"cc", b"d"):
            other.send([packet], receiver.address)
        sender.send([b"e" * 100] * 2 + [b"f"], receiver.address)
        sender.send([b"g" * 90] * 2, receiver.address)
        await sink.wait(14)
        first = [b"a" * 100] * 6 + [b"e" * 100] * 2 + [b"f"]
        self.assertEqual(sink.bursts, [first, [b"g" * 90] * 2, [b"b", b"cc", b"d"]])
        self.assertEqual(sink.sources, [sender.address, sender.address, other.address])

    async def test_more_than_one_visit_reads(self) -> None:
        """A queue longer than the space of one visit is read in several, complete and in order."""
        sink = Sink()
        receiver, sender = self.socket(sink), self.socket()
        packets = [i.to_bytes(2, "big") * 500 for i in range(1600)]
        for start in range(0, 1600, 40):
            sender.send(packets[start : start + 40], receiver.address)
        self.assertEqual(await sink.wait(1600), packets)
        self.assertGreater(len(sink.bursts), 1)
