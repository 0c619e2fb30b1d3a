"""Sealing secrets before they are stored: AES-256-GCM with the node's or the cluster's key (NIST SP 800-38D).

What a secret belongs to is authenticated along with it, so that a sealed value cannot be moved to another row.
Several keys open, the first one seals: so keys can be changed while everything runs.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_NONCE_BYTES = 12
#: Names the form, so that another can follow.
_FORM = "v1."


class BrokenSeal(Exception):
    """What was stored was not sealed with one of these keys for this purpose."""


class Seal:
    """:param keys: one key of 32 bytes, or several, of which the first one seals.

    :raises BrokenSeal: a key is of another length.
    """

    def __init__(self, keys: bytes | Sequence[bytes]) -> None:
        self.adopt(keys)

    def adopt(self, keys: bytes | Sequence[bytes]) -> None:
        """Have *keys* in place of those that it had.

        :raises BrokenSeal: a key is of another length; nothing changes.
        """
        several = (keys,) if isinstance(keys, bytes) else tuple(keys)
        for key in several or (b"",):
            if len(key) != KEY_BYTES:
                raise BrokenSeal(f"the key has {len(key)} bytes, not {KEY_BYTES}")
        self._ciphers = tuple(map(AESGCM, several))

    def seal(self, secret: str, purpose: str) -> str:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[0].encrypt(nonce, secret.encode(), purpose.encode())
        return _FORM + b64encode(nonce + sealed).decode()

    def open(self, sealed: str, purpose: str) -> str:
        """:raises BrokenSeal: sealed by another key, for another purpose, or damaged."""
        return self._open(sealed, purpose)[1]

    def needs_reseal(self, sealed: str, purpose: str) -> bool:
        """Whether it is another key than the first that opens *sealed*.

        :raises BrokenSeal: none does.
        """
        return self._open(sealed, purpose)[0] > 0

    def _open(self, sealed: str, purpose: str) -> tuple[int, str]:
        """Which key opens it, and what is in it."""
        try:
            if not sealed.startswith(_FORM):
                raise ValueError("unknown form")
            data = b64decode(sealed.removeprefix(_FORM), validate=True)
            nonce, content = data[:_NONCE_BYTES], data[_NONCE_BYTES:]
        except ValueError:
            raise BrokenSeal("not a sealed secret") from None
        for index, cipher in enumerate(self._ciphers):
            try:
                return index, cipher.decrypt(nonce, content, purpose.encode()).decode()
            except (ValueError, InvalidTag):
                continue
        raise BrokenSeal("sealed with another key, or damaged")


def new_key() -> bytes:
    return os.urandom(KEY_BYTES)
