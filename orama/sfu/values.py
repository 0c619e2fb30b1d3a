"""What negotiation agrees on with one client, as values: the border between SDP and the media path."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

MID = "urn:ietf:params:rtp-hdrext:sdes:mid"
RID = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id"
REPAIRED_RID = "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id"
AUDIO_LEVEL = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"
TRANSPORT_CC = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"
ABS_SEND_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
DEPENDENCY_DESCRIPTOR = "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension"
VIDEO_ORIENTATION = "urn:3gpp:video-orientation"


@frozen
class Codec:
    """One payload format of an m-line (RFC 8866, 6.6): what ``rtpmap``, ``fmtp`` and ``rtcp-fb`` said."""

    payload_type: int
    #: ``audio/opus``, ``video/VP8``, … compared without case.
    mime: str
    clock_rate: int
    channels: int = 1
    fmtp: str = ""
    #: Payload type of its RTX (RFC 4588), None without.
    rtx_payload_type: int | None = None
    #: ``nack``, ``nack pli``, ``ccm fir``, ``transport-cc``, ``goog-remb``.
    feedback: frozenset[str] = frozenset()


@frozen
class Uplinked:
    """One m-line on which the client sends, as negotiated."""

    track_id: str
    mid: str
    #: ``audio`` or ``video``.
    kind: str
    codecs: tuple[Codec, ...]
    #: URI → id, as the client numbered them.
    extensions: Mapping[str, int] = field(factory=dict)
    #: From ``a=ssrc`` lines where the client gave them; (primary, rtx) pairs.
    ssrcs: tuple[tuple[int, int | None], ...] = ()
    #: Simulcast rids in the client's order (RFC 8853), empty without.
    rids: tuple[str, ...] = ()


@frozen
class Downlinked:
    """One m-line on which we send somebody's track to the client, as negotiated.

    ``codecs`` are those that the client accepted, with its payload types.
    """

    track_id: str
    mid: str
    kind: str
    codecs: tuple[Codec, ...]
    ssrc: int
    rtx_ssrc: int | None
    cname: str
    extensions: Mapping[str, int] = field(factory=dict)


@frozen(repr=False)
class SrtpKeys:
    """What DTLS exported for SRTP (RFC 5764, 4.2), already told apart: ours to send, theirs to receive."""

    #: ``AEAD_AES_128_GCM``, ``AEAD_AES_256_GCM`` or ``AES128_CM_SHA1_80``.
    profile: str
    send_key: bytes
    send_salt: bytes
    receive_key: bytes
    receive_salt: bytes
