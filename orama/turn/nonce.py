"""Nonces (RFC 8489, 9.2) that the server does not have to remember: a time and a MAC over it and the client's address.

Eight characters are all that an answer to a stranger can spare if it is to stay under twice its
request: sixteen bits of the time in seconds and a MAC of thirty-two. The MAC covers the whole time, so a
nonce does not come back to life when the sixteen bits come round.

Where there is room, the nonce cookie of RFC 8489 stands in front: thirteen characters that tell what else
the server can do. The MAC covers them too, so that nobody on the way can take something out of the offer
(9.2.1).
"""

from __future__ import annotations

import base64
import binascii
import hmac
from enum import IntFlag

from orama.net.fabric import Address

#: The sixteen bits come round after 65,536 s; a nonce has to be dead well before.
MAX_LIFETIME = 0xE000
#: RFC 8489, 9.2.
COOKIE = b"obMatJos2"
_COOKIE_LENGTH = 13
_MAC_LENGTH = 4
_LENGTH = 8


class Feature(IntFlag):
    """The security features (RFC 8489, 18.1): bit 0 is the most significant of twenty-four."""

    NONE = 0
    PASSWORD_ALGORITHMS = 1 << 23
    USERNAME_ANONYMITY = 1 << 22


def features(nonce: bytes) -> Feature | None:
    """What the cookie of a nonce says, whoever wrote it; None when there is no cookie."""
    if not nonce.startswith(COOKIE):
        return None
    try:
        bits = base64.b64decode(nonce[len(COOKIE) : _COOKIE_LENGTH], validate=True)
    except (binascii.Error, ValueError):
        return None
    return Feature(int.from_bytes(bits, "big")) if len(bits) == 3 else None


class Nonces:
    """Makes and checks the nonces of one process.

    :param key: random bytes, of this process alone or of a fleet that shares its clients.
    :param lifetime: seconds for which a nonce is good.
    """

    def __init__(self, key: bytes, lifetime: int) -> None:
        self._key = key
        self._lifetime = min(lifetime, MAX_LIFETIME)

    def issue(self, client: Address, now: float, offered: Feature | None = None) -> bytes:
        """A nonce for *client*, good from *now*: 21 characters with the cookie that offers something, or 8 without."""
        seconds = int(now)
        cookie = b"" if offered is None else COOKIE + base64.b64encode(int(offered).to_bytes(3, "big"))
        mac = self._mac(cookie, client, seconds)
        return cookie + base64.urlsafe_b64encode((seconds & 0xFFFF).to_bytes(2, "big") + mac)

    def good(self, nonce: bytes, client: Address, now: float) -> bool:
        """Whether *nonce* was issued to *client* and has not aged."""
        cookie, rest = nonce[:-_LENGTH], nonce[-_LENGTH:]
        if len(rest) != _LENGTH or len(cookie) not in (0, _COOKIE_LENGTH):
            return False
        try:
            raw = base64.b64decode(rest, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return False
        if base64.urlsafe_b64encode(raw) != rest:  # Python takes "+" and "/" for "-" and "_" as well
            return False
        age = (int(now) - int.from_bytes(raw[:2], "big")) & 0xFFFF
        return age <= self._lifetime and hmac.compare_digest(raw[2:], self._mac(cookie, client, int(now) - age))

    def _mac(self, cookie: bytes, client: Address, seconds: int) -> bytes:
        text = cookie + f" {client[0]} {client[1]} {seconds}".encode()
        return hmac.digest(self._key, text, "sha256")[:_MAC_LENGTH]
