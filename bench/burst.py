"""What a packet costs in the burst socket: received, its first bytes cut off, and sent on, with offload and without.

``python bench/burst.py [SIZE] [SECONDS]`` prints CPU per packet of this process alone. The load is a process of its
own; nothing but two sockets, the fabric and a one-line receiver is measured.
"""

from __future__ import annotations

import multiprocessing
import socket
import struct
import sys
import time
from collections.abc import Iterator

from twisted.internet import asyncioreactor

asyncioreactor.install()

from twisted.internet import reactor  # noqa: E402

from orama.net.burst import SOL_UDP, UDP_GRO, UDP_SEGMENT, BurstSocket  # noqa: E402
from orama.net.fabric import Address, Burst, Fabric  # noqa: E402
from orama.net.poll import Poll  # noqa: E402

SIZE = int(sys.argv[1]) if len(sys.argv) > 1 else 1200
SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 1.5


def load(to: Address, burst: int) -> None:
    """Send bursts for as long as this may run."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    packet = struct.pack("!HH", 0x4000, SIZE) + bytes(SIZE)
    control = [(SOL_UDP, UDP_SEGMENT, struct.pack("H", len(packet)))] if burst > 1 else []
    end = time.time() + SECONDS + 2
    while time.time() < end:
        sock.sendmsg([packet] * burst, control, 0, to)


class Relay:
    """Two sockets, and a load in front of them for a while."""

    def __init__(self, burst: int, offload: bool, to: Address) -> None:
        poll = Poll(reactor, Fabric(reactor))
        self.burst = burst
        self.offload = offload
        self.to = to
        self.front = BurstSocket(poll, self.received, offload=offload)
        self.back = BurstSocket(poll, lambda packets, source: None, offload=offload)

    def received(self, packets: Burst, source: Address) -> None:
        self.back.send([packet[4:] for packet in packets], self.to)

    def start(self) -> None:
        self.front.listen(("127.0.0.1", 0))
        self.back.listen(("127.0.0.1", 0))
        self.sender = multiprocessing.get_context("fork").Process(target=load, args=(self.front.address, self.burst))
        self.sender.start()
        reactor.callLater(0.3, self.mark)

    def mark(self) -> None:
        self.began = time.process_time(), self.back.counters.packets_out, self.front.counters.bursts_in
        reactor.callLater(SECONDS, self.report)

    def report(self) -> None:
        cpu, packets, bursts = self.began
        cpu = time.process_time() - cpu
        packets = self.back.counters.packets_out - packets
        bursts = self.front.counters.bursts_in - bursts
        self.sender.terminate()
        self.sender.join()
        self.front.close()
        self.back.close()
        print(
            f"bursts of {self.burst:2}  offload {'on ' if self.offload else 'off'}  "
            f"{cpu / packets * 1e6:5.2f} us of CPU a packet, {packets / SECONDS / 1e3:4.0f} kpps, "
            f"{packets / bursts:4.1f} packets a read"
        )
        step()


def relays() -> Iterator[Relay]:
    for burst in (1, 10, 40):
        for offload in (True, False):
            yield Relay(burst, offload, sink.getsockname())


def step() -> None:
    relay = next(waiting, None)
    if relay is None:
        reactor.stop()
    else:
        relay.start()


if __name__ == "__main__":
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind(("127.0.0.1", 0))
    sink.setsockopt(SOL_UDP, UDP_GRO, 1)
    waiting = relays()
    reactor.callWhenRunning(step)
    reactor.run()
