"""Relay ports of a relay IP on which all TURN workers of a node have relays (:mod:`orama.turn.shared`).

The client that shows a reservation's token comes from another address than the one that got it (RFC 8656, 7.2), and so
to any worker. A token therefore says itself which port it is for, and until when: two bytes of the port, two of the
time in seconds, and four of a MAC over both and the namespace. A port is kept once, so that a token is good once.
"""

from __future__ import annotations

import hmac
import struct

from orama.turn.ports import RESERVATION_TIME
from orama.turn.shared import SharedTable

_TOKEN = struct.Struct("!HH4s")


class SharedBook:
    """As :class:`~orama.turn.ports.LocalBook`, for all workers.

    :param row: of the table, one for each relay IP.
    :param key: random bytes, the same for all workers.
    """

    def __init__(self, table: SharedTable, row: int, key: bytes) -> None:
        self._table = table
        self._row = row
        self._key = key
        #: Until when this worker keeps a port.
        self._kept: dict[int, int] = {}

    def __len__(self) -> int:
        return self._table.ports(self._row)

    def __contains__(self, port: int) -> bool:
        return self._table.has_port(port, self._row)

    def take(self, port: int) -> bool:
        return self._table.take_port(port, self._row)

    def release(self, port: int) -> None:
        self._table.release_port(port, self._row)

    def reserve(self, namespace: str, port: int, now: float) -> bytes:
        expires = int(now + RESERVATION_TIME) + 1
        self._table.keep_port(port, self._row)
        self._kept[port] = expires
        return _TOKEN.pack(port, expires & 0xFFFF, self._mac(namespace, port, expires))

    def redeem(self, namespace: str, token: bytes, now: float) -> int | None:
        if len(token) != _TOKEN.size:
            return None
        port, seconds, mac = _TOKEN.unpack(token)
        left = (seconds - int(now)) & 0xFFFF
        good = hmac.compare_digest(mac, self._mac(namespace, port, int(now) + left))
        if not good or not 0 < left <= RESERVATION_TIME + 1:
            return None
        return port if self._table.claim_port(port, self._row) else None

    def expire(self, now: float) -> None:
        for port in [port for port, expires in self._kept.items() if expires <= now]:
            del self._kept[port]
            self._table.drop_port(port, self._row)

    def _mac(self, namespace: str, port: int, expires: int) -> bytes:
        text = f"{self._row} {port} {expires} {namespace}".encode()
        return hmac.digest(self._key, text, "sha256")[:4]
