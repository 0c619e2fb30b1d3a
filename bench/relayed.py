"""A WebRTC client of the least weight, for load: everything through one TURN allocation over UDP.

It is an independent one: STUN by ``aioice``, DTLS by ``aiortc``, SRTP by libsrtp, none of orama's own
code. Setting up is asyncio; once connected, :attr:`RelayedPeer.socket` is a plain non-blocking socket
bound to one TURN channel, and a load loop takes it over.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import re
import secrets
import socket
import struct
import time
from typing import Any

from aioice import stun
from aiortc.rtcdtlstransport import (
    SRTP_AEAD_AES_128_GCM,
    SRTP_AES128_CM_SHA1_80,
    RTCCertificate,
    RTCDtlsFingerprint,
    RTCDtlsParameters,
    RTCDtlsTransport,
)

CHANNEL = 0x4000
SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
UDP = 17 << 24


def turn_credentials(secret: str, namespace: str) -> tuple[str, str]:
    """User name and password of the TURN REST scheme."""
    username = f"{int(time.time()) + 3600}:{namespace}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(digest).decode()


class RelayedPeer:
    """One ICE controlling, DTLS client end behind a TURN relay."""

    def __init__(self, turn: tuple[str, int], username: str, password: str) -> None:
        self.turn = turn
        self.username, self.password = username, password
        self.ufrag, self.pwd = secrets.token_hex(4), secrets.token_hex(16)
        self.certificate = RTCCertificate.generateCertificate()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self.socket.setsockopt(socket.SOL_SOCKET, option, 8 << 20)
        self.socket.setblocking(False)
        self.socket.connect(turn)
        self.early_media: list[bytes] = []
        self._answers: dict[bytes, asyncio.Future[stun.Message]] = {}
        self._dtls_in: asyncio.Queue[bytes] = asyncio.Queue()
        self._realm, self._nonce, self._key = "", b"", b""
        self._tie_breaker = int.from_bytes(os.urandom(8), "big")
        self.dtls: Any = None

    @property
    def fingerprint(self) -> str:
        return str(next(f.value for f in self.certificate.getFingerprints() if f.algorithm == "sha-256"))

    # TURN

    async def allocate(self) -> None:
        asyncio.get_running_loop().add_reader(self.socket, self._readable)
        first = stun.Message(stun.Method.ALLOCATE, stun.Class.REQUEST)
        first.attributes["REQUESTED-TRANSPORT"] = UDP
        refused = await self._request(first)
        self._realm, self._nonce = refused.attributes["REALM"], refused.attributes["NONCE"]
        self._key = hashlib.md5(f"{self.username}:{self._realm}:{self.password}".encode()).digest()
        again = stun.Message(stun.Method.ALLOCATE, stun.Class.REQUEST)
        again.attributes["REQUESTED-TRANSPORT"] = UDP
        answer = await self._authenticated(again)
        self.relayed: tuple[str, int] = answer.attributes["XOR-RELAYED-ADDRESS"]

    async def bind(self, peer: tuple[str, int]) -> None:
        request = stun.Message(stun.Method.CHANNEL_BIND, stun.Class.REQUEST)
        request.attributes["CHANNEL-NUMBER"] = CHANNEL
        request.attributes["XOR-PEER-ADDRESS"] = peer
        await self._authenticated(request)

    def free(self) -> None:
        """Give the allocation back, and wait for no answer."""
        request = stun.Message(stun.Method.REFRESH, stun.Class.REQUEST)
        request.attributes["LIFETIME"] = 0
        self._sign(request)
        self.socket.send(bytes(request))

    def _sign(self, request: stun.Message) -> None:
        request.attributes["USERNAME"] = self.username
        request.attributes["REALM"] = self._realm
        request.attributes["NONCE"] = self._nonce
        request.add_message_integrity(self._key)

    async def _authenticated(self, request: stun.Message) -> stun.Message:
        self._sign(request)
        answer = await self._request(request)
        if answer.message_class != stun.Class.RESPONSE:
            raise RuntimeError(f"TURN refused {request.message_method.name}: {answer.attributes.get('ERROR-CODE')}")
        return answer

    async def _request(self, request: stun.Message, channel: bool = False) -> stun.Message:
        future: asyncio.Future[stun.Message] = asyncio.get_running_loop().create_future()
        self._answers[request.transaction_id] = future
        data = bytes(request)
        if channel:
            data = struct.pack("!HH", CHANNEL, len(data)) + data
        for _ in range(8):
            self.socket.send(data)
            done, _pending = await asyncio.wait([future], timeout=0.5)
            if done:
                return future.result()
        raise RuntimeError(f"no answer to {request.message_method.name}")

    def _readable(self) -> None:
        while True:
            try:
                data = self.socket.recv(65536)
            except (BlockingIOError, ConnectionRefusedError):
                return
            if data[0] & 0xC0 == 0x40:
                data = data[4 : 4 + struct.unpack_from("!H", data, 2)[0]]
            if data[0] < 4:
                message = stun.parse_message(data)
                if message.message_class == stun.Class.REQUEST:
                    self._answer_check(message)
                    continue
                future = self._answers.pop(message.transaction_id, None)
                if future is not None and not future.done():
                    future.set_result(message)
            elif 20 <= data[0] < 64:
                self._dtls_in.put_nowait(data)
            else:
                self.early_media.append(data)

    # ICE and DTLS

    async def connect(self, remote_sdp: str, offerer: bool) -> None:
        """Check, nominate if that is ours to do, and shake hands with the passive end of *remote_sdp*."""
        # RFC 8445, 6.1.1: the offerer controls, unless the other end is lite.
        self._controlling = offerer or "a=ice-lite" in remote_sdp

        def one(pattern: str) -> str:
            match = re.search(pattern, remote_sdp, re.MULTILINE)
            if match is None:
                raise RuntimeError(f"no {pattern} in the remote description")
            return match.group(1)

        candidate = re.search(r"^a=candidate:\S+ 1 udp \d+ (\S+) (\d+) typ host", remote_sdp, re.M | re.I)
        if candidate is None:
            raise RuntimeError("no host candidate in the remote description")
        self.remote = candidate.group(1), int(candidate.group(2))
        await self.bind(self.remote)
        remote = one(r"^a=ice-ufrag:(\S+)"), one(r"^a=ice-pwd:(\S+)")
        answer = await self._request(self._check(*remote), channel=True)
        if answer.message_class != stun.Class.RESPONSE:
            raise RuntimeError(f"check refused: {answer.attributes.get('ERROR-CODE')}")
        # Keep checking while DTLS goes on, as a browser does: the other end may only now have read our answer.
        checking = asyncio.ensure_future(self._keep_checking(*remote))
        try:
            await asyncio.wait_for(self._shake_hands(one(r"^a=fingerprint:sha-256 (\S+)")), 10)
        finally:
            checking.cancel()

    def _check(self, ufrag: str, pwd: str) -> stun.Message:
        check = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
        check.attributes["USERNAME"] = f"{ufrag}:{self.ufrag}"
        check.attributes["PRIORITY"] = 1845501695
        if self._controlling:
            check.attributes["ICE-CONTROLLING"] = self._tie_breaker
            check.attributes["USE-CANDIDATE"] = None
        else:
            check.attributes["ICE-CONTROLLED"] = self._tie_breaker
        check.add_message_integrity(pwd.encode())
        check.add_fingerprint()
        return check

    def _answer_check(self, request: stun.Message) -> None:
        answer = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE, request.transaction_id)
        answer.attributes["XOR-MAPPED-ADDRESS"] = self.remote
        answer.add_message_integrity(self.pwd.encode())
        answer.add_fingerprint()
        data = bytes(answer)
        self.socket.send(struct.pack("!HH", CHANNEL, len(data)) + data)

    async def _keep_checking(self, ufrag: str, pwd: str) -> None:
        while True:
            await asyncio.sleep(0.2)
            await self._request(self._check(ufrag, pwd), channel=True)

    async def _shake_hands(self, fingerprint: str) -> None:
        self.dtls = RTCDtlsTransport(_Ice(self), [self.certificate])  # type: ignore[arg-type]
        self.dtls._set_role("client")
        self.dtls._srtp_profiles = [SRTP_AEAD_AES_128_GCM, SRTP_AES128_CM_SHA1_80]
        remote = RTCDtlsFingerprint(algorithm="sha-256", value=fingerprint)
        await self.dtls.start(RTCDtlsParameters(fingerprints=[remote]))
        if self.dtls.state != "connected":
            raise RuntimeError(f"DTLS is {self.dtls.state}")

    def detach(self) -> None:
        """Leave the event loop: from here on the socket is the caller's."""
        asyncio.get_running_loop().remove_reader(self.socket)

    def protect(self, packet: bytes) -> bytes:
        """An RTP packet as ChannelData."""
        data: bytes = self.dtls._tx_srtp.protect(packet)
        return struct.pack("!HH", CHANNEL, len(data)) + data

    def unprotect(self, packet: bytes) -> bytes:
        data: bytes = self.dtls._rx_srtp.unprotect(packet)
        return data


