"""One m-line of a client's connection: what both sides do on it, and how it stands in a description of ours.

An m-line carries at most one track of the client's to us and one track of somebody else's to the client. Values are
frozen, so that an offer that fails is undone by forgetting it. What follows what is decided in ``negotiation``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import field, frozen

from orama.net.fabric import Address
from orama.sfu.values import (
    AUDIO_LEVEL,
    DEPENDENCY_DESCRIPTOR,
    MID,
    TRANSPORT_CC,
    VIDEO_ORIENTATION,
    Codec,
    Downlinked,
    Uplinked,
)
from orama.wire import sdp

RTP = "UDP/TLS/RTP/SAVPF"
SCTP = "UDP/DTLS/SCTP"
CHANNELS = "webrtc-datachannel"
#: The port of the association, a number inside DTLS (RFC 8841, 5), and the longest message that we take.
SCTP_PORT = 5000
MAX_MESSAGE = 262144
#: Header extensions of packets to clients that are ours to add, and those that come from the publisher. Without a
#: transport-wide sequence number browsers estimate by themselves and tell us in REMB, once a second.
OURS = frozenset({MID, TRANSPORT_CC})
SENT = frozenset({AUDIO_LEVEL, VIDEO_ORIENTATION, DEPENDENCY_DESCRIPTOR})


@frozen
class Wanted:
    """A track of somebody else's that the client is to receive."""

    track_id: str
    #: The publisher: stream id (msid) and cname.
    peer_id: str
    kind: str
    #: As the publisher sends it.
    codecs: tuple[Codec, ...]
    #: URIs of the header extensions that the publisher sends.
    extensions: frozenset[str] = frozenset()


@frozen
class Sending:
    """What we send on an m-line."""

    wanted: Wanted
    ssrc: int
    rtx_ssrc: int | None


@frozen
class Line:
    """An m-line as agreed, or as we offer it."""

    mid: str
    kind: str
    #: Port 0: nothing passes, and the place may be taken by another m-line (RFC 8829, 5.2.2).
    stopped: bool = False
    #: Whether the client takes what we send, by the last direction it chose.
    receives: bool = True
    codecs: tuple[Codec, ...] = ()
    #: URI → id.
    extensions: Mapping[str, int] = field(factory=dict)
    uplink: Uplinked | None = None
    sending: Sending | None = None
    #: Whether the client has a track here that our offer left no room for, see ``reading.answered``.
    wishes: bool = False
    #: Whether our offers say that it may send here, because it wished to.
    invited: bool = False
    #: Of the client's data m-line.
    sctp_port: int = SCTP_PORT
    max_message: int = 65536
    #: Protocol and formats, to refuse what we do not know in its own words.
    protocol: str = RTP
    formats: tuple[str, ...] = ("0",)

    @property
    def downlink(self) -> Downlinked | None:
        """What we may send now, None when nothing is wanted or the client does not take it."""
        if self.stopped or self.sending is None or not self.receives or not self.codecs:
            return None
        sending = self.sending
        sent = OURS | (SENT & sending.wanted.extensions)
        return Downlinked(
            sending.wanted.track_id,
            self.mid,
            self.kind,
            self.codecs,
            sending.ssrc,
            sending.rtx_ssrc,
            sending.wanted.peer_id,
            {uri: number for uri, number in self.extensions.items() if uri in sent},
        )


@frozen(repr=False)
class Local:
    """Our side of the transport, the same on every m-line."""

    ufrag: str
    pwd: str
    #: sha-256, as hexadecimal pairs with colons.
    fingerprint: str
    address: Address


def written(line: Line, local: Local, *, answering: bool, max_bitrate: int = 0) -> sdp.Media:
    """The section for *line* in an answer or an offer."""
    if line.stopped:
        return sdp.Media(line.kind, 0, line.protocol, line.formats, (("mid", line.mid), ("inactive", "")))
    attributes = list(_transport(line, local, answering))
    if line.kind == "application":
        attributes.append(("sctp-port", str(SCTP_PORT)))
        attributes.append(("max-message-size", str(MAX_MESSAGE)))
        return sdp.Media(line.kind, 9, SCTP, (CHANNELS,), attributes)
    sends = line.sending is not None and (line.receives or not answering)
    receives = line.uplink is not None or line.invited
    attributes.append((_direction(sends, receives), ""))
    attributes.append(("rtcp-mux", ""))
    attributes.append(("rtcp-rsize", ""))
    attributes.extend(("extmap", f"{number} {uri}") for uri, number in line.extensions.items())
    attributes.extend(_payloads(line.codecs))
    if line.uplink is not None and line.uplink.rids:
        attributes.extend(("rid", f"{rid} recv") for rid in line.uplink.rids)
        attributes.append(("simulcast", f"recv {';'.join(line.uplink.rids)}"))
    if sends and line.sending is not None:
        attributes.extend(_sources(line.sending))
    numbers = [number for codec in line.codecs for number in (codec.payload_type, codec.rtx_payload_type)]
    formats = tuple(str(number) for number in numbers if number is not None)
    capped = max_bitrate and line.kind == "video" and receives
    return sdp.Media(line.kind, 9, RTP, formats, attributes, max(1, max_bitrate // 1000) if capped else None)


def _transport(line: Line, local: Local, answering: bool) -> Iterator[sdp.Attribute]:
    yield "mid", line.mid
    yield "ice-ufrag", local.ufrag
    yield "ice-pwd", local.pwd
    yield "fingerprint", f"sha-256 {local.fingerprint}"
    yield "setup", "passive" if answering else "actpass"
    # On every m-line: the first alone would do with browsers, but aiortc takes those of the last in the bundle.
    host, port = local.address
    # The priority of a single host candidate (RFC 8445, 5.1.2).
    yield "candidate", f"1 1 udp 2130706431 {host} {port} typ host"
    yield "end-of-candidates", ""


def _direction(sends: bool, receives: bool) -> str:
    if sends:
        return "sendrecv" if receives else "sendonly"
    return "recvonly" if receives else "inactive"


def _payloads(codecs: tuple[Codec, ...]) -> Iterator[sdp.Attribute]:
    for codec in codecs:
        number, name = codec.payload_type, codec.mime.partition("/")[2]
        channels = f"/{codec.channels}" if codec.channels > 1 else ""
        yield "rtpmap", f"{number} {name}/{codec.clock_rate}{channels}"
        for feedback in sorted(codec.feedback):
            yield "rtcp-fb", f"{number} {feedback}"
        if codec.fmtp:
            yield "fmtp", f"{number} {codec.fmtp}"
        if codec.rtx_payload_type is not None:
            yield "rtpmap", f"{codec.rtx_payload_type} rtx/{codec.clock_rate}"
            yield "fmtp", f"{codec.rtx_payload_type} apt={number}"


def _sources(sending: Sending) -> Iterator[sdp.Attribute]:
    wanted = sending.wanted
    yield "msid", f"{wanted.peer_id} {wanted.track_id}"
    if sending.rtx_ssrc is not None:
        yield "ssrc-group", f"FID {sending.ssrc} {sending.rtx_ssrc}"
    for ssrc in (sending.ssrc, sending.rtx_ssrc):
        if ssrc is not None:
            yield "ssrc", f"{ssrc} cname:{wanted.peer_id}"
