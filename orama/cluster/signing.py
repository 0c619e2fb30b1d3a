"""Signed requests between the nodes: HMAC-SHA256 with the cluster key, each good once and for half a minute.

What is signed is the method, the target (path and query as they are sent), the time, a nonce, who sends it, and the
digest of the body. The receiver checks the signature first, so that whoever has no key learns nothing and fills no
memory; then the time; then that the nonce is new. Nonces are remembered for as long as their time is good, in bounded
memory: when that is full, the oldest second is refused as a whole instead of being forgotten. What was signed before
a receiver started is refused, since it cannot know what it has seen before. A restart thus opens no gap, and clocks of
nodes must agree. No reactor in here: the command line signs too.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Mapping
from hashlib import sha256
from typing import Protocol

from orama.cluster.keyring import Keyring
from orama.errors import NotAuthenticated

NODE = "X-Orama-Node"
TIME = "X-Orama-Time"
NONCE = "X-Orama-Nonce"
SIGNATURE = "X-Orama-Signature"
#: Seconds that the sender's clock may be off ours.
TOLERANCE = 30
#: Nonces remembered at a time, about 120 bytes each: 60 seconds of 1,600 requests.
CAPACITY = 100_000

_FORM = "orama1"
_NODE = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_TIME = re.compile(r"[0-9]{1,12}\Z", re.ASCII)
_NONCE = re.compile(r"[0-9a-f]{32}\Z")
_SIGNATURE = re.compile(r"[0-9a-f]{64}\Z")


class Clock(Protocol):
    def seconds(self) -> float:
        """Unix time."""


def sign(
    key: Keyring | bytes, method: str, target: str, body: bytes, node_id: str, now: float, nonce: str | None = None
) -> dict[str, str]:
    """The headers that make a request one of *node_id*'s.

    :param target: path and query exactly as they go out; ASCII.
    :param now: Unix time.
    :param nonce: 128 bits in hex, never used before; random without it.
    """
    secret = key.current if isinstance(key, Keyring) else key
    time, nonce = str(int(now)), nonce or secrets.token_hex(16)
    signature = _signature(secret, method, target, time, nonce, node_id, body)
    return {NODE: node_id, TIME: time, NONCE: nonce, SIGNATURE: signature}


def _signature(key: bytes, method: str, target: str, time: str, nonce: str, node_id: str, body: bytes) -> str:
    lines = (_FORM, method, target, time, nonce, node_id, sha256(body).hexdigest())
    return hmac.new(key, "\n".join(lines).encode("utf-8", "surrogateescape"), sha256).hexdigest()


class Verifier:
    """Tells requests of our nodes from all others.

    :param capacity: nonces remembered at a time.
    """

    def __init__(self, keyring: Keyring, clock: Clock, capacity: int = CAPACITY) -> None:
        self._keyring = keyring
        self._clock = clock
        self._seen = _Nonces(capacity)
        self._started = int(clock.seconds())

    def __len__(self) -> int:
        """How many nonces are remembered."""
        return len(self._seen)

    def check(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> str:
        """The node that signed the request.

        :param target: path and query as they came in.
        :param headers: names in any case.
        :raises NotAuthenticated: ``bad_signature``, ``stale_request`` or ``replayed_request``.
        """
        found = {name.lower(): value for name, value in headers.items()}
        node_id, time, nonce, signature = (found.get(name.lower(), "") for name in (NODE, TIME, NONCE, SIGNATURE))
        formed = _NODE.match(node_id) and _TIME.match(time) and _NONCE.match(nonce) and _SIGNATURE.match(signature)
        if not formed or not any(
            hmac.compare_digest(signature, _signature(key, method, target, time, nonce, node_id, body))
            for key in self._keyring.keys
        ):
            raise NotAuthenticated("bad_signature", "the request is not signed with the key of this cluster")
        now = self._clock.seconds()
        off = int(time) - now
        # The sender counts whole seconds, so its time may look up to one second older than it is.
        if not -TOLERANCE - 1 < off <= TOLERANCE:
            raise NotAuthenticated(
                "stale_request",
                f"by the clock here the request was signed {abs(off):.0f} s {'ago' if off < 0 else 'in the future'}; "
                f"{TOLERANCE} s are allowed: do the clocks agree?",
            )
        self._seen.expire(int(now) - TOLERANCE - 1)
        if self._started > now + TOLERANCE + 1:  # our clock was ahead when we started, by more than we ever take
            self._started = int(now)
        if int(time) < max(self._started, self._seen.since):
            raise NotAuthenticated("stale_request", "the request was signed before this node could tell it from a copy")
        if not self._seen.add(int(time), f"{node_id} {nonce}"):
            raise NotAuthenticated("replayed_request", "this very request came before")
        return node_id


class _Nonces:
    """Nonces by the second that they were signed in.

    :ivar since: nothing that was signed before this second can be told from a copy any more.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._seconds: dict[int, set[str]] = {}
        self._count = 0
        self.since = 0

    def __len__(self) -> int:
        return self._count

    def expire(self, before: int) -> None:
        """Forget the seconds before *before*, whose requests are stale."""
        for second in [second for second in self._seconds if second < before]:
            self._drop(second)

    def add(self, second: int, nonce: str) -> bool:
        """Remember *nonce*; False when it is known."""
        known = self._seconds.setdefault(second, set())
        if nonce in known:
            return False
        known.add(nonce)
        self._count += 1
        while self._count > self._capacity:
            self._drop(min(self._seconds))
        return True

    def _drop(self, second: int) -> None:
        self._count -= len(self._seconds.pop(second))
        self.since = max(self.since, second + 1)
