"""Whether a publisher's payload format is one that a subscriber accepted, and under which number (RFC 8829, 5.3).

Payload types are per m-line, so the same format has one number on the way in and another on the way
out. Of the formats that carry other payload types inside RED for audio is matched where its inside is; FEC never.
"""

from __future__ import annotations

from collections.abc import Iterable

from orama.sfu.red import carried, is_red
from orama.sfu.values import Codec

_CARRIERS = ("rtx", "red", "ulpfec", "flexfec-03")
#: profile_idc, mask and value of the constraint flags → name (RFC 6184, 8.1, table 5).
_H264_PROFILES = (
    (0x42, 0x4F, 0x40, "constrained-baseline"),
    (0x4D, 0x8F, 0x80, "constrained-baseline"),
    (0x58, 0xCF, 0xC0, "constrained-baseline"),
    (0x42, 0x4F, 0x00, "baseline"),
    (0x58, 0xCF, 0x80, "baseline"),
    (0x4D, 0xAF, 0x00, "main"),
    (0x64, 0xFF, 0x00, "high"),
    (0x64, 0xFF, 0x0C, "constrained-high"),
)
#: A decoder of the key's profile decodes these too.
_H264_DECODES = {
    "baseline": {"constrained-baseline"},
    "main": {"constrained-baseline"},
    "constrained-high": {"constrained-baseline"},
    "high": {"constrained-baseline", "main", "constrained-high"},
}


def parameters(fmtp: str) -> dict[str, str]:
    """``a=1;b=2`` as a mapping with lower-case keys; a part without ``=`` has an empty value."""
    pairs = (part.partition("=") for part in fmtp.split(";") if part.strip())
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def h264_profile(fmtp: dict[str, str]) -> str:
    """Name of the profile that ``profile-level-id`` gives, the id's own first half for others."""
    text = fmtp.get("profile-level-id", "42001f").lower()
    try:
        profile, flags = int(text[0:2], 16), int(text[2:4], 16)
    except ValueError:
        return text
    for idc, mask, value, name in _H264_PROFILES:
        if profile == idc and flags & mask == value:
            return name
    return text[:4]


def decodes(theirs: Codec, ours: Codec) -> bool:
    """Whether one who accepted *ours* can take packets of the publisher's *theirs*."""
    mime = theirs.mime.lower()
    if (mime, theirs.clock_rate, theirs.channels) != (ours.mime.lower(), ours.clock_rate, ours.channels):
        return False
    name = mime.partition("/")[2]
    if name in _CARRIERS:
        return False
    sent, taken = parameters(theirs.fmtp), parameters(ours.fmtp)
    if name == "h264":
        if sent.get("packetization-mode", "0") != taken.get("packetization-mode", "0"):
            return False
        publisher, subscriber = h264_profile(sent), h264_profile(taken)
        return publisher == subscriber or publisher in _H264_DECODES.get(subscriber, ())
    if name == "vp9":
        return sent.get("profile-id", "0") == taken.get("profile-id", "0")
    if name == "av1":
        return sent.get("profile", "0") == taken.get("profile", "0")
    return True


def payload_types(published: Iterable[Codec], accepted: Iterable[Codec]) -> dict[int, Codec]:
    """The publisher's payload type → the subscriber's codec for it; formats without one are missing."""
    published, accepted = tuple(published), tuple(accepted)
    chosen: dict[int, Codec] = {}
    for theirs in published:
        fitting = [ours for ours in accepted if decodes(theirs, ours)]
        # The same profile beats one that merely contains it.
        fitting.sort(key=lambda ours: _differs(theirs, ours))
        if fitting:
            chosen[theirs.payload_type] = fitting[0]
    for theirs in filter(is_red, published):
        inner = carried(theirs, published)
        ours = None if inner is None else chosen.get(inner.payload_type)
        found = [each for each in accepted if is_red(each) and ours is not None and carried(each, accepted) is ours]
        if found:
            chosen[theirs.payload_type] = found[0]
    return chosen


def _differs(theirs: Codec, ours: Codec) -> bool:
    return h264_profile(parameters(theirs.fmtp)) != h264_profile(parameters(ours.fmtp))
