"""What a client's description says: each m-line of an offer or an answer as a :class:`Line`, and its transport.

Pure functions of the description and of what stood before; they raise :class:`SdpError` for what cannot be used and
never change anything. ``negotiation`` asks them before it takes a description over.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from attrs import evolve, frozen

from orama.sfu import payloads
from orama.sfu.lines import CHANNELS, MAX_MESSAGE, SCTP_PORT, Line
from orama.sfu.values import Codec, Uplinked
from orama.wire import sdp
from orama.wire.sdp import SdpError

#: Layers of a simulcast that we take.
MAX_RIDS = 3
#: SSRCs that an m-line may announce: one for each layer.
MAX_SSRCS = MAX_RIDS
#: Hashes of RFC 8122 that are still good.
HASHES = ("sha-256", "sha-384", "sha-512")


@frozen(repr=False)
class Transport:
    """The client's side of ICE and DTLS."""

    ice: sdp.Ice
    #: (hash, value) pairs.
    fingerprints: tuple[tuple[str, str], ...]


@frozen
class Rights:
    """What the client may do besides receiving."""

    #: Says so by kind and mid.
    publish: Callable[[str, str], bool]
    data: bool = True


@frozen
class Offered:
    """One m-line of an offer: what it becomes, and the permission that it lacks (``publish``, ``data``) if any."""

    line: Line
    lacks: str | None = None


def offered(
    session: sdp.Session, media: sdp.Media, old: Line | None, wanted: Container[str], rights: Rights
) -> Offered:
    """Read one m-line of the client's offer. An uplink has no track id yet.

    :param old: the m-line in its place that is in use with the same mid, None without.
    :param wanted: tracks that the client is to receive.
    """
    mid = old.mid if media.rejected and old is not None else sdp.mid(media)
    if old is not None and not old.stopped and old.kind != media.kind:
        raise SdpError("an m-line has changed its kind")
    refused = Line(mid, media.kind, stopped=True, protocol=media.protocol, formats=media.formats[:1])
    if media.rejected:
        return Offered(refused)
    if mid not in sdp.bundled(session):
        raise SdpError("an m-line is not in the BUNDLE group")
    if media.kind == "application":
        if not media.protocol.endswith("/DTLS/SCTP") or media.formats != (CHANNELS,):
            return Offered(refused)
        return Offered(evolve(_data(refused, media), stopped=False)) if rights.data else Offered(refused, "data")
    if media.kind not in ("audio", "video") or "RTP/SAVPF" not in media.protocol:
        return Offered(refused)
    if "rtcp-mux" not in media.attributes:
        raise SdpError("an m-line has no a=rtcp-mux")
    theirs = payloads.offered(media.kind, media)
    sending = old.sending if old is not None and old.sending and old.sending.wanted.track_id in wanted else None
    codecs: tuple[Codec, ...] = ()
    if sending is not None and old is not None:
        codecs = tuple(codec for codec in theirs if any(payloads.same(codec, ours) for ours in old.codecs))
        sending = sending if codecs else None
    codecs = codecs or payloads.first(theirs)
    if not codecs:
        return Offered(refused)
    way = sdp.direction(session, media)
    sends, receives = way in ("sendrecv", "sendonly"), way in ("sendrecv", "recvonly")
    extensions = payloads.extensions(media)
    uplink, permitted = None, sends and rights.publish(media.kind, mid)
    if permitted:
        rids = sdp.simulcast(media, "send")[:MAX_RIDS] if media.kind == "video" else ()
        uplink = Uplinked("", mid, media.kind, codecs, extensions, sdp.ssrcs(media)[:MAX_SSRCS], rids)
    line = Line(mid, media.kind, False, receives, codecs, extensions, uplink, sending)
    return Offered(line, "publish" if sends and not permitted else None)


def answered(session: sdp.Session, offer: Sequence[Line]) -> tuple[Line, ...]:
    """The m-lines of our *offer* as the client's answer leaves them. A new uplink has no track id yet.

    A page that adds a track while its browser takes our offer finds it on an m-line that we offered for sending alone.
    The answer can only say ``recvonly``, Chromium sees no need for an offer of its own (W3C webrtc-pc, 4.7.3), and
    nothing but the a=msid in the answer tells of the track. So it is for us to offer again.
    """
    if len(session.media) != len(offer):
        raise SdpError("it has not the m-lines of the offer")
    return tuple(_answered(session, media, line) for media, line in zip(session.media, offer, strict=True))


def _answered(session: sdp.Session, media: sdp.Media, line: Line) -> Line:
    if media.kind != line.kind:
        raise SdpError("it has not the m-lines of the offer")
    if media.port == 0:
        return evolve(line, stopped=True, uplink=None, sending=None, formats=media.formats[:1])
    if line.stopped or sdp.mid(media) != line.mid:
        raise SdpError("it has not the m-lines of the offer")
    if line.mid not in sdp.bundled(session):
        raise SdpError("an m-line is not in the BUNDLE group")
    if line.kind == "application":
        return _data(line, media)
    if "rtcp-mux" not in media.attributes:
        raise SdpError("an m-line has no a=rtcp-mux")
    codecs = payloads.accepted(line.codecs, payloads.offered(line.kind, media))
    if not codecs:
        raise SdpError("an m-line has none of the codecs of the offer")
    way = sdp.direction(session, media)
    sends, receives = way in ("sendrecv", "sendonly"), way in ("sendrecv", "recvonly")
    if (sends and line.uplink is None and not line.invited) or (receives and line.sending is None):
        raise SdpError("an m-line has a direction that the offer does not allow")
    known = payloads.extensions(media)
    extensions = {uri: number for uri, number in known.items() if uri in line.extensions}
    uplink = None
    if sends:
        before = line.uplink or Uplinked("", line.mid, line.kind, codecs)
        pairs = sdp.ssrcs(media)[:MAX_SSRCS] or before.ssrcs
        uplink = evolve(before, codecs=codecs, extensions=extensions, ssrcs=pairs)
    wishes = not sends and line.uplink is None and sdp.msid(media) is not None
    if line.sending is None:
        receives = line.receives
    return evolve(line, codecs=codecs, extensions=extensions, uplink=uplink, receives=receives, wishes=wishes)


def _data(line: Line, media: sdp.Media) -> Line:
    port = sdp.number(media.attributes.get("sctp-port") or str(SCTP_PORT), 65535)
    # Without the attribute it is 64 KiB, and 0 means any size (RFC 8841, 6).
    longest = sdp.number(media.attributes.get("max-message-size") or "65536", (1 << 64) - 1)
    return evolve(line, sctp_port=port, max_message=min(longest or MAX_MESSAGE, MAX_MESSAGE))


def transport(session: sdp.Session, lines: Sequence[Line], setups: tuple[str, ...]) -> Transport | None:
    """ICE and DTLS of the client: those of the first m-line of the bundle that is in use (RFC 9143, 7.1).

    :param setups: values of ``a=setup`` that leave us the server.
    """
    sections = {line.mid: media for media, line in zip(session.media, lines, strict=True) if not line.stopped}
    tag = next((mid for mid in sdp.bundled(session) if mid in sections), None)
    if tag is None:
        return None
    media = sections[tag]
    if sdp.setup(session, media) not in setups:
        raise SdpError(f"a=setup must be {' or '.join(setups)}")
    fingerprints = tuple(pair for pair in sdp.fingerprints(session, media) if pair[0] in HASHES)
    if not fingerprints:
        raise SdpError("a=fingerprint has no hash that we know")
    return Transport(sdp.ice(session, media), fingerprints)
