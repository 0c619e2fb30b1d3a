"""Offer and answer with one client over one peer connection (RFC 8829 seen from a server), sans-IO.

The client offers what it publishes, we offer what it is to receive; whoever speaks describes the whole connection.
When both offer at once ours is forgotten, and made again after the answer. Everything is checked before anything is
changed: a description that cannot be used raises :class:`SignalError` and leaves the last agreement in force.
``lines`` has what one m-line is, ``reading`` what the client says of it, ``payloads`` the codecs; sending, timeouts and
media are ``connection``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from attrs import evolve

from orama.errors import SignalError
from orama.net.fabric import Address
from orama.sfu import payloads, reading
from orama.sfu.agreement import Agreement, Answered, Outstanding, Proposed
from orama.sfu.lines import Line, Local, Sending, Wanted, written
from orama.sfu.media import RandomBits
from orama.sfu.payloads import Numbers
from orama.sfu.reading import Transport
from orama.sfu.red import is_red, relinked
from orama.sfu.values import (
    AUDIO_LEVEL,
    DEPENDENCY_DESCRIPTOR,
    MID,
    REPAIRED_RID,
    RID,
    TRANSPORT_CC,
    VIDEO_ORIENTATION,
    Uplinked,
)
from orama.wire import sdp
from orama.wire.sdp import SdpError

#: m-lines up to which we add some of our own: the client's answer to more would not fit a signalling frame.
OFFERED_LINES = 64
#: Tracks that one client may publish where nothing else is said; each takes an m-line of every other client.
MAX_UPLINKS = 32
#: From one SSRC to the next: 2³² divided by the golden ratio, so that they lie far apart.
SSRC_STEP = 0x9E3779B1
#: Late answers that are forgiven.
MAX_STALE = 16
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
    def revert(self) -> None: ...


def _nameless(_: str | None) -> str:
    return ""


def _nobody_may(kind: str, mid: str) -> bool:
    return False


class Negotiator:
    """One client's side of the table.

    :param fingerprint: sha-256 of our certificate.
    :param address: where our media socket is.
    :param name_track: makes a track id that is unused in the room, from the client's own or from nothing.
    :param may_publish: whether the client may publish on an m-line, by kind and mid.
    :param max_uplinks: tracks that it may publish.
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
        may_publish: Callable[[str, str], bool] = lambda kind, mid: True,
        may_use_data: bool = True,
        max_uplinks: int = MAX_UPLINKS,
        max_bitrate: int = 0,
    ) -> None:
        self._ice = ice
        self._fingerprint = fingerprint
        self._address = address
        self._random = random
        self._name_track = name_track
        self._rights = reading.Rights(may_publish, may_use_data)
        self._max_uplinks = max_uplinks
        self._max_bitrate = max_bitrate
        self._session_id = random.getrandbits(62)
        self._version = 0
        self._ssrc_drawn = random.getrandbits(32)
        self._lines: tuple[Line, ...] = ()
        self._outstanding: Outstanding | None = None
        self._transport: Transport | None = None
        self._wanted: dict[str, Wanted] = {}
        #: Where a track stood in an offer that was not answered: it stands there again in the next.
        self._promised: dict[str, str] = {}
        self._wants_data = False
        self._restarts = False
        self._numbers = Numbers()
        self._mids = 0
        self._repeats = 0
        #: The last offer that was answered, while its m-lines are in force.
        self._answered: Outstanding | None = None
        #: Answers that may still come to offers that we no longer wait on.
        self._stale = 0
        #: ``a=candidate`` lines of other types than relay, which are never used.
        self.candidates_dropped = 0

    def close(self) -> None:
        """There will be no more descriptions: let go of who was asked for names and rights."""
        self._name_track = _nameless
        self._rights = reading.Rights(_nobody_may)

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

    def restart(self) -> None:
        """The next offer restarts ICE (RFC 8839, 4.4.1.1); nothing happens before there is an agreement."""
        self._restarts = self._transport is not None

    @property
    def offering(self) -> bool:
        """Whether an offer of ours waits for its answer."""
        return self._outstanding is not None

    @property
    def repeated(self) -> bool:
        """Whether an offer of ours has been answered that was made more than once: the client may take it again."""
        return self._stale > 0

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
        if lines == self._lines and not self._restarts:
            return None
        restarts, self._restarts = self._restarts, False
        if restarts:
            self._ice.restart()
        before = {line.sending.wanted.track_id: line.mid for line in self._lines if line.sending is not None}
        after = {line.sending.wanted.track_id: line.mid for line in lines if line.sending is not None}
        added = {track_id: mid for track_id, mid in after.items() if before.get(track_id) != mid}
        self._promised.update(added)
        self._outstanding = Outstanding(lines, self._write(lines, answering=False), added, numbers, restarts)
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
        lines = self._inviting(self._kept(line, numbers) for line in self._lines)
        placed = {line.sending.wanted.track_id for line in lines if line.sending is not None}
        for track in self._wanted.values():
            if track.track_id not in placed:
                self._place(lines, track, numbers)
        if self._wants_data and not any(line.kind == "application" and not line.stopped for line in lines):
            _insert(lines, Line(self._new_mid(lines), "application"))
        return tuple(lines)

    def _inviting(self, lines: Iterable[Line]) -> list[Line]:
        """*lines*, on which those that the client wished to send on are open to it."""
        lines = list(lines)
        room = self._max_uplinks - sum(line.uplink is not None for line in lines)
        for index, line in enumerate(lines):
            uninvited = line.wishes and not line.invited and not line.stopped
            if uninvited and room > 0 and self._rights.publish(line.kind, line.mid):
                lines[index] = evolve(line, invited=True)
                room -= 1
        return lines

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
            # An odd step goes through all numbers before one comes again: under one SSRC and key the packets of two
            # subscriptions would share their indexes.
            self._ssrc_drawn = (self._ssrc_drawn + SSRC_STEP) & 0xFFFFFFFF
            if self._ssrc_drawn and self._ssrc_drawn not in taken:
                return self._ssrc_drawn

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
            raise SignalError("invalid_offer", f"the offer cannot be used: {error}") from None
        self._learn(session, lines)
        if self._outstanding is not None:
            if self._outstanding.restarts:
                # Who has not taken our offer takes no new credentials in an answer either (RFC 8839, 4.4.3).
                self._ice.revert()
                self._restarts = True
            self._outstanding = None
            self._stale = min(MAX_STALE, self._stale + 1 + self._repeats)
            self._repeats = 0
        self._answered = None
        self._take(transport, offered=True)
        self._lines = lines
        for track_id in declined:
            self.unwant(track_id)
        mixed = "extmap-allow-mixed" in session.attributes
        return Answered(self._write(lines, answering=True, mixed=mixed), self._agreement(declined), forbidden)

    def _read_offer(self, session: sdp.Session) -> tuple[tuple[Line, ...], frozenset[str], frozenset[str]]:
        """The m-lines that follow from the offer, the tracks it puts an end to, and what was not allowed."""
        if not session.media:
            raise SdpError("it has no m-line")
        if len(session.media) < len(self._lines):
            raise SdpError("m-lines of the description before are missing")
        places = {line.mid: index for index, line in enumerate(self._lines) if not line.stopped}
        lines: list[Line] = []
        forbidden: set[str] = set()
        named: set[str] = set()
        for index, media in enumerate(session.media):
            place = places.get(media.attributes.get("mid") or "")
            if place is not None and place != index:
                raise SdpError("an m-line has changed its place")
            # Another mid than ours: the client has stopped the m-line, and we have missed the answer that said so.
            old = self._lines[index] if place is not None or (media.rejected and index < len(self._lines)) else None
            read = reading.offered(session, media, old, self._wanted, self._rights)
            line = read.line
            if read.lacks is not None:
                forbidden.add(read.lacks)
            if _is_data(line) and any(_is_data(other) for other in lines):
                raise SdpError("it has two data m-lines")
            if line.uplink is not None and len(named) >= self._max_uplinks:
                line = evolve(line, uplink=None)
                forbidden.add("tracks")
            if line.uplink is not None:
                line = self._named(line, media, old.uplink if old is not None else None, named)
            lines.append(line)
        live = [line.mid for line in lines if not line.stopped]
        if len(set(live)) != len(live):
            raise SdpError("a mid is used twice")
        kept = {line.sending.wanted.track_id for line in lines if line.sending is not None}
        stopped = [old for old, line in zip(self._lines, lines, strict=False) if line.stopped and old.sending]
        ended = {old.sending.wanted.track_id for old in stopped if old.sending is not None}
        return tuple(lines), frozenset(ended - kept), frozenset(forbidden)

    def _named(self, line: Line, media: sdp.Media, before: Uplinked | None, named: set[str]) -> Line:
        """*line* with a track id: the one that it had, or one made from its msid."""
        assert line.uplink is not None
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
        """Take the client's answer; None when it is a late one that changes nothing.

        After a repeated offer more answers than one may come, the first of them perhaps while the next offer waits. So
        one that comes when none waits is read as the last word on the offer before it.

        :raises SignalError: ``invalid_answer``; an offer that waits goes on waiting.
        """
        offer = self._outstanding or (self._answered if self._stale else None)
        try:
            session = sdp.parse(text)
        except SdpError as error:
            raise SignalError("invalid_answer", f"the answer cannot be used: {error}") from None
        try:
            if offer is None:
                raise SdpError("there is no offer that waits for it")
            lines = self._read_answer(session, offer.lines)
            # Who is the DTLS server is settled once (RFC 8842, 5.5). Pion says passive to whoever is lite, at any time.
            setups = ("active",) if self._transport is None else ("active", "passive")
            transport = self._read_transport(session, lines, setups)
        except SdpError as error:
            if self._stale:
                self._stale -= 1
                return None
            raise SignalError("invalid_answer", f"the answer cannot be used: {error}") from None
        if offer is self._outstanding:
            self._stale = min(MAX_STALE, self._stale + self._repeats)
            self._repeats = 0
            self._numbers = offer.numbers
            # Without its text, of which a room of fifty makes 40 kB: an answered offer is not made again.
            self._outstanding, self._answered = None, evolve(offer, sdp="")
        else:
            self._stale -= 1
        declined = frozenset(
            offered.sending.wanted.track_id
            for offered, line in zip(offer.lines, lines, strict=True)
            if line.stopped and offered.sending is not None
        )
        for track_id in (*offer.added, *declined):
            self._promised.pop(track_id, None)
        for track_id in declined:
            self._wanted.pop(track_id, None)
        if any(line.kind == "application" for line in lines):
            self._wants_data = False
        self._learn(session, lines)
        self._take(transport, offered=False)
        self._lines = lines
        return self._agreement(declined)

    def _read_answer(self, session: sdp.Session, offered: Sequence[Line]) -> tuple[Line, ...]:
        lines = list(reading.answered(session, offered))
        named = {line.uplink.track_id for line in lines if line.uplink is not None}
        # An answer that comes a second time means the tracks of the first.
        before = {line.mid: line.uplink for line in self._lines}
        for index, (media, line, old) in enumerate(zip(session.media, lines, offered, strict=True)):
            if line.uplink is not None and old.uplink is None:
                lines[index] = self._named(line, media, before.get(line.mid), named)
        return tuple(lines)

    # ---- both

    def _read_transport(self, session: sdp.Session, lines: Sequence[Line], setups: tuple[str, ...]) -> Transport | None:
        transport = reading.transport(session, lines, setups)
        before = self._transport
        if transport is not None and before is not None and transport.fingerprints != before.fingerprints:
            raise SdpError("a=fingerprint is another than before")
        return transport

    def _take(self, transport: Transport | None, offered: bool) -> None:
        """Put the client's transport in force. New credentials in an offer are an ICE restart (RFC 8839, 4.4.1.1)."""
        if transport is None or (self._transport is not None and self._transport.ice == transport.ice):
            return
        if self._transport is not None and offered:
            self._ice.restart()
            self._restarts = False
        self._transport = transport
        self._ice.set_remote(transport.ice.ufrag, transport.ice.pwd)

    def _agreement(self, declined: frozenset[str]) -> Agreement:
        live = [line for line in self._lines if not line.stopped]
        data = next(((line.sctp_port, line.max_message) for line in live if line.kind == "application"), None)
        return Agreement(
            tuple(line.uplink for line in live if line.uplink is not None),
            tuple(each for line in live if (each := line.downlink) is not None and each.track_id in self._wanted),
            self._transport.fingerprints if self._transport is not None and live else (),
            data,
            declined,
            frozenset(self._resting()),
        )

    def _resting(self) -> Iterator[int]:
        """SSRCs of m-lines in force, and of those that a second answer to the last offer may bring back."""
        for line in (*self._lines, *(self._answered.lines if self._answered is not None else ())):
            if line.sending is not None:
                yield line.sending.ssrc
                if line.sending.rtx_ssrc is not None:
                    yield line.sending.rtx_ssrc

    def _write(self, lines: Sequence[Line], *, answering: bool, mixed: bool = True) -> str:
        local = Local(self._ice.local_ufrag, self._ice.local_pwd, self._fingerprint, self._address)
        live = [line.mid for line in lines if not line.stopped]
        self._version += 1
        media = tuple(written(line, local, answering=answering, max_bitrate=self._max_bitrate) for line in lines)
        attributes = [("group", " ".join(("BUNDLE", *live))), ("ice-lite", "")]
        if mixed:
            # Two-byte header extensions (RFC 8285, 6). Where they are not allowed a browser leaves out the dependency
            # descriptor of a keyframe, which has 20 bytes, and then nobody can decode layers of AV1.
            attributes.append(("extmap-allow-mixed", ""))
        return sdp.Session(self._session_id, self._version, attributes, media).serialise()


def _carrying(line: Line, sending: Sending, numbers: Numbers) -> Line:
    """*line* with *sending* on it, and codecs and extensions to match."""
    wanted = sending.wanted
    video = wanted.kind == "video"
    feedback = payloads.FEEDBACK if video else payloads.AUDIO_FEEDBACK
    placed = [evolve(numbers.place(codec, video), feedback=feedback) for codec in wanted.codecs]
    # RED last: who takes over the m-line to send need not send it too.
    codecs = tuple(sorted(relinked(wanted.codecs, placed), key=is_red))
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


def _is_data(line: Line) -> bool:
    return line.kind == "application" and not line.stopped
