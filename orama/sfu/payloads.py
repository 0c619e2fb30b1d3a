"""Codecs and header extensions of one connection: which we forward, when two are the same, which number one gets.

With BUNDLE a payload type means one codec for the whole connection (RFC 9143, 9.1), and so does an extension's id; and
each m-line has a mapping of its own (RFC 8866, 6.6). A client's numbers are learned from what it says; what it never
named gets a number that browsers would give it, or a free one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from attrs import evolve

from orama.sfu.red import MIME as RED
from orama.sfu.red import carried, is_red, relinked
from orama.sfu.values import (
    ABS_SEND_TIME,
    AUDIO_LEVEL,
    DEPENDENCY_DESCRIPTOR,
    MID,
    REPAIRED_RID,
    RID,
    TRANSPORT_CC,
    VIDEO_ORIENTATION,
    Codec,
)
from orama.wire import sdp

#: What makes two payload formats the same: name, clock rate, channels and profile.
Identity: TypeAlias = tuple[str, int, int, str]

AUDIO = ("audio/opus", RED)
VIDEO = ("video/vp8", "video/vp9", "video/h264", "video/av1")
#: Characters of format parameters that are passed on to subscribers.
MAX_FMTP = 256
FEEDBACK = frozenset({"nack", "nack pli", "ccm fir", "transport-cc", "goog-remb"})
AUDIO_FEEDBACK = frozenset({"transport-cc"})

#: First choices where the client has not numbered a codec yet: payload type and RTX, as Chromium numbers them.
USUAL: dict[Identity, tuple[int, int]] = {
    ("audio/opus", 48000, 2, ""): (111, 62),
    (RED, 48000, 2, ""): (63, 61),
    ("video/vp8", 90000, 1, ""): (96, 97),
    ("video/vp9", 90000, 1, "0"): (98, 99),
    ("video/vp9", 90000, 1, "2"): (100, 101),
    ("video/h264", 90000, 1, "1/42c0"): (103, 104),
    ("video/av1", 90000, 1, "0"): (45, 46),
}
#: Dynamic payload types (RFC 3551, 6), and those that are free beside them when RTCP is multiplexed (RFC 5761, 4).
DYNAMIC = (*range(127, 95, -1), *range(35, 64))

#: Ids for extensions that the client has not numbered, as Chromium numbers them; a browser never renumbers one.
USUAL_IDS = {
    AUDIO_LEVEL: 1,
    ABS_SEND_TIME: 2,
    TRANSPORT_CC: 3,
    MID: 4,
    RID: 10,
    REPAIRED_RID: 11,
    DEPENDENCY_DESCRIPTOR: 12,
    VIDEO_ORIENTATION: 13,
}
#: A number with so many meanings is never given to anything: it needs no more of them.
AMBIGUOUS = 2
#: One-byte header extensions have ids up to 14 (RFC 8285, 4.2).
LAST_ID = 14


def identity(codec: Codec) -> Identity:
    mime = codec.mime.lower()
    return mime, codec.clock_rate, codec.channels, _profile(mime, codec.fmtp)


def same(one: Codec, other: Codec) -> bool:
    """Whether packets of *one* can be decoded as *other*."""
    return identity(one) == identity(other)


def _profile(mime: str, fmtp: str) -> str:
    parameters = sdp.parameters(fmtp)
    if mime == "video/vp9":
        return parameters.get("profile-id", "0")
    if mime == "video/av1":
        return parameters.get("profile", "0")
    if mime == "video/h264":
        # Without the parameter it is the Baseline Profile at level 1 (RFC 6184, 8.1).
        return (
            f"{parameters.get('packetization-mode', '0')}/{_h264_profile(parameters.get('profile-level-id', '42000a'))}"
        )
    return ""


def _h264_profile(level_id: str) -> str:
    """The profile in ``profile-level-id`` without the level; the spellings of Constrained Baseline made one."""
    text = level_id.lower()
    if len(text) != 6 or any(digit not in "0123456789abcdef" for digit in text):
        return text
    profile, constraints = text[:2], int(text[2:4], 16)
    if (profile == "42" and constraints & 0x40) or (profile == "4d" and constraints & 0x80):
        return "42c0"
    return f"{profile}{constraints & 0xFC:02x}"


def offered(kind: str, media: sdp.Media) -> tuple[Codec, ...]:
    """The codecs of an m-line that we forward, in its order, each with its RTX.

    :raises SdpError: the m-line is malformed.
    """
    known, feedback = (AUDIO, AUDIO_FEEDBACK) if kind == "audio" else (VIDEO, FEEDBACK)
    formats = sdp.formats(media)
    repairs = _repairs(formats)
    found = []
    for one in formats:
        codec = Codec(
            one.payload_type,
            f"{kind}/{one.name}",
            one.clock_rate,
            one.channels,
            one.parameters,
            repairs.get(one.payload_type),
            feedback.intersection(one.feedback),
        )
        if codec.mime.lower() in known and len(codec.fmtp) <= MAX_FMTP:
            found.append(codec)
    return tuple(codec for codec in found if not is_red(codec) or carried(codec, found) is not None)


def first(codecs: Sequence[Codec]) -> tuple[Codec, ...]:
    """What is taken of an m-line's codecs: the first. One, so that what is sent is known and descriptions of large
    rooms stay small; and with sound RED and what it carries, in the client's order: it may change between the two."""
    for one in codecs[:1]:
        if is_red(one):
            inner = carried(one, codecs)
            return (one,) if inner is None else (one, inner)
        return (one, *[each for each in codecs if is_red(each) and carried(each, codecs) is one][:1])
    return ()


