"""Nonces (RFC 8489, 9.2) that the server does not have to remember: a time and a MAC over it and the client's address.

Eight characters are all that an answer to a stranger can spare if it is to stay under twice its
request: sixteen bits of the time in seconds and a MAC of thirty-two. The MAC covers the whole time, so a
nonce does not come back to life when the sixteen bits come round.
"""

from __future__ import annotations

import base64
import binascii
import hmac

from orama.net.fabric import Address

#: The sixteen bits come round after 65,536 s; a nonce has to be dead well before.
MAX_LIFETIME = 0xE000
_MAC_LENGTH = 4
_LENGTH = 8


class Nonces:
    """Makes and checks the nonces of one process.

    :param key: random bytes, of this process alone or of a fleet that shares its clients.
    :param lifetime: seconds for which a nonce is good.
    """

    def __init__(self, key: bytes, lifetime: int) -> None:
        self._key = key
        self._lifetime = min(lifetime, MAX_LIFETIME)

    def issue(self, client: Address, now: float) -> bytes:
        """A nonce for *client*, good from *now*."""
        seconds = int(now)
        return base64.urlsafe_b64encode((seconds & 0xFFFF).to_bytes(2, "big") + self._mac(client, seconds))

    def good(self, nonce: bytes, client: Address, now: float) -> bool:
        """Whether *nonce* was issued to *client* and has not aged."""
        if len(nonce) != _LENGTH:
            return False
        try:
            raw = base64.b64decode(nonce, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return False
        age = (int(now) - int.from_bytes(raw[:2], "big")) & 0xFFFF
        return age <= self._lifetime and hmac.compare_digest(raw[2:], self._mac(client, int(now) - age))

    def _mac(self, client: Address, seconds: int) -> bytes:
        text = f"{client[0]} {client[1]} {seconds}".encode()
        return hmac.digest(self._key, text, "sha256")[:_MAC_LENGTH]
