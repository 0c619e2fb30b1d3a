"""Sealing secrets before they are stored: AES-256-GCM with the node key (NIST SP 800-38D).

What a secret belongs to is authenticated along with it, so that a sealed value cannot be moved to
another row.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_NONCE_BYTES = 12
#: Names the form, so that another can follow.
_FORM = "v1."


class BrokenSeal(Exception):
    """What was stored was not sealed with this key for this purpose."""


class Seal:
    """:param key: 32 bytes."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise BrokenSeal(f"the key has {len(key)} bytes, not {KEY_BYTES}")
        self._cipher = AESGCM(key)

    def seal(self, secret: str, purpose: str) -> str:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, secret.encode(), purpose.encode())
        return _FORM + b64encode(nonce + sealed).decode()

    def open(self, sealed: str, purpose: str) -> str:
        """:raises BrokenSeal: sealed by another key, for another purpose, or damaged."""
        try:
            if not sealed.startswith(_FORM):
                raise ValueError("unknown form")
            data = b64decode(sealed.removeprefix(_FORM), validate=True)
            return self._cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], purpose.encode()).decode()
        except (ValueError, InvalidTag):
            raise BrokenSeal("sealed with another key, or damaged") from None


def new_key() -> bytes:
    return os.urandom(KEY_BYTES)
