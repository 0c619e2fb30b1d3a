"""A UDP socket that moves bursts: many datagrams of one source or for one destination in a system call.

Receives with ``UDP_GRO`` and sends with ``UDP_SEGMENT`` (both of ``linux/udp.h``; a burst of equal
sizes is one pass through the kernel's UDP stack, whose cost is what counts here). Where the kernel or
the device has no offload, or the caller asks for none, the same socket moves one datagram a call. It
knows nothing of what the datagrams mean, keeps no queue, and loses what the kernel will not take.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from operator import add

from attrs import define
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from orama.net.fabric import Address, Buffer, Burst, Receiver
from orama.net.icmp import IcmpError, errors, whole
from orama.net.poll import Poll
from orama.net.run import Run

#: Level and options of ``linux/udp.h``; the ``socket`` module does not name them.
SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104
#: What the kernel takes in one ``UDP_SEGMENT`` send (``UDP_MAX_SEGMENTS`` of old kernels).
MAX_SEGMENTS = 64
#: Bytes in one such send: a UDP payload ends at 65,507 over IPv4, and headers want room.
MAX_SEND = 65000
#: Segments up to here pass every IPv6 path (RFC 8200, section 5: 1280 less 48 of headers), so that a
#: refusal of one is the fault of the offload and not of the segment.
SAFE_SEGMENT = 1232
#: Reads in one visit; the rest waits for the next one, so that other sockets get their turn. What one read can bring,
#: and what the reads of one visit share: a read wants the whole of MAX_READ free. A visit that brings several bursts of
#: each of ten clients sends them together: 1.0 µs a packet at 800,000 a second, against 1.7 µs and 400,000 with room
#: for twelve bursts. Twice as much is worth no more, and takes the reactor's turn.
MAX_READS = 128
MAX_READ = 1 << 16
ARENA = 16 << 16
#: Asked for in each direction; the kernel gives what it may.
SOCKET_BUFFER = 4 << 20
#: ``SO_SNDBUFFORCE`` and ``SO_RCVBUFFORCE`` of Linux, for who may go beyond the system's limit.
_FORCED = {socket.SO_SNDBUF: 32, socket.SO_RCVBUF: 33}
_ANCILLARY = socket.CMSG_SPACE(4)
_FULL = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})
#: What a send fails with because of the answer to an earlier one, for whomever that was; the next try does not.
_EARLIER = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOPROTOOPT, errno.EPROTO})
_NO_OFFLOAD = frozenset({errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EMSGSIZE})
_SEGMENT = struct.Struct("@H")
_GRO = struct.Struct("@i")

_log = Logger()


@define
class BurstCounters:
    """What passed a socket since it was made. Packets are datagrams on the wire, not reads."""

    packets_in: int = 0
    bytes_in: int = 0
    bursts_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0
    sends_out: int = 0
    #: Datagrams that the kernel did not take: full buffers, no route, too long.
    dropped: int = 0
    #: Errors of ICMP that the kernel reported on this socket.
    icmp_errors: int = 0


class BurstSocket:
    """A bound UDP socket in a poll.

    CPU of a 1200-byte packet received here and sent on, loopback, one core of a shared 2-core machine
    (``bench/burst.py``): 5.7 µs plain whatever the burst; with offload 6.3 µs single, 1.2 µs in bursts of
    10, 0.5 µs in bursts of 40. The same without this class, reactor and fabric: 0.9 µs in bursts of 10.

    :param received: called with each burst and its source; the packets are slices of a buffer that
        the next read overwrites.
    :param offload: False keeps to one datagram a system call.
    :param make_socket: makes the socket from family and type.
    """

    transport = "udp"
    #: All sockets read into this: a visit never nests in another one of the same process.
    _arena = memoryview(bytearray(ARENA))

    def __init__(
        self,
        poll: Poll,
        received: Receiver,
        *,
        offload: bool = True,
        make_socket: Callable[[int, int], socket.socket] = socket.socket,
    ) -> None:
        self.counters = BurstCounters()
        self._poll = poll
        #: May be replaced at any time.
        self.received = received
        self._wanted = offload
        self._make_socket = make_socket
        self._segment = False
        self._gro = False
        self._socket: socket.socket | None = None
        self._address: Address = ("", 0)
        self._deep = True
        #: Told of each error that ICMP reports about what was sent, where the socket keeps them (``icmp``).
        self.unreachable: Callable[[IcmpError], None] | None = None

    def listen(self, address: Address, reuse_port: bool = False) -> None:
        """Bind to *address* (port 0 takes a free one) and start to read.

        :raises CannotListenError: the address is taken or not ours.
        """
        host, port = address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = self._make_socket(family, socket.SOCK_DGRAM)
        except OSError as error:
            raise CannotListenError(host, port, error) from error
        try:
            sock.setblocking(False)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((host, port))
        except OSError as error:
            sock.close()
            raise CannotListenError(host, port, error) from error
        self.adopt(sock)

    def adopt(self, sock: socket.socket) -> None:
        """Start to read *sock*, which is bound and does not block; :meth:`close` closes it."""
        for option, forced in _FORCED.items():
            _enlarge(sock, option, forced)
        if self._wanted:
            self._segment = _has_segment(sock)
            self._gro = _enable_gro(sock)
        name = sock.getsockname()
        self._address = (_canonical(name[0]), name[1])
        self._socket = sock
        self._poll.add(self)

    @property
    def address(self) -> Address:
        """Where this is bound, with the actual port; stays after :meth:`close`."""
        return self._address

    @property
    def offload(self) -> bool:
        """Whether bursts still leave by ``UDP_SEGMENT``."""
        return self._segment

    def send(self, packets: Burst, to: Address, headers: Sequence[Buffer] | None = None) -> None:
        """Send *packets* to one address, in order, each behind its header where there are *headers*.

        Never raises and never waits: what the kernel does not take is lost and counted.
        """
        sock = self._socket
        count = len(packets)
        if sock is None:
            self.counters.dropped += count
        elif count == 1 or not self._segment:
            self._send_each(sock, packets, headers, to, 0, count)
        elif type(packets) is Run:
            self._send_run(sock, packets, headers, to)
        else:
            self._send_mixed(sock, packets, headers, to)

    def send_whole(self, packets: Burst, to: Address) -> None:
        """Send *packets* so that nobody may fragment them; the socket is one of ``icmp``."""
        if self._socket is not None:
            with whole(self._socket):
                self.send(packets, to)

    def _send_run(self, sock: socket.socket, run: Run, headers: Sequence[Buffer] | None, to: Address) -> None:
        """Send packets that are known to have one size."""
        size = run.size + (len(headers[0]) if headers is not None else 0)
        most = min(MAX_SEGMENTS, MAX_SEND // size)
        if most < 2 or not self._segment:
            self._send_each(sock, run, headers, to, 0, len(run))
        elif len(run) <= most:
            self._send_segments(sock, run.slices(), headers, to, size)
        else:
            for start in range(0, len(run), most):
                end = min(start + most, len(run))
                part = run.part(start, end)
                self._send_run(sock, part, None if headers is None else headers[start:end], to)

    def _send_mixed(self, sock: socket.socket, packets: Burst, headers: Sequence[Buffer] | None, to: Address) -> None:
        """Send packets of any sizes, as many of one size together as follow each other."""
        count = len(packets)
        lengths = map(len, packets)
        sizes = list(lengths if headers is None else map(add, map(len, headers), lengths))
        size = sizes[0] if sizes else 0
        if size and sizes.count(size) == count and count <= min(MAX_SEGMENTS, MAX_SEND // size):
            # One size, as the packets of a frame mostly have: 1.5 us less than looking for runs, for eight packets.
            self._send_segments(sock, packets, headers, to, size)
            return
        start = 0
        while start < count:
            end = _run(sizes, start, count)
            if end - start == 1 or not self._segment:
                going = self._send_each(sock, packets, headers, to, start, end)
            else:
                going = self._send_segments(
                    sock, packets[start:end], None if headers is None else headers[start:end], to, sizes[start]
                )
            if not going:
                self.counters.dropped += count - end
                return
            start = end

    def close(self) -> None:
        """Stop reading and give the port back. Nothing happens the second time."""
        sock = self._socket
        if sock is not None:
            self._poll.remove(self)
            self._socket = None
            sock.close()

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def read(self, deep: bool) -> None:
        """Read what is there, and hand it on by source: what one source sent since the last visit is one burst.

        :param deep: read to the end. Else that is done where the last visit found more than one.
        """
        sock = self._socket
        if sock is None:
            return
        arena, gro = self._arena, self._gro
        #: By source, from where to where a read lies in the arena, and the size of its packets.
        bursts: dict[Address, list[tuple[int, int, int]]] = {}
        at = reads = 0
        limit = MAX_READS if deep or self._deep else 1
        while reads < limit and at <= ARENA - MAX_READ:
            try:
                if gro:
                    size, ancillary, _flags, source = sock.recvmsg_into((arena[at:],), _ANCILLARY)
                else:
                    size, source = sock.recvfrom_into(arena[at:])
                    ancillary = None
            except BlockingIOError:
                break
            except OSError:
                self.counters.icmp_errors += 1
                reads += 1
                continue
            reads += 1
            step = _GRO.unpack_from(ancillary[0][2])[0] if ancillary else size
            there = bursts.get(source)
            if there is None:
                bursts[source] = [(at, at + size, step)]
            else:
                there.append((at, at + size, step))
            at += size
        self._deep = reads > 1
        self._poll.reads += max(0, reads - 1)
        self.counters.bytes_in += at
        for source, pieces in bursts.items():
            self._hand_on(pieces, source if len(source) == 2 else (_canonical(source[0]), source[1]))
            if self._socket is not sock:
                return

    def _hand_on(self, pieces: list[tuple[int, int, int]], source: Address) -> None:
        """Give one source's reads to the receiver: those of one size as one run, others together."""
        counters = self.counters
        for packets in _runs(self._arena, pieces):
            counters.packets_in += len(packets)
            counters.bursts_in += 1
            try:
                self.received(packets, source)
            except Exception:  # one bad burst must not cost the port
                _log.failure("receiver of {address} failed", address=self._address)

    def room(self) -> None:
        """Nothing waits to be written."""

    def failed(self) -> None:
        """Fetch the errors that ICMP left."""
        sock = self._socket
        if sock is None:
            return
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.counters.icmp_errors += 1
        if self.unreachable is not None:
            for error in errors(sock):
                self.unreachable(error)

    def _send_segments(
        self, sock: socket.socket, packets: Burst, headers: Sequence[Buffer] | None, to: Address, size: int
    ) -> bool:
        """Send packets of *size* bytes each, headers included, in one call; False when the kernel is full."""
        count = len(packets)
        parts: Burst = packets
        if headers is not None:
            # By slices: 0.2 µs for ten packets, against 0.9 µs for a comprehension over pairs.
            both: list[Buffer] = [b""] * (2 * count)
            both[::2], both[1::2] = headers, packets
            parts = both
        counters = self.counters
        try:
            counters.bytes_out += sock.sendmsg(parts, [(SOL_UDP, UDP_SEGMENT, _SEGMENT.pack(size))], 0, to)
        except OSError as error:
            if error.errno in _FULL:
                counters.dropped += count
                return False
            before = counters.sends_out
            going = self._send_each(sock, packets, headers, to, 0, count)
            if error.errno in _NO_OFFLOAD and size <= SAFE_SEGMENT and counters.sends_out - before == count:
                self._segment = False
                _log.info("segmentation offload refused, sending plain", address=self._address, errno=error.errno)
            return going
        counters.sends_out += 1
        counters.packets_out += count
        return True

    def _send_each(
        self,
        sock: socket.socket,
        packets: Burst,
        headers: Sequence[Buffer] | None,
        to: Address,
        start: int,
        end: int,
    ) -> bool:
        """Send packets one by one; False when the kernel is full."""
        counters = self.counters
        for i in range(start, end):
            try:
                if headers is None:
                    sent = sock.sendto(packets[i], to)
                else:
                    sent = sock.sendmsg((headers[i], packets[i]), (), 0, to)
            except OSError as error:
                if error.errno in _FULL:
                    counters.dropped += end - i
                    return False
                parts = (packets[i],) if headers is None else (headers[i], packets[i])
                if error.errno not in _EARLIER or not self._sent_again(sock, parts, to):
                    counters.dropped += 1
                    continue
                sent = sum(map(len, parts))
            counters.sends_out += 1
            counters.packets_out += 1
            counters.bytes_out += sent
        return True

    def _sent_again(self, sock: socket.socket, parts: Sequence[Buffer], to: Address) -> bool:
        """Try once more what failed because of an answer to something earlier."""
        self.counters.icmp_errors += 1
        try:
            sock.sendmsg(parts, (), 0, to)
        except OSError:
            return False
        return True


