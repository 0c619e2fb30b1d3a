"""Offer and answer with one client over one peer connection (RFC 8829 seen from a server), sans-IO.

The client offers what it publishes, we offer what it is to receive; whoever speaks describes the whole connection.
When both offer at once ours is forgotten, and made again after the answer. Everything is checked before anything is
changed: a description that cannot be used raises :class:`SignalError` and leaves the last agreement in force.
``lines`` has what one m-line is, ``payloads`` the codecs; sending, timeouts and media are ``peer``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from attrs import evolve, frozen

from orama.errors import SignalError
from orama.net.fabric import Address
from orama.sfu import payloads
from orama.sfu.lines import CHANNELS, MAX_MESSAGE, SCTP_PORT, Line, Local, Sending, Wanted, written
from orama.sfu.media import RandomBits
from orama.sfu.payloads import Numbers
from orama.sfu.values import (
    AUDIO_LEVEL,
    DEPENDENCY_DESCRIPTOR,
    MID,
    REPAIRED_RID,
    RID,
    TRANSPORT_CC,
    VIDEO_ORIENTATION,
    Codec,
    Downlinked,
    Uplinked,
)
from orama.wire import sdp
from orama.wire.sdp import SdpError

#: m-lines up to which we add some of our own: the client's answer to more would not fit a signalling frame.
OFFERED_LINES = 64
#: Layers of a simulcast that we take.
MAX_RIDS = 3
#: Codecs taken per m-line. One: what is sent is then known, and descriptions of large rooms stay small.
CODECS = 1
#: Hashes of RFC 8122 that are still good.
HASHES = ("sha-256", "sha-384", "sha-512")

#: What we offer with a track. All of it, since Chromium offers on later m-lines of its own, on which it publishes, no
#: extension that was missing on the earlier ones; ``lines.SENT`` is what packets to clients carry.
OFFERED = {
    "audio": (AUDIO_LEVEL, TRANSPORT_CC, MID),
    "video": (VIDEO_ORIENTATION, TRANSPORT_CC, MID, RID, REPAIRED_RID, DEPENDENCY_DESCRIPTOR),
}


class Ice(Protocol):
    """The connection's ICE agent, as :class:`orama.sfu.ice.IceAgent` is."""

    @property
    def local_ufrag(self) -> str: ...
    @property
    def local_pwd(self) -> str: ...
    def set_remote(self, ufrag: str, pwd: str) -> None: ...
    def restart(self) -> None: ...


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


@frozen
class Answered:
    """Our answer, and what the client asked for without the permission: ``publish``, ``data``."""

    sdp: str
    agreement: Agreement
    forbidden: frozenset[str]


@frozen
class Proposed:
    """An offer of ours, and where the tracks that it brings stand in it: track id → mid."""

    sdp: str
    added: Mapping[str, str]


@frozen(repr=False)
class _Transport:
    ice: sdp.Ice
    fingerprints: tuple[tuple[str, str], ...]


@frozen
class _Outstanding:
    lines: tuple[Line, ...]
    sdp: str
    added: Mapping[str, str]
    #: The numbers with those that this offer gave: they hold when it is answered.
    numbers: Numbers


