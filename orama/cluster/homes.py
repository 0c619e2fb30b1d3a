"""Which of several SFU processes of a node has which room.

A room is in one process as a whole. Where is decided when somebody asks for it first, for the process that has the
fewest people then, and holds while the room lives: the processes say every second what they have. Sans-IO: the time is
an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, TypeAlias, TypeVar

from attrs import define

#: Seconds for which a room that no process speaks of stays where it was to be: whoever is sent there has long come.
SETTLING = 10.0
#: People that a room counts for at least: it is there to have some, and who was sent there is not reported yet.
LEAST = 2

#: Namespace and room id.
RoomName: TypeAlias = tuple[str, str]
#: A process, by its identity.
T = TypeVar("T")


@define
class _Home:
    people: int
    #: When somebody last asked for it, or its process had it.
    seen: float


class Homes(Generic[T]):
    """The rooms of the processes of one node."""

    def __init__(self) -> None:
        self._process: dict[RoomName, T] = {}
        self._homes: dict[T, dict[RoomName, _Home]] = {}

    def __len__(self) -> int:
        return len(self._process)

    def find(self, room: RoomName) -> T | None:
        """The process that has *room*, or is to have it."""
        return self._process.get(room)

    def choose(self, room: RoomName, processes: Sequence[T], now: float) -> T:
        """The process of *room*; one of *processes*, of which there is at least one, when it has none yet."""
        process = self._process.get(room)
        if process is None:
            process = self._process[room] = min(processes, key=self.load)
        self._homes.setdefault(process, {}).setdefault(room, _Home(0, now)).seen = now
        return process

    def load(self, process: T) -> int:
        """People in the rooms of *process*, as far as is known."""
        return sum(max(home.people, LEAST) for home in self._homes.get(process, {}).values())

    def reported(self, process: T, rooms: Iterable[tuple[RoomName, int]], now: float) -> list[RoomName]:
        """Take what *process* has: rooms, and how many are in each. What another has as well comes back."""
        homes, contested = self._homes.setdefault(process, {}), []
        for room, people in rooms:
            if self._process.setdefault(room, process) is process:
                homes[room] = _Home(people, now)
            else:
                contested.append(room)
        for room in [room for room, home in homes.items() if now - home.seen > SETTLING]:
            del homes[room], self._process[room]
        return contested

    def forget(self, process: T) -> None:
        """*process* is gone, and its rooms with it."""
        for room in self._homes.pop(process, {}):
            del self._process[room]
