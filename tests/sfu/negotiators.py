"""Negotiators without a network, and what they are fed with."""

from __future__ import annotations

import random
from itertools import count
from pathlib import Path
from typing import Any

from orama.sfu.lines import Wanted
from orama.sfu.negotiation import Negotiator
from orama.sfu.values import AUDIO_LEVEL, MID, Codec

RECORDED = Path(__file__).parent.parent / "data" / "sdp"

OPUS = Codec(111, "audio/opus", 48000, 2, "minptime=10;useinbandfec=1")
VP8 = Codec(96, "video/VP8", 90000)
VP9 = Codec(98, "video/VP9", 90000, 1, "profile-id=0")
H264 = Codec(102, "video/H264", 90000, 1, "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f")
AV1 = Codec(45, "video/AV1", 90000, 1, "level-idx=5;profile=0;tier=0")


def recorded(name: str) -> str:
    """A description that a real browser wrote."""
    return (RECORDED / f"{name}.sdp").read_bytes().decode()


class Ice:
    """Credentials without an agent."""

    def __init__(self) -> None:
        self.restarts = 0
        self.local_ufrag = "sfu0"
        self.local_pwd = "0" * 24
        self.remote: tuple[str, str] | None = None

    def set_remote(self, ufrag: str, pwd: str) -> None:
        self.remote = (ufrag, pwd)

    def restart(self) -> None:
        self.restarts += 1
        self.local_ufrag = f"sfu{self.restarts}"

    def revert(self) -> None:
        self.local_ufrag = f"sfu{self.restarts - 1}"


class Names:
    """Track ids of a room with nobody else in it."""

    def __init__(self) -> None:
        self._fresh = count(1)

    def __call__(self, proposed: str | None) -> str:
        return proposed if proposed is not None else f"fresh{next(self._fresh)}"


def negotiator(seed: int = 1, **options: Any) -> tuple[Negotiator, Ice]:
    ice = Ice()
    fingerprint = ":".join(["00"] * 32)
    return Negotiator(ice, fingerprint, ("127.0.0.1", 20000), random.Random(seed), Names(), **options), ice


def audio(track_id: str, peer_id: str = "pub") -> Wanted:
    return Wanted(track_id, peer_id, "audio", (OPUS,), frozenset({AUDIO_LEVEL, MID}))


def video(track_id: str, peer_id: str = "pub", codec: Codec = VP8) -> Wanted:
    return Wanted(track_id, peer_id, "video", (codec,), frozenset({MID}))
