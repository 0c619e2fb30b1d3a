"""The media path of one client, sans-IO: protected packets in, protected packets out.

``receive`` takes what the client sent, ``transmit`` gets what goes to it. Between them lie SRTP, the
client's published tracks, and its subscriptions to the tracks of others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from orama.net.fabric import Burst
from orama.sfu.counters import MediaCounters
from orama.sfu.track import Track
from orama.sfu.values import Downlinked, SrtpKeys, Uplinked


class RandomBits(Protocol):
    """``random.SystemRandom()`` in service, ``random.Random(seed)`` in tests."""

    def getrandbits(self, k: int, /) -> int: ...


@frozen
class MediaStats:
    """One client's media at this moment; rates are totals since the start."""

    #: Seconds, None before the first receiver report.
    round_trip: float | None
    packets_received: int
    packets_sent: int
    packets_lost: int


class PeerMedia:
    """What one client sends and receives.

    :param transmit: gets protected packets for this client; the views are good until it returns.
    :param later: ``Fabric.later``: runs a flush once when the current drain ends.
    """

    def __init__(
        self,
        clock: IReactorTime,
        random: RandomBits,
        transmit: Callable[[Burst], None],
        later: Callable[[Callable[[], None]], None],
        counters: MediaCounters,
    ) -> None:
        #: Tracks that the client publishes, by track id.
        self.tracks: dict[str, Track] = {}

    def secure(self, keys: SrtpKeys) -> None:
        """DTLS is up: from now on packets can be read and written."""

    def publish(self, tracks: Sequence[Uplinked]) -> None:
        """The whole set of m-lines on which the client sends now; what is missing from it ends."""

    def receive(self, packets: Burst, now: float) -> None:
        """Take protected RTP and RTCP as the client sent them; never raises for bad packets."""

    def subscribe(self, track: Track, downlinked: Downlinked) -> None:
        """Forward *track* of another client to this one; again for the same track replaces the m-line's values."""

    def unsubscribe(self, track_id: str) -> None:
        """Stop; nothing happens when there is no such subscription."""

    def set_layer(self, track_id: str, layer: str, priority: int) -> None:
        """Choose the simulcast layer: ``low``, ``mid``, ``high`` or ``auto``."""

    def tick(self, now: float) -> None:
        """Timed work; call it every 50 ms."""

    def close(self) -> None:
        """End every subscription from and to this client; later calls do nothing."""

    def stats(self) -> MediaStats:
        return MediaStats(None, 0, 0, 0)