def _runs(arena: memoryview, pieces: list[tuple[int, int, int]]) -> Iterator[Burst]:
    """The packets of *pieces* (from, to, size of a packet) in their order, equal sizes as runs."""
    singles: list[Buffer] = []
    at = 0
    while at < len(pieces):
        start, end, step = pieces[at]
        at += 1
        if start == end:
            singles.append(arena[:0])
            continue
        starts: range | list[int] = range(start, end, step)
        while at < len(pieces) and pieces[at][2] == step and not (end - start) % step:
            start, end, _ = pieces[at]
            at += 1
            if type(starts) is range and start == starts.stop:
                starts = range(starts.start, end, step)
            else:
                starts = [*starts, *range(start, end, step)]
        if len(starts) == 1:
            singles.append(arena[start:end])
            continue
        if singles:
            yield singles
            singles = []
        yield Run(arena, starts, step, end - starts[-1])
    if singles:
        yield singles


def _run(sizes: list[int], start: int, count: int) -> int:
    """Where the run that begins at *start* ends: equal sizes, of which the last may be shorter."""
    size = sizes[start]
    if not size:
        return start + 1
    limit = min(count, start + MAX_SEGMENTS, start + max(1, MAX_SEND // size))
    at = start + 1
    while at < limit and sizes[at] == size:
        at += 1
    if at < limit and 0 < sizes[at] < size:
        at += 1
    return at


def _enlarge(sock: socket.socket, option: int, forced: int) -> None:
    for name in (forced, option):
        try:
            sock.setsockopt(socket.SOL_SOCKET, name, SOCKET_BUFFER)
            return
        except OSError:
            continue


def _has_segment(sock: socket.socket) -> bool:
    """Kernels before 4.18 ignore the ancillary data and would send one long datagram: ask first."""
    try:
        sock.getsockopt(SOL_UDP, UDP_SEGMENT)
    except OSError:
        return False
    return True


def _enable_gro(sock: socket.socket) -> bool:
    try:
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
    except OSError:
        return False
    return True


def _canonical(host: str) -> str:
    """The text that ``ipaddress`` gives: without a scope, and no dotted tail in an IPv6 address."""
    if "%" in host:
        host = host.partition("%")[0]
    if ":" in host and "." in host:
        return str(ipaddress.ip_address(host))
    return host
