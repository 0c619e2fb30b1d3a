"""Where a keyframe begins, read from the first bytes of RTP payloads, without decoding.

VP8 (RFC 7741, 4.2), VP9 (RFC 9628, 4.2), H.264 (RFC 6184, 5.2), AV1 (its RTP payload format, 4.4) and the dependency
descriptor of that document's appendix A, which every codec may carry. Total: bytes that are no such
payload begin nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TypeAlias

Buffer = bytes | bytearray | memoryview


class PayloadError(ValueError):
    """Bytes that are no payload descriptor, or no dependency descriptor."""


class Keyframe(IntEnum):
    """What a packet is to somebody who waits for a keyframe."""

    NONE = 0
    #: Part of a keyframe, perhaps with packets of the same frame before it.
    PART = 1
    #: The first packet of a keyframe for sure.
    START = 2


Detector: TypeAlias = Callable[[Buffer], Keyframe]

_SLICE_IDR, _SPS, _STAP_A, _FU_A = 5, 7, 24, 28


def vp8(payload: Buffer) -> Keyframe:
    """First partition's first byte with the inverse key frame flag clear (RFC 7741, 4.3)."""
    if not payload or payload[0] & 0x17 != 0x10:  # S set, partition 0
        return Keyframe.NONE
    at = 1
    if payload[0] & 0x80:
        if len(payload) < 2:
            return Keyframe.NONE
        flags, at = payload[1], 2
        if flags & 0x80:
            if len(payload) < 3:
                return Keyframe.NONE
            at += 2 if payload[2] & 0x80 else 1
        at += (flags >> 6 & 1) + (1 if flags & 0x30 else 0)
    return Keyframe.START if len(payload) > at and not payload[at] & 1 else Keyframe.NONE


def vp9(payload: Buffer) -> Keyframe:
    """Start of a frame that is not predicted from other pictures, in the lowest spatial layer."""
    if not payload or payload[0] & 0x48 != 0x08:  # P clear, B set
        return Keyframe.NONE
    if payload[0] & 0x20:
        at = 1
        if payload[0] & 0x80:
            if len(payload) < 2:
                return Keyframe.NONE
            at += 2 if payload[1] & 0x80 else 1
        if len(payload) <= at or payload[at] & 0x0E:  # a higher spatial layer
            return Keyframe.NONE
    return Keyframe.START


def h264(payload: Buffer) -> Keyframe:
    """A sequence parameter set starts a keyframe; an IDR slice is part of one."""
    if len(payload) < 2:
        return Keyframe.NONE
    kind = payload[0] & 0x1F
    if kind == _SPS:
        return Keyframe.START
    if kind == _SLICE_IDR:
        return Keyframe.PART
    if kind == _FU_A:
        return Keyframe.PART if payload[1] & 0x80 and payload[1] & 0x1F == _SLICE_IDR else Keyframe.NONE
    found = Keyframe.NONE
    if kind == _STAP_A:
        at = 1
        while at + 2 < len(payload):
            inner = payload[at + 2] & 0x1F
            if inner == _SPS:
                return Keyframe.START
            if inner == _SLICE_IDR:
                found = Keyframe.PART
            at += 2 + (payload[at] << 8 | payload[at + 1])
    return found


def av1(payload: Buffer) -> Keyframe:
    """N in the aggregation header: first packet of a coded video sequence; Z must be clear then."""
    return Keyframe.START if payload and payload[0] & 0x88 == 0x08 else Keyframe.NONE


def descriptor(extension: Buffer) -> Keyframe:
    """Dependency descriptor: the start of a frame that brings a new template structure."""
    if len(extension) < 4 or not extension[0] & 0x80 or not extension[3] & 0x80:
        return Keyframe.NONE
    return Keyframe.START


_DETECTORS: dict[str, Detector] = {"video/vp8": vp8, "video/vp9": vp9, "video/h264": h264, "video/av1": av1}


def detector(mime: str) -> Detector | None:
    """How to find keyframes in this payload format; None where nothing is known about it."""
    return _DETECTORS.get(mime.lower())
