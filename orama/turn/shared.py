"""What the TURN workers of a node count together, in memory that all of them see: allocations, bandwidth, relay ports.

Quotas are the node's, and its clients are spread over its workers, so that no worker knows by itself how much somebody
holds. The table is a block of anonymous memory that every worker maps. A change is made under a lock of the kernel,
which a worker that dies gives back, and is the store of one machine word, so that a death in between leaves nothing
half done. Each worker counts in a column of its own: that of a dead one is set to zero (:meth:`SharedTable.forget`).
No name stands in here: owners are keyed hashes.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from attrs import field, frozen

#: Owners that fit, a power of two: a host has 64,512 relay ports at most, and who has one is a user and a namespace.
SLOTS = 1 << 17
#: How far from its own place an owner may stand.
MAX_PROBES = 256
#: Slots that one :meth:`SharedTable.sweep` looks at.
SWEEP = 4096
#: Workers of one node, a power of two.
MAX_WORKERS = 64
#: Rows of relay ports: one for each family of address.
ROWS = 2
_PORTS = 1 << 16
#: The bit of a port's byte that says that its worker keeps it for somebody.
_KEPT = 0x80
#: Full buckets that may be missing from one; those who draw on them stop at two.
_MOST_OWED = 4

#: (namespace,) or (namespace, user).
Owner: TypeAlias = tuple[str, ...]


def make_memory(workers: int, slots: int = SLOTS) -> int:
    """The descriptor of a table in which nobody has anything; it goes with the last process that has it.

    Most of it is never touched, and what is not touched takes no memory.
    """
    descriptor = os.memfd_create("orama-turn")
    os.ftruncate(descriptor, _size(workers, slots))
    return descriptor


class SharedTable:
    """One worker's view of the table.

    An owner has a slot: its hash (0 where none has ever been), the time at which its bucket is full again, and a count
    for each worker. Owners whose place is the same stand behind each other (open addressing); the slot of one that
    holds nothing and owes nothing goes to the next who needs it.

    :param descriptor: of the memory; it stays the caller's and has to stay open.
    :param worker: whose column this is, from 0.
    :param key: random bytes, the same for all workers; without them nobody can choose who stands in whose way.
    :param slots: as :func:`make_memory` had it.
    """

    def __init__(self, descriptor: int, workers: int, worker: int, key: bytes, slots: int = SLOTS) -> None:
        if not 0 <= worker < workers <= MAX_WORKERS:
            raise ValueError(f"there is no worker {worker} of {workers}")
        self.workers = workers
        self.worker = worker
        self._descriptor = descriptor
        self._key = key
        self._slots = slots
        self._map = mmap.mmap(descriptor, _size(workers, slots))
        view = memoryview(self._map)
        counts, ports = 16 * slots, 16 * slots + 4 * slots * workers
        self._hashes = view[: 8 * slots].cast("Q")
        self._full_at = view[8 * slots : counts].cast("d")
        self._columns = [view[start : start + 4 * slots].cast("I") for start in range(counts, ports, 4 * slots)]
        self._counts = self._columns[worker]
        #: Which worker has each port, counted from 1, or keeps it; a row for each family.
        self._ports = view[ports:]
        self._views: list[memoryview[Any]] = [view, self._hashes, self._full_at, *self._columns, self._ports]
        self._cursor = 0

    def close(self) -> None:
        """Map it no more. Nothing happens the second time."""
        for view in self._views:
            view.release()
        self._map.close()

    # ---- allocations

    def take(self, wanted: Sequence[tuple[Owner, int]], now: float) -> bool:
        """Count one more for each owner, unless one of them has its limit: then nothing is counted.

        :param wanted: owner and limit; 0 is no limit.
        """
        numbers = [self.number(owner) for owner, _ in wanted]
        with self._locked():
            for number, (_, limit) in zip(numbers, wanted, strict=True):
                place = self._find(number)
                if limit and place is not None and self._total(place) >= limit:
                    return False
            for index, number in enumerate(numbers):
                place = self._find(number)
                if place is None:
                    place = self._free(number, now)
                if place is None:  # there are more owners than slots about here
                    self._give_back(numbers[:index])
                    return False
                self._hashes[place] = number
                self._counts[place] += 1
            return True

    def release(self, owners: Iterable[Owner]) -> None:
        """Count one less, of this worker's, for each of *owners*."""
        numbers = [self.number(owner) for owner in owners]
        with self._locked():
            self._give_back(numbers)

    def number(self, owner: Owner) -> int:
        """What *owner* is called in the table: 64 bits, not all 0. Two of a full one are the same once in 10^9."""
        text = "\0".join((str(len(owner[0])), *owner)).encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(text, digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "little") or 1

    def held(self, owner: Owner) -> int:
        """How many *owner* has in all workers together."""
        place = self._find(self.number(owner))
        return 0 if place is None else self._total(place)

    # ---- bandwidth

    def level(self, number: int, rate: int, size: int, now: float) -> float:
        """Bytes that are left in the bucket of who has *number* (:meth:`number`); what is owed is negative.

        A bucket is the time at which it is full again (virtual scheduling, ITU-T I.371, annex A): one word, which stays
        right when the rate changes.

        :param rate: bytes per second; :param size: bytes in a full bucket.
        """
        place = self._find(number)
        return float(size) if place is None else self._level(place, rate, size, now)

    def spend(self, number: int, amount: int, rate: int, size: int, now: float) -> None:
        """Take *amount* bytes out of a bucket, whatever is in it; nothing happens when its owner has nothing."""
        with self._locked():
            place = self._find(number)
            if place is not None:
                left = self._level(place, rate, size, now) - amount
                self._full_at[place] = now + (size - left) / rate

    # ---- relay ports

    def take_port(self, port: int, row: int = 0) -> bool:
        """Have *port*, unless some worker has it, or keeps it for somebody."""
        return self._turn_port(port, row, 0, self.worker + 1)

    def release_port(self, port: int, row: int = 0) -> bool:
        """Give *port* back; nothing happens when it is not this worker's."""
        return self._turn_port(port, row, self.worker + 1, 0)

    def keep_port(self, port: int, row: int = 0) -> bool:
        """Keep *port*, which is this worker's, for whoever comes for it to any worker."""
        return self._turn_port(port, row, self.worker + 1, self.worker + 1 | _KEPT)

    def drop_port(self, port: int, row: int = 0) -> bool:
        """Keep *port* no more; nothing happens when somebody has it by now."""
        return self._turn_port(port, row, self.worker + 1 | _KEPT, 0)

    def claim_port(self, port: int, row: int = 0) -> bool:
        """Have *port* if some worker keeps it."""
        with self._locked():
            at = row * _PORTS + port
            if not self._ports[at] & _KEPT:
                return False
            self._ports[at] = self.worker + 1
            return True

    def has_port(self, port: int, row: int = 0) -> bool:
        """Whether some worker has *port*, or keeps it."""
        return bool(self._ports[row * _PORTS + port])

    def ports(self, row: int = 0) -> int:
        """How many are not free."""
        return _PORTS - bytes(self._ports[row * _PORTS : (row + 1) * _PORTS]).count(0)

    def _turn_port(self, port: int, row: int, before: int, after: int) -> bool:
        with self._locked():
            at = row * _PORTS + port
            if self._ports[at] != before:
                return False
            self._ports[at] = after
            return True

    # ---- upkeep

    def __len__(self) -> int:
        """How many slots are not as new."""
        return self._slots - self._hashes.tolist().count(0)

    def forget(self, worker: int) -> None:
        """Worker number *worker* is no more: it holds nothing."""
        with self._locked():
            self._columns[worker][:] = memoryview(bytes(4 * self._slots)).cast("I")
            ports = bytes(self._ports)
            for mark in (worker + 1, worker + 1 | _KEPT):
                ports = ports.replace(bytes([mark]), b"\0")
            self._ports[:] = ports

    def sweep(self, now: float) -> None:
        """Look at some slots, others each time, and make those new that nobody needs; for once a second, in one worker.

        A slot that was used lengthens the search for all whose place is before it, also when it is free again. It can
        be made new where a new one follows it, since no search goes on there.
        """
        with self._locked():
            for _ in range(min(SWEEP, self._slots)):
                self._cursor = (self._cursor or self._slots) - 1
                self._tidy(self._cursor, now)

    def _give_back(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            place = self._find(number)
            if place is not None and self._counts[place]:
                self._counts[place] -= 1
                while self._tidy(place, 0.0):  # who has used bandwidth is left to the sweep
                    place = (place or self._slots) - 1

    def _tidy(self, place: int, now: float) -> bool:
        """Make a slot new if it may be; whether it was."""
        following = place + 1 if place + 1 < self._slots else 0
        if not self._hashes[place] or self._hashes[following] or not self._is_idle(place, now):
            return False
        self._full_at[place] = 0.0
        self._hashes[place] = 0
        return True

    def _find(self, number: int) -> int | None:
        """Where the owner stands."""
        mask, hashes = self._slots - 1, self._hashes
        for step in range(MAX_PROBES):
            place = (number + step) & mask
            there = hashes[place]
            if there == number:
                return place
            if not there:
                return None
        return None

    def _free(self, number: int, now: float) -> int | None:
        """Where an owner that is not there can stand."""
        mask = self._slots - 1
        for step in range(MAX_PROBES):
            place = (number + step) & mask
            if not self._hashes[place] or self._is_idle(place, now):
                return place
        return None

    def _is_idle(self, place: int, now: float) -> bool:
        return self._full_at[place] <= now and not self._total(place)

    def _total(self, place: int) -> int:
        return sum(column[place] for column in self._columns)

    def _level(self, place: int, rate: int, size: int, now: float) -> float:
        # More can only be missing when the clock was set back.
        return size - min(max(self._full_at[place] - now, 0.0) * rate, _MOST_OWED * size)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


@frozen
class Crew:
    """What the workers of a node have in common, as one of them has it."""

    table: SharedTable
    #: Random bytes, so that what one worker has given out is good with all: nonces, tickets, tokens of reservations.
    key: bytes = field(repr=False)
    #: Where other workers send what is ours (``workers_passing``), and for each worker where to send what is its.
    inbox: socket.socket
    outboxes: tuple[socket.socket, ...]

    @property
    def worker(self) -> int:
        """Which one it is."""
        return self.table.worker

    def mark(self, number: int) -> int:
        """*number* as one of ours: :meth:`elsewhere` tells. It costs six of its bits."""
        return number & -MAX_WORKERS | self.worker

    def elsewhere(self, number: int) -> int | None:
        """Which other worker has made *number* its own; None when it was this one."""
        owner = number % MAX_WORKERS
        return None if owner == self.worker or owner >= self.table.workers else owner


def _size(workers: int, slots: int) -> int:
    return (16 + 4 * workers) * slots + ROWS * _PORTS