def _repairs(formats: Iterable[sdp.Format]) -> dict[int, int]:
    """Payload type → that of its RTX."""
    found: dict[int, int] = {}
    for one in formats:
        apt = sdp.parameters(one.parameters).get("apt", "") if one.name.lower() == "rtx" else ""
        if apt.isascii() and apt.isdigit() and len(apt) <= 3:
            found.setdefault(int(apt), one.payload_type)
    return found


def accepted(ours: Sequence[Codec], theirs: Sequence[Codec]) -> tuple[Codec, ...]:
    """What an answer agreed on: our codecs with its payload types, our parameters and the feedback of both."""
    found: list[Codec] = []
    before: list[Codec] = []
    for codec in ours:
        match = next((one for one in theirs if same(one, codec)), None)
        if match is not None:
            found.append(
                evolve(
                    codec,
                    payload_type=match.payload_type,
                    rtx_payload_type=match.rtx_payload_type if codec.rtx_payload_type is not None else None,
                    feedback=codec.feedback & match.feedback,
                )
            )
            before.append(codec)
    return relinked(before, found)


def extensions(media: sdp.Media) -> dict[str, int]:
    """URI → id of the extensions of an m-line that we read or write; transport-cc makes abs-send-time needless.

    :raises SdpError: the m-line is malformed.
    """
    found: dict[str, int] = {}
    for extension in sdp.extensions(media):
        if extension.uri in USUAL_IDS and extension.id <= LAST_ID and extension.direction != "inactive":
            found.setdefault(extension.uri, extension.id)
    if TRANSPORT_CC in found:
        found.pop(ABS_SEND_TIME, None)
    return found


class Numbers:
    """The payload types and extension ids that one connection has seen or given."""

    def __init__(self) -> None:
        #: Payload type → what it has meant; RTX has the number that it repairs as its profile.
        self._meanings: dict[int, frozenset[Identity]] = {}
        self._ids: dict[str, int] = {}

    def copy(self) -> Numbers:
        other = Numbers()
        other._meanings = dict(self._meanings)
        other._ids = dict(self._ids)
        return other

    def learn(self, kind: str, media: sdp.Media) -> None:
        """Take note of every number on an m-line of the client's, also of what we do not forward.

        :raises SdpError: the m-line is malformed.
        """
        for one in sdp.formats(media):
            mime = f"{kind}/{one.name}".lower()
            fmtp = one.parameters[:MAX_FMTP]
            profile = sdp.parameters(fmtp).get("apt", "") if mime.endswith("/rtx") else ""
            meaning = (mime, one.clock_rate, one.channels, profile or _profile(mime, fmtp))
            known = self._meanings.get(one.payload_type, frozenset())
            if len(known) < AMBIGUOUS:
                self._meanings[one.payload_type] = known | {meaning}
        for extension in sdp.extensions(media):
            if self._ids.get(extension.uri) == extension.id:
                continue
            # What the client says counts: an id that we gave and it never took, it may give to something else.
            self._ids = {uri: number for uri, number in self._ids.items() if number != extension.id}
            self._ids[extension.uri] = extension.id

    def place(self, codec: Codec, repaired: bool) -> Codec:
        """*codec* with payload types for a new m-line of ours; with RTX when *repaired*."""
        wanted = identity(codec)
        usual, usual_rtx = USUAL.get(wanted, (None, None))
        payload_type = self._number(wanted, usual)
        rtx = None
        if repaired:
            mime = f"{wanted[0].partition('/')[0]}/rtx"
            rtx = self._number((mime, codec.clock_rate, 1, str(payload_type)), usual_rtx)
        return evolve(codec, payload_type=payload_type, rtx_payload_type=rtx)

    def extension(self, uri: str) -> int | None:
        """The id of *uri*, one of :data:`USUAL_IDS`; None when the client has used up all that are short."""
        if uri not in self._ids:
            taken = set(self._ids.values())
            free = (number for number in (USUAL_IDS[uri], *range(LAST_ID, 0, -1)) if number not in taken)
            number = next(free, None)
            if number is None:
                return None
            self._ids[uri] = number
        return self._ids[uri]

    def _number(self, meaning: Identity, usual: int | None) -> int:
        for number, meanings in self._meanings.items():
            if meanings == {meaning}:
                return number
        number = next(self._free(usual))
        self._meanings[number] = frozenset((meaning,))
        return number

    def _free(self, first: int | None) -> Iterator[int]:
        """Payload types without a meaning; when there are none left, those that have one."""
        if first is not None and first not in self._meanings:
            yield first
        yield from (number for number in DYNAMIC if number not in self._meanings)
        yield from DYNAMIC
