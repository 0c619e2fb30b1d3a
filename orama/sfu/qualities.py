"""What a track can be had in, and what each of that costs: the choices for whoever shares out the bandwidth."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from attrs import frozen

#: What a packet takes on the wire beside its payload: RTP header, the usual extensions, the tag of SRTP.
OVERHEAD = 12 + 16 + 16
#: Seconds over which octets are counted before a rate is made of them, and the share of the newest in it: what was a
#: second ago counts for a third.
WINDOW, SHARE = 0.25, 0.25
#: Bits per second below which something that sends no more is forgotten.
SILENT = 1000.0
#: Kinds of packets of one stream that are told apart; there are 16 targets at most that one could choose among.
MOST_KINDS = 64


@frozen
class Quality:
    """One way to have a track: everything up to a spatial and a temporal layer."""

    #: Place among the simulcast layers, or the spatial layer of one stream; 0 where there is but one.
    spatial: int
    #: 0 where there is but one.
    temporal: int
    #: Bits per second on the wire, all that it depends on included; over about a second.
    bitrate: float


class Meter:
    """Bits per second of one stream, by kind of packet.

    :ivar counted: kind → octets since the last :meth:`turn`; the media path adds to it.
    :ivar rates: kind → bits per second.
    """

    __slots__ = ("_since", "counted", "rates")

    def __init__(self) -> None:
        self.counted: dict[Hashable, int] = {}
        self.rates: dict[Hashable, float] = {}
        self._since: float | None = None

    def add(self, kind: Hashable, octets: int) -> None:
        """Count octets on the wire; the meter begins with the first."""
        counted = self.counted
        if kind in counted or len(counted) < MOST_KINDS:
            counted[kind] = counted.get(kind, 0) + octets

    def turn(self, now: float) -> None:
        """Make rates of what was counted, when it is time; call it every tick."""
        since, counted = self._since, self.counted
        if since is None:
            if counted:
                self._since = now - WINDOW / 2
            return
        passed = now - since
        if passed < WINDOW:
            return
        self._since = now
        rates: dict[Hashable, float] = {}
        for kind in {**self.rates, **counted}:
            newest, known = counted.get(kind, 0) * 8 / passed, self.rates.get(kind)
            rate = newest if known is None else known + (newest - known) * (1 - (1 - SHARE) ** (passed / WINDOW))
            if rate > SILENT:
                rates[kind] = rate
        self.rates = rates
        counted.clear()


def total(rates: Mapping[Hashable, float]) -> float:
    """Bits per second of all kinds together."""
    return sum(rates.values())