class Negotiator:
    """One client's side of the table.

    :param fingerprint: sha-256 of our certificate.
    :param address: where our media socket is.
    :param name_track: makes a track id that is unused in the room, from the client's own or from nothing.
    :param max_bitrate: bits per second that a video publisher is asked to stay under, 0 for no limit.
    """

    def __init__(
        self,
        ice: Ice,
        fingerprint: str,
        address: Address,
        random: RandomBits,
        name_track: Callable[[str | None], str],
        *,
        may_publish: bool = True,
        may_use_data: bool = True,
        max_bitrate: int = 0,
    ) -> None:
        self._ice = ice
        self._fingerprint = fingerprint
        self._address = address
        self._random = random
        self._name_track = name_track
        self._may_publish = may_publish
        self._may_use_data = may_use_data
        self._max_bitrate = max_bitrate
        self._session_id = random.getrandbits(62)
        self._version = 0
        self._lines: tuple[Line, ...] = ()
        self._outstanding: _Outstanding | None = None
        self._transport: _Transport | None = None
        self._wanted: dict[str, Wanted] = {}
        #: Where a track stood in an offer that was not answered: it stands there again in the next.
        self._promised: dict[str, str] = {}
        self._wants_data = False
        self._numbers = Numbers()
        self._mids = 0
        self._repeats = 0
        #: Answers that may still come to offers that we no longer wait on.
        self._stale = 0
        #: ``a=candidate`` lines of other types than relay, which are never used.
        self.candidates_dropped = 0

    # ---- what the client is to receive

    def want(self, track: Wanted) -> None:
        """The client is to receive *track*, or goes on receiving it in its new form."""
        self._wanted[track.track_id] = track

    def unwant(self, track_id: str) -> None:
        self._wanted.pop(track_id, None)
        self._promised.pop(track_id, None)

    def want_data(self) -> None:
        """The client is to have a data m-line; nothing changes when it has one or has refused it."""
        if not any(line.kind == "application" for line in self._lines):
            self._wants_data = True

    @property
    def offering(self) -> bool:
        """Whether an offer of ours waits for its answer."""
        return self._outstanding is not None

    @property
    def mids(self) -> dict[str, str]:
        """Track id → mid of what the client receives or is being offered."""
        lines = self._outstanding.lines if self._outstanding is not None else self._lines
        return {line.sending.wanted.track_id: line.mid for line in lines if line.sending is not None}

    # ---- our offers

    def propose(self) -> Proposed | None:
        """An offer of all that has changed; None when nothing has, or while another waits for its answer."""
        if self._outstanding is not None:
            return None
        numbers = self._numbers.copy()
        lines = self._next(numbers)
        if lines == self._lines:
            return None
        before = {line.sending.wanted.track_id: line.mid for line in self._lines if line.sending is not None}
        after = {line.sending.wanted.track_id: line.mid for line in lines if line.sending is not None}
        added = {track_id: mid for track_id, mid in after.items() if before.get(track_id) != mid}
        self._promised.update(added)
        self._outstanding = _Outstanding(lines, self._write(lines, answering=False), added, numbers)
        self._repeats = 0
        return Proposed(self._outstanding.sdp, added)

    def repeat(self) -> str | None:
        """The offer that waits for its answer, word for word; None when none does."""
        if self._outstanding is None:
            return None
        self._repeats += 1
        return self._outstanding.sdp

    def _next(self, numbers: Numbers) -> tuple[Line, ...]:
        """The m-lines as they should be: nothing that nobody wants, everything that somebody does."""
        lines = [self._kept(line, numbers) for line in self._lines]
        placed = {line.sending.wanted.track_id for line in lines if line.sending is not None}
        for track in self._wanted.values():
            if track.track_id not in placed:
                self._place(lines, track, numbers)
        if self._wants_data and not any(line.kind == "application" and not line.stopped for line in lines):
            _insert(lines, Line(self._new_mid(lines), "application"))
        return tuple(lines)

    def _kept(self, line: Line, numbers: Numbers) -> Line:
        if line.sending is None:
            return line
        wanted = self._wanted.get(line.sending.wanted.track_id)
        if wanted is None:
            return evolve(line, sending=None)
        if wanted == line.sending.wanted:
            return line
        if line.uplink is not None:
            # The client sends here with the same codecs: what we send moves to an m-line of its own.
            return evolve(line, sending=None)
        return _carrying(line, evolve(line.sending, wanted=wanted), numbers)

    def _place(self, lines: list[Line], track: Wanted, numbers: Numbers) -> None:
        rtx = self._ssrc(lines) if track.kind == "video" else None
        sending = Sending(track, self._ssrc(lines), rtx)
        promised = self._promised.get(track.track_id)
        free = [
            index
            for index, line in enumerate(lines)
            if line.kind == track.kind and not line.stopped and line.receives and not line.uplink and not line.sending
        ]
        if free:
            index = next((index for index in free if lines[index].mid == promised), free[0])
            lines[index] = _carrying(lines[index], sending, numbers)
        elif len(lines) < OFFERED_LINES or any(line.stopped for line in lines):
            taken = promised is None or any(line.mid == promised for line in lines)
            mid = self._new_mid(lines) if taken or promised is None else promised
            _insert(lines, _carrying(Line(mid, track.kind), sending, numbers))

    def _new_mid(self, lines: Sequence[Line]) -> str:
        taken = {line.mid for line in lines} | set(self._promised.values())
        while True:
            self._mids += 1
            mid = f"s{self._mids}"
            if mid not in taken:
                return mid

    def _ssrc(self, lines: Sequence[Line]) -> int:
        taken = {number for line in lines if line.sending for number in (line.sending.ssrc, line.sending.rtx_ssrc)}
        taken.update(number for line in lines if line.uplink for pair in line.uplink.ssrcs for number in pair)
        while True:
            ssrc = self._random.getrandbits(32)
            if ssrc and ssrc not in taken:
                return ssrc

    # ---- the client's offers

    def remote_offer(self, text: str) -> Answered:
        """Answer the client's offer. An offer of ours that waits is forgotten: :meth:`propose` makes the next.

        :raises SignalError: ``invalid_offer``; nothing has changed.
        """
        try:
            session = sdp.parse(text)
            lines, declined, forbidden = self._read_offer(session)
            transport = self._read_transport(session, lines, ("actpass", "active"))
        except SdpError as error:
            raise SignalError("invalid_offer", f"The offer cannot be used: {error}.") from None
        self._learn(session, lines)
        if self._outstanding is not None:
            self._outstanding = None
            self._stale += 1 + self._repeats
            self._repeats = 0
        self._take(transport, offered=True)
        self._lines = lines
        for track_id in declined:
            self.unwant(track_id)
        return Answered(self._write(lines, answering=True), self._agreement(declined), forbidden)

    def _read_offer(self, session: sdp.Session) -> tuple[tuple[Line, ...], frozenset[str], frozenset[str]]:
        """The m-lines that follow from the offer, the tracks it puts an end to, and what was not allowed."""
        if not session.media:
            raise SdpError("it has no m-line")
        if len(session.media) < len(self._lines):
            raise SdpError("m-lines of the description before are missing")
        group = frozenset(sdp.bundled(session))
        lines: list[Line] = []
        forbidden: set[str] = set()
        named: set[str] = set()
        for index, media in enumerate(session.media):
            old = self._lines[index] if index < len(self._lines) else None
            line = self._read_offered(session, media, old, group, forbidden)
            if line.kind == "application" and not line.stopped and any(_is_data(other) for other in lines):
                raise SdpError("it has two data m-lines")
            if line.uplink is not None:
                line = self._named(line, media, old, named)
            lines.append(line)
        _check_mids(lines)
        kept = {line.sending.wanted.track_id for line in lines if line.sending is not None}
        stopped = [old for old, line in zip(self._lines, lines, strict=False) if line.stopped and old.sending]
        ended = {old.sending.wanted.track_id for old in stopped if old.sending is not None}
        return tuple(lines), frozenset(ended - kept), frozenset(forbidden)

    def _read_offered(
        self, session: sdp.Session, media: sdp.Media, old: Line | None, group: frozenset[str], forbidden: set[str]
    ) -> Line:
        live = old if old is not None and not old.stopped else None
        mid = live.mid if media.rejected and live is not None else sdp.mid(media)
        if live is not None and (live.mid != mid or live.kind != media.kind):
            raise SdpError("an m-line has changed its place")
        refused = Line(mid, media.kind, stopped=True, protocol=media.protocol, formats=media.formats)
        if media.rejected:
            return refused
        if mid not in group:
            raise SdpError("an m-line is not in the BUNDLE group")
        if media.kind == "application":
            return self._read_data(media, refused, forbidden)
        if media.kind not in ("audio", "video") or "RTP/SAVPF" not in media.protocol:
            return refused
        if "rtcp-mux" not in media.attributes:
            raise SdpError("an m-line has no a=rtcp-mux")
        theirs = payloads.offered(media.kind, media)
        way = sdp.direction(session, media)
        sending = live.sending if live is not None else None
        if sending is not None and sending.wanted.track_id not in self._wanted:
            sending = None
        codecs: tuple[Codec, ...] = ()
        if sending is not None and live is not None:
            codecs = tuple(codec for codec in theirs if any(payloads.same(codec, ours) for ours in live.codecs))
            sending = sending if codecs else None
        codecs = codecs or theirs[:CODECS]
        if not codecs:
            return refused
        sends = way in ("sendrecv", "sendonly")
        if sends and not self._may_publish:
            forbidden.add("publish")
            sends = False
        extensions = payloads.extensions(media)
        uplink = None
        if sends:
            rids = sdp.simulcast(media, "send")[:MAX_RIDS] if media.kind == "video" else ()
            uplink = Uplinked("", mid, media.kind, codecs, extensions, sdp.ssrcs(media), rids)
        receives = way in ("sendrecv", "recvonly")
        return Line(mid, media.kind, False, receives, codecs, extensions, uplink, sending)

    def _read_data(self, media: sdp.Media, refused: Line, forbidden: set[str]) -> Line:
        if not media.protocol.endswith("/DTLS/SCTP") or media.formats != (CHANNELS,):
            return refused
        if not self._may_use_data:
            forbidden.add("data")
            return refused
        return evolve(_data(refused, media), stopped=False)

    def _named(self, line: Line, media: sdp.Media, old: Line | None, named: set[str]) -> Line:
        """*line* with a track id: the one that it had, or one made from its msid."""
        assert line.uplink is not None
        before = old.uplink if old is not None and not old.stopped else None
        if before is not None:
            track_id = before.track_id
        else:
            msid = sdp.msid(media)
            track_id = self._name_track(msid[1] if msid is not None else None)
            while track_id in named:
                track_id = self._name_track(None)
        named.add(track_id)
        return evolve(line, uplink=evolve(line.uplink, track_id=track_id))

    def _learn(self, session: sdp.Session, lines: Sequence[Line]) -> None:
        for media, line in zip(session.media, lines, strict=True):
            self.candidates_dropped += sum(1 for value in media.attributes.all("candidate") if " relay" not in value)
            if line.kind in ("audio", "video") and not line.stopped:
                self._numbers.learn(line.kind, media)

    # ---- the client's answers

    def remote_answer(self, text: str) -> Agreement | None:
        """Take the client's answer; None when it is a late one to an offer that we no longer wait on.

        :raises SignalError: ``invalid_answer``; the offer goes on waiting.
        """
        try:
            session = sdp.parse(text)
        except SdpError as error:
            raise SignalError("invalid_answer", f"The answer cannot be used: {error}.") from None
        try:
            if self._outstanding is None:
                raise SdpError("there is no offer that waits for it")
            lines = self._read_answer(session, self._outstanding.lines)
            transport = self._read_transport(session, lines, ("active",))
        except SdpError as error:
            if self._stale:
                self._stale -= 1
                return None
            raise SignalError("invalid_answer", f"The answer cannot be used: {error}.") from None
        declined = frozenset(
            offered.sending.wanted.track_id
            for offered, line in zip(self._outstanding.lines, lines, strict=True)
            if line.stopped and offered.sending is not None
        )
        for track_id in (*self._outstanding.added, *declined):
            self._promised.pop(track_id, None)
        for track_id in declined:
            self._wanted.pop(track_id, None)
        if any(line.kind == "application" for line in lines):
            self._wants_data = False
        self._numbers = self._outstanding.numbers
        self._learn(session, lines)
        self._outstanding = None
        self._stale, self._repeats = self._repeats, 0
        self._take(transport, offered=False)
        self._lines = lines
        return self._agreement(declined)

    def _read_answer(self, session: sdp.Session, offered: Sequence[Line]) -> tuple[Line, ...]:
        if len(session.media) != len(offered):
            raise SdpError("it has not the m-lines of the offer")
        group = frozenset(sdp.bundled(session))
        return tuple(
            self._read_answered(session, media, line, group) for media, line in zip(session.media, offered, strict=True)
        )

    def _read_answered(self, session: sdp.Session, media: sdp.Media, line: Line, group: frozenset[str]) -> Line:
        if media.kind != line.kind:
            raise SdpError("it has not the m-lines of the offer")
        if media.port == 0:
            return evolve(line, stopped=True, uplink=None, sending=None, formats=media.formats)
        if line.stopped or sdp.mid(media) != line.mid:
            raise SdpError("it has not the m-lines of the offer")
        if line.mid not in group:
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
        if (sends and line.uplink is None) or (receives and line.sending is None):
            raise SdpError("an m-line has a direction that the offer does not allow")
        known = payloads.extensions(media)
        extensions = {uri: number for uri, number in known.items() if uri in line.extensions}
        uplink = None
        if sends and line.uplink is not None:
            pairs = sdp.ssrcs(media) or line.uplink.ssrcs
            uplink = evolve(line.uplink, codecs=codecs, extensions=extensions, ssrcs=pairs)
        if line.sending is None:
            receives = line.receives
        return evolve(line, codecs=codecs, extensions=extensions, uplink=uplink, receives=receives)

    # ---- both

    def _read_transport(
        self, session: sdp.Session, lines: Sequence[Line], setups: tuple[str, ...]
    ) -> _Transport | None:
        """ICE and DTLS of the client: those of the first m-line of the bundle that is in use (RFC 9143, 7.1)."""
        live = {line.mid for line in lines if not line.stopped}
        sections = {media.attributes.get("mid"): media for media in session.media}
        tag = next((mid for mid in sdp.bundled(session) if mid in live), None)
        if tag is None:
            return None
        media = sections[tag]
        if sdp.setup(session, media) not in setups:
            raise SdpError(f"a=setup must be {' or '.join(setups)}")
        prints = tuple(pair for pair in sdp.fingerprints(session, media) if pair[0] in HASHES)
        if not prints:
            raise SdpError("a=fingerprint has no hash that we know")
        if self._transport is not None and self._transport.fingerprints != prints:
            raise SdpError("a=fingerprint is another than before")
        return _Transport(sdp.ice(session, media), prints)

    def _take(self, transport: _Transport | None, offered: bool) -> None:
        """Put the client's transport in force. New credentials in an offer are an ICE restart (RFC 8839, 4.4.1.1)."""
        if transport is None or (self._transport is not None and self._transport.ice == transport.ice):
            return
        if self._transport is not None and offered:
            self._ice.restart()
        self._transport = transport
        self._ice.set_remote(transport.ice.ufrag, transport.ice.pwd)

    def _agreement(self, declined: frozenset[str]) -> Agreement:
        live = [line for line in self._lines if not line.stopped]
        data = next(((line.sctp_port, line.max_message) for line in live if line.kind == "application"), None)
        return Agreement(
            tuple(line.uplink for line in live if line.uplink is not None),
            tuple(downlink for line in live if (downlink := line.downlink) is not None),
            self._transport.fingerprints if self._transport is not None and live else (),
            data,
            declined,
        )

    def _write(self, lines: Sequence[Line], *, answering: bool) -> str:
        local = Local(self._ice.local_ufrag, self._ice.local_pwd, self._fingerprint, self._address)
        live = [line.mid for line in lines if not line.stopped]
        self._version += 1
        media = tuple(written(line, local, answering=answering, max_bitrate=self._max_bitrate) for line in lines)
        attributes = (("group", " ".join(("BUNDLE", *live))), ("ice-lite", ""))
        return sdp.Session(self._session_id, self._version, attributes, media).serialise()


