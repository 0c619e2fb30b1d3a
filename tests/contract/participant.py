"""A light client with media: TURN, ICE, DTLS and RTP by hand, SRTP by libsrtp, on blocking sockets and one thread."""

from __future__ import annotations

import re
import select
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

from pylibsrtp import Policy, Session

from tests.contract import rtp, sdp, turn
from tests.contract.signalling import PATIENCE, Client, connect
from tests.interop.dtls import DtlsClient
from tests.node import NodeProcess

#: Seconds between two checks, as a browser's: the SFU learns by them that somebody is there.
_CHECKING = 1.0
#: An SFU that hears no more than this many times is gone.
_CHECKS = 20


class Participant:
    """Somebody in a room. It answers the SFU's offers as long as :func:`attend` is told of it.

    :param fields: of ``join``.

    :ivar client: its signalling. :ivar packets: what RTP came, with the time. :ivar controls: RTCP, likewise.
    :ivar heard: types of messages, with the time. :ivar connected: whether it has keys.
    :ivar unknown: lines of the SFU's offers with this in them are not taken.
    :ivar description: the one of the SFU that counts for ICE.
    """

    def __init__(self, node: NodeProcess, room: str, key: str = "", **fields: Any) -> None:
        self._node, self._room, self._key = node, room, key
        self.client: Client = connect(node, room, key)
        self.client.say("join", **fields)
        self.welcome = self.client.until("welcome")
        self._credentials = self.client.until("turn-credentials")
        self.relay = turn.of(self._credentials)
        self.packets: list[tuple[float, rtp.Packet]] = []
        self.controls: list[tuple[float, rtp.Control]] = []
        self.heard: list[tuple[float, str]] = []
        self.offered = ""
        self.unknown = ""
        self._taken = 0
        self._dtls = DtlsClient()
        self._sections: dict[str, str] = {}
        self.description = ""
        self._ufrag = sdp.UFRAG
        self._checked = 0.0
        self.connected = False

    @property
    def peer_id(self) -> str:
        return str(self.welcome["peerId"])

    def publish(self, text: str, **fields: Any) -> str:
        """Offer *text*, and be connected when this is over.

        :returns: the answer.
        """
        text = text.replace(sdp.FINGERPRINT, self._dtls.fingerprint)
        self._sections = _sections(text.replace("a=setup:actpass", "a=setup:active"))
        self.client.say("offer", sdp=text, **fields)
        answer: str = self.client.until("answer")["sdp"]
        self.connect(answer)
        return answer

    def connect(self, description: str) -> None:
        """Check and shake hands, unless that is done."""
        if self.connected:
            return
        self.description = description
        assert self.relay.nonce or self.relay.allocate().code == 0
        assert self.relay.bind(sdp.media_address(description)) == 0
        self._check_until_answered()
        assert self._dtls.handshake(self.relay.channel_data, lambda: self.relay.relayed(3.0)), "no DTLS"
        keys = self._dtls.export(56)
        ours, theirs = keys[0:16] + keys[32:44], keys[16:32] + keys[44:56]
        self._sealing = Session(_policy(ours, Policy.SSRC_ANY_OUTBOUND))
        self._opening = Session(_policy(theirs, Policy.SSRC_ANY_INBOUND))
        self.connected = True

    def restart(self, text: str) -> None:
        """Offer *text* with other ICE credentials (RFC 8445, 9)."""
        self._ufrag = sdp.UFRAG[::-1]
        text = text.replace(sdp.FINGERPRINT, self._dtls.fingerprint)
        text = text.replace(f"ice-ufrag:{sdp.UFRAG}", f"ice-ufrag:{self._ufrag}")
        self._sections = _sections(text.replace("a=setup:actpass", "a=setup:active"))
        self.client.say("offer", sdp=text)
        self.description = self.client.until("answer")["sdp"]

    def move(self) -> None:
        """Go on from another relay: it is checked, and nominated."""
        self.relay = turn.of(self._credentials)
        assert self.relay.allocate().code == 0
        assert self.relay.bind(sdp.media_address(self.description)) == 0
        self._check_until_answered()

    def drop(self) -> None:
        """Lose the socket."""
        self.client.drop()
        self.client.code = 1006

    def resume(self) -> None:
        """Take our place again, on another socket."""
        self.client = connect(self._node, self._room, self._key)
        self._taken = 0
        self.client.say("join", resume=self.welcome["resume"])
        self.welcome = self.client.until("welcome")
        self.client.until("turn-credentials")

    def send(self, packet: rtp.Packet) -> None:
        self.seal(packet.serialize())

    def seal(self, raw: bytes) -> None:
        """Send RTP, whatever is in it."""
        self.relay.channel_data(self._sealing.protect(raw))

    def seal_rtcp(self, raw: bytes) -> None:
        """Send RTCP, whatever is in it."""
        self.relay.channel_data(self._sealing.protect_rtcp(raw))

    def say(self, data: bytes) -> None:
        """Send *data* by DTLS: a packet of SCTP."""
        for datagram in self._dtls.sealed(data):
            self.relay.channel_data(datagram)

    def control(self, *packets: bytes) -> None:
        """Send a compound, after an empty receiver report."""
        compound = struct.pack("!BBHI", 0x80, rtp.RR, 1, 1) + b"".join(packets)
        self.seal_rtcp(compound)

    def feedback(self, kind: int, form: int) -> list[tuple[float, rtp.Control]]:
        """What has come of that kind of feedback."""
        return [(when, each) for when, each in self.controls if (each.kind, each.count) == (kind, form)]

    def of(self, ssrc: int) -> list[rtp.Packet]:
        return [packet for _, packet in self.packets if packet.ssrc == ssrc]

    def track(self, mid: str) -> tuple[int, int]:
        """SSRC, and that of RTX (0 for none), of an m-line that the SFU has offered."""
        section = _sections(self.offered)[mid]
        found = re.search(r"a=ssrc-group:FID (\d+) (\d+)", section) or re.search(r"a=ssrc:(\d+)()", section)
        assert found is not None, section
        return int(found[1]), int(found[2] or 0)

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.client.received if message["type"] == kind]

    def leave(self) -> None:
        """Say so, and give everything back; once."""
        if self.relay.socket.fileno() < 0:
            return
        self.connected = False
        if self.client.code is None:
            try:
                self.client.say("leave")
                self.client.until_closed()
            except OSError:
                pass
        self.client.close()
        self.relay.release()

    def look(self) -> None:
        """Take what has come, and check when it is time."""
        while self.connected and (raw := self._ready()) is not None:
            now = time.monotonic()
            if raw[0] < 128:
                continue
            if 192 <= raw[1] < 224:
                self.controls += [(now, each) for each in rtp.parse_compound(self._opening.unprotect_rtcp(raw))]
            else:
                self.packets.append((now, rtp.parse(self._opening.unprotect(raw))))
        self.client.listen(0.0005)
        while self._taken < len(self.client.received):
            message = self.client.received[self._taken]
            self._taken += 1
            self.heard.append((time.monotonic(), message["type"]))
            if message["type"] == "offer":
                self.offered = message["sdp"]
                self.client.say("answer", sdp=self.answer(self.offered))
                self.connect(self.offered)
        if self.connected and time.monotonic() - self._checked > _CHECKING:
            self._check()

    def answer(self, offered: str) -> str:
        """Take everything, and send what we have always sent."""
        text = sdp.answer(offered).replace(sdp.FINGERPRINT, self._dtls.fingerprint)
        text = text.replace(f"ice-ufrag:{sdp.UFRAG}", f"ice-ufrag:{self._ufrag}")
        sections = _sections(text)
        for mid, section in self._sections.items():
            if mid in sections:
                text = text.replace(sections[mid], section)
        if self.unknown:
            text = "".join(line for line in text.splitlines(keepends=True) if self.unknown not in line)
        return text

    def _ready(self) -> bytes | None:
        ready, _, _ = select.select([self.relay.socket], [], [], 0)
        return self.relay.relayed(0.01) if ready else None

    def _check_until_answered(self) -> None:
        for _ in range(_CHECKS):
            request = self._check()
            while (raw := self.relay.relayed(0.5)) is not None:
                if raw[8:20] == request[8:20]:
                    return
        raise AssertionError("no check was answered")

    def check(self) -> bytes:
        """A check that nominates (RFC 8445, 7.2.5)."""
        ufrag, pwd = sdp.value(self.description, "ice-ufrag"), sdp.value(self.description, "ice-pwd")
        attributes = [
            (turn.USERNAME, f"{ufrag}:{self._ufrag}".encode()),
            (turn.PRIORITY, struct.pack("!I", 1)),
            (turn.ICE_CONTROLLING, bytes(8)),
            (turn.USE_CANDIDATE, b""),
        ]
        return turn.build(turn.BINDING, attributes=attributes, key=pwd.encode(), fingerprint=True)

    def _check(self) -> bytes:
        self._checked = time.monotonic()
        request = self.check()
        self.relay.channel_data(request)
        return request


def attend(
    participants: Sequence[Participant], until: Callable[[], object] | None = None, seconds: float = PATIENCE
) -> None:
    """Let what comes come, until *until* says that it is enough, or without it for so many seconds."""
    deadline = time.monotonic() + seconds
    while until is None or not until():
        if time.monotonic() > deadline:
            if until is None:
                return
            raise AssertionError([each.client.received for each in participants])
        sockets = [each.relay.socket for each in participants] + [each.client.socket.sock for each in participants]
        # Without those that were closed.
        select.select([each for each in sockets if each is not None and each.fileno() >= 0], [], [], 0.005)
        for each in participants:
            each.look()


def _sections(text: str) -> dict[str, str]:
    """The m-lines with what belongs to them, by mid."""
    return {sdp.value(section, "mid"): section for section in re.split(r"(?m)^(?=m=)", text)[1:]}


def _policy(key: bytes, kind: int) -> Policy:
    policy = Policy(key, kind, srtp_profile=Policy.SRTP_PROFILE_AEAD_AES_128_GCM)
    policy.allow_repeat_tx = True
    policy.window_size = 1024
    return policy
