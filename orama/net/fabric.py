"""The fabric: where the TURN server and the SFU of one process hand packets over without a socket.

A part attaches a receiver at an address that it owns (a relay address, an SFU media address). Who
sends to that address asks the fabric first and takes a socket only when nobody is attached there.

The second job is the end of a burst. While a socket is being drained, whoever has something to send
that may still grow (the SFU, towards each subscriber) says ``later(flush)`` instead of sending; the
flush runs once, when the drain ends, so that all that one wake-up brought leaves in one system call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

#: One packet. A memoryview is good only until the receiving call returns: who keeps it, copies it.
Buffer: TypeAlias = bytes | bytearray | memoryview
#: Packets of one source for one destination, in order.
Burst: TypeAlias = Sequence[Buffer]
#: Canonical text of the IP (as ``str(ipaddress.ip_address(x))`` gives it) and the port.
Address: TypeAlias = tuple[str, int]
#: Called with packets and the address that they came from.
Receiver: TypeAlias = Callable[[Burst, Address], None]

#: Flushes may ask for flushes; after so many rounds the rest waits for the next reactor turn.
MAX_ROUNDS = 8

_log = Logger()


class AddressInUse(Exception):
    """A receiver is attached at that address already."""


class Fabric:
    """Addresses of this process, and the flushes that wait for the end of a drain.

    :param seconds: the clock of :meth:`begin`.
    :ivar transit: called when a drain of sockets has ended, with the seconds since it began and the number of flushes
        that it came to; None asks no clock.
    """

    def __init__(self, clock: IReactorTime, *, seconds: Callable[[], float] = time.monotonic) -> None:
        self.transit: Callable[[float, int], None] | None = None
        self._seconds = seconds
        self._arrived: float | None = None
        self._clock = clock
        self._receivers: dict[Address, Receiver] = {}
        self._flushes: dict[Callable[[], None], None] = {}
        self._depth = 0
        self._scheduled = False

    def attach(self, address: Address, receiver: Receiver) -> None:
        """Give *receiver* all that is sent to *address* from now on.

        :raises AddressInUse: somebody is there.
        """
        if address in self._receivers:
            raise AddressInUse(address)
        self._receivers[address] = receiver

    def detach(self, address: Address) -> None:
        """Forget *address*; nothing happens when nobody is there."""
        self._receivers.pop(address, None)

    def has(self, address: Address) -> bool:
        return address in self._receivers

    def deliver(self, packets: Burst, source: Address, destination: Address) -> bool:
        """Hand *packets* to whoever is attached at *destination*; False when nobody is."""
        receiver = self._receivers.get(destination)
        if receiver is None:
            return False
        receiver(packets, source)
        return True

    def begin(self, arrived: float | None = None) -> None:
        """A drain begins: flushes wait for the matching :meth:`end`. Drains nest.

        :param arrived: when it was looked for packets, where this is a drain of sockets.
        """
        self._depth += 1
        if self._depth == 1:
            self._arrived = arrived

    def end(self) -> None:
        """A drain ends; the outermost one runs every flush that was asked for."""
        self._depth -= 1
        if self._depth == 0 and self._flushes:
            bursts = len(self._flushes)
            self._run()
            if self._arrived is not None and self.transit is not None:
                self.transit(self._seconds() - self._arrived, bursts)

    def later(self, flush: Callable[[], None]) -> None:
        """Run *flush* once when the current drain ends, or in the next reactor turn outside of one.

        What a flush itself asks for runs after it, before :meth:`end` returns.
        """
        self._flushes[flush] = None
        if self._depth == 0:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._depth == 0:
            self._run()

    def _run(self) -> None:
        self._depth += 1
        try:
            for _ in range(MAX_ROUNDS):
                flushes, self._flushes = self._flushes, {}
                for flush in flushes:
                    try:
                        flush()
                    except Exception:  # the other flushes are somebody else's packets
                        _log.failure("a flush failed")
                if not self._flushes:
                    return
        finally:
            self._depth -= 1
        self._schedule()
