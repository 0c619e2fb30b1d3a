"""A browser's peer connection reduced to its signalling (RFC 8829): a second opinion on every description of ours.

It publishes, receives, ignores offers while one of its own is on the way or takes that back, and refuses what Chromium
and Firefox refuse: m-lines in another order, a payload type or an extension id with two meanings, an msid that is there
twice, ICE credentials that changed for no reason.
"""

from __future__ import annotations

from attrs import define, field

from orama.sfu.values import AUDIO_LEVEL, MID, REPAIRED_RID, RID, TRANSPORT_CC
from orama.wire import sdp

CODECS = {"audio": [(111, "opus/48000/2")], "video": [(96, "VP8/90000"), (102, "H264/90000")]}
H264 = "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f"
EXTENSIONS = {
    "audio": [(1, AUDIO_LEVEL), (3, TRANSPORT_CC), (4, MID)],
    "video": [(3, TRANSPORT_CC), (4, MID), (10, RID), (11, REPAIRED_RID)],
}
FINGERPRINT = "sha-256 " + ":".join(["AB"] * 32)


class Refused(Exception):
    """The browser's ``setRemoteDescription`` would fail."""


@define(eq=False)
class Transceiver:
    kind: str
    mid: str | None = None
    #: Track id of what it sends; None when it does not.
    track: str | None = None
    used: bool = False
    receives: bool = True
    stopped: bool = False
    #: Port 0 in an agreement: the place may be taken by another.
    gone: bool = False
    #: What the SFU says that it sends here: stream and track id.
    msid: tuple[str, str] | None = None
    #: Whether the last answer took what we send.
    accepted: bool = False
    formats: list[tuple[int, str]] = field(factory=list)