class _Ice:
    """What RTCDtlsTransport wants from an ICE transport."""

    role = "controlling"
    state = "completed"

    def __init__(self, peer: RelayedPeer) -> None:
        self._peer = peer

    async def _recv(self) -> bytes:
        return await self._peer._dtls_in.get()

    async def _send(self, data: bytes) -> None:
        self._peer.socket.send(struct.pack("!HH", CHANNEL, len(data)) + data)


# SDP


def _session(mids: list[str]) -> list[str]:
    return [
        "v=0",
        "o=- 1 1 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        "a=group:BUNDLE " + " ".join(mids),
        "a=msid-semantic: WMS *",
    ]


def _media(peer: RelayedPeer, mid: str, setup: str, direction: str) -> list[str]:
    return [
        "c=IN IP4 0.0.0.0",
        f"a=mid:{mid}",
        f"a=ice-ufrag:{peer.ufrag}",
        f"a=ice-pwd:{peer.pwd}",
        f"a=fingerprint:sha-256 {peer.fingerprint}",
        f"a=setup:{setup}",
        "a=rtcp-mux",
        f"a={direction}",
        "a=candidate:1 1 udp 16777215 {} {} typ relay raddr 0.0.0.0 rport 0".format(*peer.relayed),
        "a=end-of-candidates",
    ]


