"""What an offer and its answer come to: for the media path, and for those who send descriptions on."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from orama.sfu.lines import Line
from orama.sfu.payloads import Numbers
from orama.sfu.values import Downlinked, Uplinked


@frozen
class Agreement:
    """What holds after an offer and its answer: the whole, not what changed."""

    uplinks: tuple[Uplinked, ...]
    downlinks: tuple[Downlinked, ...]
    #: The client's certificate, (hash, value) pairs; empty when no m-line is in use.
    fingerprints: tuple[tuple[str, str], ...]
    #: The client's SCTP port and longest message, None without a data m-line.
    data: tuple[int, int] | None
    #: Tracks that the client will not take; they are not offered again.
    declined: frozenset[str] = frozenset()
    #: What we send with, or may send with again on m-lines that rest.
    ssrcs: frozenset[int] = frozenset()


@frozen
class Answered:
    """Our answer, and what the client asked for in vain: ``publish`` and ``data`` by right, ``tracks`` by number."""

    sdp: str
    agreement: Agreement
    forbidden: frozenset[str]


@frozen
class Proposed:
    """An offer of ours, and where the tracks that it brings stand in it: track id → mid."""

    sdp: str
    added: Mapping[str, str]


@frozen
class Outstanding:
    """An offer of ours, before its answer and after."""

    lines: tuple[Line, ...]
    sdp: str
    added: Mapping[str, str]
    #: The numbers with those that this offer gave: they hold when it is answered.
    numbers: Numbers
    #: Whether it restarts ICE.
    restarts: bool
