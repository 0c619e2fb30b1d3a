"""Which user name a USERHASH stands for (RFC 8489, 14.4), as far as this process can know.

A hash cannot be turned back, and our user names are made of a time, so the server can only look one up
among the names that it has seen: those that were issued here, those that have authenticated in plain, and
those of a namespace alone (``{expiry}:{namespace}``), of which there is one a second. A look-up is one or
two of a dictionary, whoever asks, and nothing is written for who has not authenticated.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from orama.wire.stun import userhash

#: Names that are remembered; about 300 bytes each.
MAX_NAMES = 32768
#: Made in one tick, which takes 5 ms; what is left is the next one's.
MAX_HASHES = 4096
#: Seconds by which a credential may have been made by a clock that is ahead of ours.
_AHEAD = 2


class Names:
    """The user names of one process.

    :param realm: ours, which is hashed with them.
    :param ttl: seconds for which a credential is good when it is issued.
    :param all_issued_here: nobody else issues credentials for this server. Names of a namespace alone are known
        before they are seen then, and clients may be told to hide theirs.
    """

    def __init__(self, realm: str, ttl: int, *, all_issued_here: bool = False, limit: int = MAX_NAMES) -> None:
        self._realm = realm
        self._ttl = ttl
        self._all_issued_here = all_issued_here
        self._limit = limit
        #: By hash, the one that was used last at the end; a name with the time until which it is remembered.
        self._seen: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        #: Those of a namespace alone, and their hashes by expiry.
        self._plain: dict[bytes, str] = {}
        self._expiring: deque[tuple[int, tuple[bytes, ...]]] = deque()
        self._namespaces: tuple[str, ...] = ()
        self._complete_from: float | None = None

    def __len__(self) -> int:
        return len(self._seen) + len(self._plain)

    def learn(self, username: str, until: float) -> None:
        """Remember a name until *until*: one that was issued, or that has authenticated."""
        digest = userhash(username, self._realm)
        there = self._seen.get(digest)
        self._seen[digest] = (username, until if there is None else max(until, there[1]))
        self._seen.move_to_end(digest)
        if len(self._seen) > self._limit:
            self._seen.popitem(last=False)
            self._complete_from = None  # somebody whose name is forgotten may still come

    def find(self, digest: bytes) -> str | None:
        """The name that hashes to *digest*."""
        there = self._seen.get(digest)
        return self._plain.get(digest) if there is None else there[0]

    def complete(self, now: float) -> bool:
        """Whether every name that may still make an allocation is known.

        Not before the credentials have expired that were issued when this process did not run yet, or that had to be
        forgotten for others.
        """
        if not self._all_issued_here:
            return False
        if self._complete_from is None:
            self._complete_from = now + self._ttl
        return now >= self._complete_from

    def tick(self, namespaces: Iterable[str], now: float) -> None:
        """Forget what is over, and get to know the plain names of the seconds to come; about once a second.

        :param namespaces: those that are served; one that is empty stands for names that are an expiry alone.
        """
        while self._seen and next(iter(self._seen.values()))[1] <= now:
            self._seen.popitem(last=False)
        if not self._all_issued_here:
            return
        self.complete(now)
        served = tuple(sorted(namespaces))
        if served != self._namespaces:
            self._namespaces = served
            self._plain.clear()
            self._expiring.clear()
        while self._expiring and self._expiring[0][0] <= now:
            for digest in self._expiring.popleft()[1]:
                self._plain.pop(digest, None)
        first = self._expiring[-1][0] + 1 if self._expiring else int(now) + 1
        last = min(int(now) + self._ttl + _AHEAD, int(now) + self._limit // max(1, len(served)))
        for expiry in range(first, min(last, first + MAX_HASHES // max(1, len(served))) + 1):
            digests = []
            for namespace in served:
                name = f"{expiry}:{namespace}" if namespace else str(expiry)
                digests.append(userhash(name, self._realm))
                self._plain[digests[-1]] = name
            self._expiring.append((expiry, tuple(digests)))
