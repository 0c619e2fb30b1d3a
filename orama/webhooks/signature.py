"""The header by which whoever gets an event knows that it is ours, and that it is fresh.

``Orama-Signature: t=1800000000,v1=5257…``: when it was sent, and the HMAC-SHA256 of that number, a dot and the body, as
it came, under the secret of the settings. A receiver skips versions that it does not know.
"""

from __future__ import annotations

import hmac
from hashlib import sha256

HEADER = "Orama-Signature"
#: Seconds by which the clocks of the two may differ, the way included.
TOLERANCE = 300.0
#: Bytes of a header that is looked at.
LONGEST = 1024


class BadSignature(ValueError):
    """It is not from us, or not fresh; the text says which."""


def sign(secret: str, body: bytes, now: float) -> str:
    """The header's value for *body* at *now*, seconds since 1970."""
    moment = str(int(now))
    return f"t={moment},v1={_digest(secret, moment, body)}"


def verify(secret: str, header: str, body: bytes, now: float, tolerance: float = TOLERANCE) -> None:
    """
    :raises BadSignature: *header* is not what :func:`sign` made of *body* within *tolerance* seconds of *now*.
    """
    moment, found = "", []
    for part in header[:LONGEST].split(","):
        name, _, value = part.strip().partition("=")
        if name == "t":
            moment = value
        elif name == "v1":
            found.append(value)
    if not (moment.isascii() and moment.isdecimal()) or not found:
        raise BadSignature("the signature has no t= and v1=")
    expected = _digest(secret, moment, body).encode()
    if not any(hmac.compare_digest(expected, each.encode()) for each in found):
        raise BadSignature("the signature is not that of this body under this secret")
    if abs(now - int(moment)) > tolerance:
        raise BadSignature(f"the signature is more than {tolerance:g} s off")


def _digest(secret: str, moment: str, body: bytes) -> str:
    return hmac.new(secret.encode(), f"{moment}.".encode() + body, sha256).hexdigest()