def _carrying(line: Line, sending: Sending, numbers: Numbers) -> Line:
    """*line* with *sending* on it, and codecs and extensions to match."""
    wanted = sending.wanted
    video = wanted.kind == "video"
    feedback = payloads.FEEDBACK if video else payloads.AUDIO_FEEDBACK
    codecs = tuple(evolve(numbers.place(codec, video), feedback=feedback) for codec in wanted.codecs)
    numbered = ((uri, numbers.extension(uri)) for uri in OFFERED[wanted.kind])
    extensions = {uri: number for uri, number in numbered if number is not None and number <= payloads.LAST_ID}
    return evolve(line, codecs=codecs, extensions=extensions, sending=sending)


def _insert(lines: list[Line], line: Line) -> None:
    """Put *line* in the place of a stopped one, else at the end."""
    for index, old in enumerate(lines):
        if old.stopped:
            lines[index] = line
            return
    lines.append(line)


def _check_mids(lines: Sequence[Line]) -> None:
    live = [line.mid for line in lines if not line.stopped]
    if len(set(live)) != len(live):
        raise SdpError("a mid is used twice")


def _is_data(line: Line) -> bool:
    return line.kind == "application" and not line.stopped


def _data(line: Line, media: sdp.Media) -> Line:
    port = sdp.number(media.attributes.get("sctp-port") or str(SCTP_PORT), 65535)
    # Without the attribute it is 64 KiB, and 0 means any size (RFC 8841, 6).
    longest = sdp.number(media.attributes.get("max-message-size") or "65536", (1 << 64) - 1)
    return evolve(line, sctp_port=port, max_message=min(longest or MAX_MESSAGE, MAX_MESSAGE))
