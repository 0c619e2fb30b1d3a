"""Which relay ports are taken, which one is next, and which wait for the second half of a pair.

A port is drawn at random from what is free in the namespace's block (RFC 8656, 7.2: not to be guessed).
EVEN-PORT may ask for the next higher port to be kept; who shows the token within half a minute gets it.
"""

from __future__ import annotations

import random as _random
from typing import Protocol

from attrs import frozen

#: RFC 8656, 7.2 wants at least 30 s.
RESERVATION_TIME = 30.0
#: Looks at random ports before looking at all of them: with one port in eight free, 1 % miss this often.
DRAWS = 32
#: RFC 8656, 18.10.
TOKEN_LENGTH = 8


@frozen
class Reservation:
    """A port that waits for who shows the token."""

    namespace: str
    port: int
    expires: float


class Book(Protocol):
    """Where it is written down which ports of one relay IP are taken: by one process, or by several."""

    def __len__(self) -> int: ...
    def __contains__(self, port: int) -> bool: ...

    def take(self, port: int) -> bool:
        """Have *port*, unless somebody has it."""

    def release(self, port: int) -> None:
        """Give *port* back."""

    def reserve(self, namespace: str, port: int, now: float) -> bytes:
        """Keep *port*, which is taken, for a while; gives the token."""

    def redeem(self, namespace: str, token: bytes, now: float) -> int | None:
        """The port kept for *token*, which stays taken; None when there is none."""

    def expire(self, now: float) -> None:
        """Free the ports whose time is over."""


class LocalBook:
    """The book of a process that is alone.

    :param random: where tokens come from.
    """

    def __init__(self, random: _random.Random) -> None:
        self._random = random
        self._taken: set[int] = set()
        self._reserved: dict[bytes, Reservation] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def __contains__(self, port: int) -> bool:
        return port in self._taken

    def take(self, port: int) -> bool:
        if port in self._taken:
            return False
        self._taken.add(port)
        return True

    def release(self, port: int) -> None:
        self._taken.discard(port)

    def reserve(self, namespace: str, port: int, now: float) -> bytes:
        token = self._random.getrandbits(8 * TOKEN_LENGTH).to_bytes(TOKEN_LENGTH, "big")
        self._reserved[token] = Reservation(namespace, port, now + RESERVATION_TIME)
        return token

    def redeem(self, namespace: str, token: bytes, now: float) -> int | None:
        reservation = self._reserved.get(token)
        if reservation is None or reservation.namespace != namespace or reservation.expires <= now:
            return None
        del self._reserved[token]
        return reservation.port

    def expire(self, now: float) -> None:
        for token, reservation in list(self._reserved.items()):
            if reservation.expires <= now:
                del self._reserved[token]
                self._taken.discard(reservation.port)


class RelayPorts:
    """The ports of one relay IP that are taken.

    :param random: where choices come from.
    :param book: this process's own unless somebody else has relays on that IP.
    """

    def __init__(self, random: _random.Random, book: Book | None = None) -> None:
        self._random = random
        self._book = LocalBook(random) if book is None else book
        #: Taken with their successors, which are not reserved yet.
        self._pairs: set[int] = set()

    def __len__(self) -> int:
        return len(self._book)

    def take(self, block: tuple[int, int], *, even: bool = False, pair: bool = False) -> int | None:
        """A free port of *block*, None when there is none.

        Every one that would do is as likely as any other: the first draw that hits, and when nearly all are taken
        and :data:`DRAWS` have missed, one of a list of what is left.

        :param even: only an even one; :param pair: only an even one whose successor is free as well; that one is kept
            for :meth:`reserve` until this one is released.
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
            if self._take(port, pair):
                return port
        free = [port for port in range(lowest, lowest + step * count, step) if port not in self._book]
        self._random.shuffle(free)
        return next((port for port in free if self._take(port, pair)), None)

    def _take(self, port: int, pair: bool) -> bool:
        if not self._book.take(port):
            return False
        if pair:
            if not self._book.take(port + 1):
                self._book.release(port)
                return False
            self._pairs.add(port)
        return True

    def release(self, port: int) -> None:
        self._book.release(port)
        if port in self._pairs:
            self._pairs.remove(port)
            self._book.release(port + 1)

    def reserve(self, namespace: str, port: int, now: float) -> bytes:
        """Keep the second port of a pair for a while; gives the token (RFC 8656, 18.10)."""
        self._pairs.remove(port - 1)
        return self._book.reserve(namespace, port, now)

    def redeem(self, namespace: str, token: bytes, now: float) -> int | None:
        """The port kept for *token*, which stays taken; None when there is none."""
        return self._book.redeem(namespace, token, now)

    def expire(self, now: float) -> None:
        """Free the ports whose time is over."""
        self._book.expire(now)