def publishing_offer(peer: RelayedPeer, ssrc: int, kind: str = "video") -> str:
    """One track, VP8 as payload type 96 or Opus as 111, sent by *peer*."""
    number, codec = (96, "VP8/90000") if kind == "video" else (111, "opus/48000/2")
    lines = [*_session(["0"]), f"m={kind} 9 UDP/TLS/RTP/SAVPF {number}", *_media(peer, "0", "active", "sendonly")]
    lines += [f"a=rtpmap:{number} {codec}"]
    if kind == "video":
        lines += ["a=rtcp-fb:96 nack", "a=rtcp-fb:96 nack pli"]
    lines += [f"a=msid:bench {secrets.token_hex(8)}", f"a=ssrc:{ssrc} cname:bench"]
    return "\r\n".join(lines) + "\r\n"


def receiving_answer(peer: RelayedPeer, offer: str, ssrc: int | None = None) -> str:
    """Take every media section of *offer* with its first codec and no RTX.

    :param ssrc: what *peer* sends in the section in which the other end receives.
    """
    sections = re.split(r"(?=^m=)", offer, flags=re.M)[1:]
    mids = [m.group(1) for s in sections if (m := re.search(r"^a=mid:(\S+)", s, re.M))]
    lines = _session(mids)
    for section, mid in zip(sections, mids, strict=True):
        kind, _port, protocol, formats = section.split("\r\n", 1)[0][2:].split(" ", 3)
        first = formats.split()[0]
        sends = "a=recvonly" in section
        lines.append(f"m={kind} 9 {protocol} {first}")
        lines += _media(peer, mid, "active", "sendonly" if sends else "recvonly")
        lines += re.findall(rf"^(a=(?:rtpmap|rtcp-fb):{first} [^\r\n]*)", section, re.M)
        if sends and ssrc is not None:
            lines.append(f"a=ssrc:{ssrc} cname:bench")
    return "\r\n".join(lines) + "\r\n"