class Browser:
    """One ``RTCPeerConnection`` and its page.

    :ivar yields: whether the page hands our offer to ``setRemoteDescription`` also while its own is on the way, which
        takes its own back (RFC 8829, 4.1.8.2); else it ignores ours then.
    """

    yields = False

    def __init__(self, ufrag: str = "abcd") -> None:
        self.lines: list[Transceiver] = []
        self.loose: list[Transceiver] = []
        self.offering = False
        self.ufrag = ufrag
        #: The next offer is to have new ICE credentials.
        self.restarting = False
        self.restarts = 0
        #: The SFU's ufrag, as far as agreed on.
        self.remote_ufrag = ""
        self._before: tuple[list[Transceiver], list[Transceiver], str] = ([], [], ufrag)
        self.ids: dict[int, str] = {number: uri for pairs in EXTENSIONS.values() for number, uri in pairs}
        self._mids = 0

    # ---- what a page does

    def add_track(self, kind: str, track: str) -> None:
        """Take over a transceiver that has never sent, as ``addTrack`` does, or make one."""
        for each in (*self.lines, *self.loose):
            if each.kind == kind and not each.used and not each.stopped:
                each.track, each.used = track, True
                return
        self.add_transceiver(kind, track)

    def add_transceiver(self, kind: str, track: str | None, receives: bool = True) -> None:
        self.loose.append(Transceiver(kind, track=track, used=track is not None, receives=receives))

    def remove_track(self, track: str) -> None:
        for each in (*self.lines, *self.loose):
            if each.track == track:
                each.track = None

    def stop(self, track: str) -> None:
        for each in self.lines:
            if each.track == track:
                each.stopped, each.track = True, None

    @property
    def tracks(self) -> set[str]:
        return {each.track for each in (*self.lines, *self.loose) if each.track is not None and not each.stopped}

    @property
    def sending(self) -> set[str]:
        """Tracks that an answer has accepted."""
        return {each.track for each in self.lines if each.track and each.accepted and not each.stopped}

    @property
    def receiving(self) -> dict[str, tuple[str, str]]:
        """Mid → what comes there."""
        return {each.mid: each.msid for each in self.lines if each.mid and each.msid and not each.stopped}

    # ---- offer and answer

    def offer(self) -> str:
        self._before = (list(self.lines), list(self.loose), self.ufrag)
        if self.restarting and any(not each.stopped for each in (*self.lines, *self.loose)):
            self._restart()
        for each in list(self.loose):
            self.loose.remove(each)
            each.mid = self._new_mid()
            self._place(each)
        self.offering = True
        return self._describe([self._section(each, "actpass", self._way(each)) for each in self.lines])

    def rollback(self) -> None:
        """Take our offer back: its new m-lines and credentials are nobody's again."""
        self.lines, self.loose, ufrag = self._before
        for each in self.loose:
            each.mid = None
        self.restarting, self.ufrag = self.ufrag != ufrag, ufrag
        self.offering = False

    def _restart(self) -> None:
        self.restarts += 1
        self.ufrag = f"{self.ufrag[:4]}{self.restarts}"
        self.restarting = False

    def take_answer(self, text: str) -> None:
        session = sdp.parse(text)
        if not self.offering or len(session.media) != len(self.lines):
            raise Refused("an answer that fits no offer")
        self._check(session)
        remote = self._remote(session)
        if self.remote_ufrag and remote not in ("", self.remote_ufrag) and self.ufrag == self._before[2]:
            raise Refused("an ICE restart that was not asked for")
        self.remote_ufrag = remote or self.remote_ufrag
        for media, each in zip(session.media, self.lines, strict=True):
            if media.rejected:
                each.stopped = each.gone = True
                continue
            way = sdp.direction(session, media)
            each.accepted = way in ("recvonly", "sendrecv")
            each.msid = sdp.msid(media) if way in ("sendonly", "sendrecv") else None
        self.offering = False

    def take_offer(self, text: str) -> str | None:
        """The answer; None when the offer is ignored, since one of its own is on the way."""
        if self.offering and not self.yields:
            return None
        if self.offering:
            self.rollback()
        session = sdp.parse(text)
        if len(session.media) < len(self.lines):
            raise Refused("m-lines are missing")
        self._check(session)
        remote = self._remote(session)
        if self.remote_ufrag and remote not in ("", self.remote_ufrag):
            self._restart()
        self.remote_ufrag = remote or self.remote_ufrag
        answers = []
        for index, media in enumerate(session.media):
            each = self._associated(index, media)
            if media.rejected or each.stopped:
                each.stopped = each.gone = True
                answers.append(self._section(each, "active", "inactive"))
                continue
            if media.kind == "application":
                answers.append(self._section(each, "active", "sendrecv"))
                continue
            each.formats = [(one.payload_type, f"{one.name}/{one.clock_rate}") for one in sdp.formats(media)]
            way = sdp.direction(session, media)
            takes, gives = way in ("sendonly", "sendrecv"), way in ("recvonly", "sendrecv")
            each.msid = sdp.msid(media) if takes else None
            each.accepted = gives and each.track is not None
            receives = takes and each.receives
            mine = {(False, False): "inactive", (True, False): "sendonly", (False, True): "recvonly"}
            answers.append(self._section(each, "active", mine.get((each.accepted, receives), "sendrecv"), media))
        return self._describe(answers)

    def _remote(self, session: sdp.Session) -> str:
        return next((sdp.ice(session, media).ufrag for media in session.media if not media.rejected), "")

    @property
    def needs_negotiation(self) -> bool:
        """What is left to offer after an answer (W3C webrtc-pc, 4.7.3). A track on an m-line that we were offered for
        receiving is not: its a=msid stood in the answer.
        """
        return self.restarting or bool(self.loose) or any(each.stopped and not each.gone for each in self.lines)

    def _associated(self, index: int, media: sdp.Media) -> Transceiver:
        mid = media.attributes.get("mid")
        if index < len(self.lines):
            each = self.lines[index]
            if each.mid == mid:
                return each
            if not each.gone:
                raise Refused("the order of m-lines has changed")
            self.lines[index] = Transceiver(media.kind, mid=mid)
            return self.lines[index]
        self.lines.append(Transceiver(media.kind, mid=mid))
        return self.lines[-1]

    def _place(self, each: Transceiver) -> None:
        for index, old in enumerate(self.lines):
            if old.gone:
                self.lines[index] = each
                return
        self.lines.append(each)

    def _new_mid(self) -> str:
        taken = {each.mid for each in self.lines}
        while (mid := str(self._mids)) in taken:
            self._mids += 1
        self._mids += 1
        return mid

    def _check(self, session: sdp.Session) -> None:
        """What a browser checks across the m-lines of a bundle."""
        meanings: dict[int, tuple[object, ...]] = {}
        msids: set[tuple[str, str]] = set()
        group = sdp.bundled(session)
        for media in session.media:
            if media.rejected:
                continue
            multiplexed = "rtcp-mux" in media.attributes or media.kind == "application"
            if media.attributes.get("mid") not in group or not multiplexed:
                raise Refused("not in the bundle, or not multiplexed")
            if media.kind == "application":
                continue
            for one in sdp.formats(media):
                parameters = sdp.parameters(one.parameters)
                told_apart = ("apt", "packetization-mode", "profile-id", "profile")
                meaning = (one.name, one.clock_rate, *(parameters.get(name) for name in told_apart))
                if meanings.setdefault(one.payload_type, meaning) != meaning:
                    raise Refused(f"payload type {one.payload_type} means two things")
            for extension in sdp.extensions(media):
                if self.ids.setdefault(extension.id, extension.uri) != extension.uri:
                    raise Refused(f"extension id {extension.id} is used again")
            msid = sdp.msid(media)
            if msid is not None:
                if msid in msids:
                    raise Refused("an msid is there twice")
                msids.add(msid)

    def _way(self, each: Transceiver) -> str:
        if each.track is None:
            return "recvonly" if each.receives else "inactive"
        return "sendrecv" if each.receives else "sendonly"

    def _section(self, each: Transceiver, setup: str, way: str, offer: sdp.Media | None = None) -> sdp.Media:
        mid = each.mid or ""
        if each.stopped:
            return sdp.Media(each.kind, 0, "UDP/TLS/RTP/SAVPF", ("0",), (("mid", mid), ("inactive", "")))
        attributes = [
            ("ice-ufrag", self.ufrag),
            ("ice-pwd", "p" * 24),
            ("fingerprint", FINGERPRINT),
            ("setup", setup),
            ("mid", mid),
        ]
        if each.kind == "application":
            return sdp.Media(each.kind, 9, "UDP/DTLS/SCTP", ("webrtc-datachannel",), attributes)
        if offer is not None:
            formats = offer.formats
            kept = ("rtpmap", "rtcp-fb", "fmtp", "extmap")
            attributes.extend(pair for pair in offer.attributes if pair[0] in kept)
        else:
            attributes.extend(("extmap", f"{number} {uri}") for number, uri in EXTENSIONS[each.kind])
            numbers: list[str] = []
            for number, name in CODECS[each.kind]:
                numbers.append(str(number))
                attributes.append(("rtpmap", f"{number} {name}"))
                if name.startswith("H264"):
                    attributes.append(("fmtp", f"{number} {H264}"))
                if each.kind == "video":
                    numbers.append(str(number + 1))
                    attributes.append(("rtpmap", f"{number + 1} rtx/90000"))
                    attributes.append(("fmtp", f"{number + 1} apt={number}"))
            formats = tuple(numbers)
        attributes.extend(((way, ""), ("rtcp-mux", "")))
        if each.track is not None:
            attributes.append(("msid", f"- {each.track}"))
        return sdp.Media(each.kind, 9, "UDP/TLS/RTP/SAVPF", formats, attributes)

    def _describe(self, sections: list[sdp.Media]) -> str:
        live = [media.attributes.get("mid") or "" for media in sections if not media.rejected]
        return sdp.Session(1, 1, (("group", " ".join(["BUNDLE", *live])),), tuple(sections)).serialise()
