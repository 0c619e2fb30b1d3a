"""Which relay ports are taken, which one is next, and which wait for the second half of a pair.

A port is drawn at random from what is free in the namespace's block (RFC 8656, 7.2: not to be guessed).
EVEN-PORT may ask for the next higher port to be kept; who shows the token within half a minute gets it.
"""

from __future__ import annotations

import random as _random

from attrs import frozen

#: RFC 8656, 7.2 wants at least 30 s.
RESERVATION_TIME = 30.0
#: Looks at random ports before looking at all of them: with one port in eight free, 1 % miss this often.
DRAWS = 32
_TOKEN_LENGTH = 8


@frozen
class Reservation:
    """A port that waits for who shows the token."""

    namespace: str
    port: int
    expires: float


class RelayPorts:
    """The ports of one relay IP that are taken.

    :param random: where choices and tokens come from.
    """

    def __init__(self, random: _random.Random) -> None:
        self._random = random
        self._taken: set[int] = set()
        self._reserved: dict[bytes, Reservation] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, block: tuple[int, int], *, even: bool = False, pair: bool = False) -> int | None:
        """A free port of *block*, None when there is none.

        Every one that would do is as likely as any other: the first draw that hits, and when nearly all are taken
        and :data:`DRAWS` have missed, one of a list of what is left.

        :param even: only an even one; :param pair: only an even one whose successor is free as well.
        """
        first, last = block
        step = 2 if even else 1
        lowest = first + first % step
        count = (last - lowest) // step + 1
        if pair and last % 2 == 0:
            count -= 1  # the last even port has no successor in the block
        if count <= 0:
            return None
        for _ in range(DRAWS):
            port = lowest + step * self._random.randrange(count)
            if self._is_free(port, pair):
                break
        else:
            free = [port for port in range(lowest, lowest + step * count, step) if self._is_free(port, pair)]
            if not free:
                return None
            port = self._random.choice(free)
        self._taken.add(port)
        return port

    def _is_free(self, port: int, pair: bool) -> bool:
        return port not in self._taken and not (pair and port + 1 in self._taken)

    def release(self, port: int) -> None:
        self._taken.discard(port)

    def reserve(self, namespace: str, port: int, now: float) -> bytes:
        """Keep *port* for a while; gives the token (RFC 8656, 18.10)."""
        token = self._random.getrandbits(8 * _TOKEN_LENGTH).to_bytes(_TOKEN_LENGTH, "big")
        self._taken.add(port)
        self._reserved[token] = Reservation(namespace, port, now + RESERVATION_TIME)
        return token

    def redeem(self, namespace: str, token: bytes, now: float) -> int | None:
        """The port kept for *token*, which stays taken; None when there is none."""
        reservation = self._reserved.get(token)
        if reservation is None or reservation.namespace != namespace or reservation.expires <= now:
            return None
        del self._reserved[token]
        return reservation.port

    def expire(self, now: float) -> None:
        """Free the ports whose time is over."""
        for token, reservation in list(self._reserved.items()):
            if reservation.expires <= now:
                del self._reserved[token]
                self._taken.discard(reservation.port)
