"""Which events of one namespace wait, and which may be tried now. Sans-IO: time and chance come in.

Events of one room go out one after the other, in the order in which they happened; rooms do not wait for each other.
An attempt that fails makes its room wait, longer each time. It also makes the whole namespace wait for a moment and go
on with one attempt at a time, for most often nobody answers at all; when somebody does again, nobody waits any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from math import inf

from attrs import define, field

from orama.webhooks.letter import Letter

#: Events and bytes of one namespace that may wait; beyond that the oldest go.
MOST, MOST_BYTES = 10_000, 8 << 20
#: Attempts at once, while they succeed.
AT_ONCE = 8
#: Seconds that a room waits between two attempts at most.
LONGEST_PAUSE = 300.0
#: What the whole namespace waits after a failure, of what its room waits; seconds that this grows to at most.
REST, LONGEST_REST = 0.25, 30.0
#: Failures in a row after which it is the receiver that was away, and not one event that it does not like.
AWAY = 3
#: From 10 ms that is more than any of the bounds.
DOUBLINGS = 16


@define(eq=False)
class _Lane:
    """The events of one room."""

    letters: deque[Letter] = field(factory=deque)
    tries: int = 0
    due: float = 0.0
    #: The first of them is on its way.
    flying: bool = False


class Backlog:
    """:param retry: seconds that a room waits after its first failure; doubled with each.

    :param keep: seconds after which an event that fails is given up.

    :param chance: gives a number from 0 to 1, so that the nodes of a cluster do not all try again at once.
    """

    def __init__(self, retry: float, keep: float, chance: Callable[[], float]) -> None:
        self.retry = retry
        self.keep = keep
        self._chance = chance
        self._lanes: dict[str, _Lane] = {}
        #: (due, number, room id) of lanes that are not flying; entries of other times are stale.
        self._idle: list[tuple[float, int, str]] = []
        self._number = 0
        self._waiting: dict[str, Letter] = {}
        self._bytes = 0
        self._flying = 0
        self._at_once = AT_ONCE
        self._failures = 0
        self._rested = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def letters(self) -> Iterator[Letter]:
        """All that wait, the oldest first."""
        return iter(self._waiting.values())

    def add(self, letter: Letter, now: float) -> list[Letter]:
        """Let it wait; what has to go for it."""
        if letter.id in self._waiting:
            return []
        self._waiting[letter.id] = letter
        self._bytes += len(letter.body)
        lane = self._lanes.get(letter.room_id)
        if lane is None:
            lane = self._lanes[letter.room_id] = _Lane()
        lane.letters.append(letter)
        if len(lane.letters) == 1:
            self._wait(letter.room_id, lane, now)
        gone = []
        while len(self._waiting) > MOST or self._bytes > MOST_BYTES:
            oldest = next((each for each in self._waiting.values() if not self.is_flying(each)), letter)
            gone.append(oldest)
            self.forget(oldest)
            if oldest is letter:
                break
        return gone

    def next(self, now: float) -> Letter | None:
        """One that is to be tried now; say then what came of it. None: none, before :meth:`due`."""
        if self._flying >= self._at_once or now < self._rested:
            return None
        while self._idle and self._idle[0][0] <= now:
            due, _, room_id = heappop(self._idle)
            lane = self._lanes.get(room_id)
            if lane is None or lane.flying or lane.due != due:
                continue
            lane.flying = True
            self._flying += 1
            return lane.letters[0]
        return None

    def due(self) -> float:
        """When to ask for the next one; infinity when that waits for an attempt to end, or for an event."""
        if self._flying >= self._at_once or not self._idle:
            return inf
        return max(self._idle[0][0], self._rested)

    def taken(self, letter: Letter, now: float) -> None:
        """The receiver has it."""
        was_away = self._failures >= AWAY
        self._failures, self._rested = 0, 0.0
        self._at_once = min(AT_ONCE, 2 * self._at_once)
        lane = self._landed(letter)
        lane.tries = 0
        self._drop_first(letter, lane, now)
        if was_away:
            for room_id, each in self._lanes.items():
                if not each.flying and each.due > now:
                    self._wait(room_id, each, now)

    def failed(self, letter: Letter, now: float) -> bool:
        """It was not taken. True: it is too old by now and given up."""
        self._failures += 1
        self._at_once = 1
        self._rested = now + self._about(min(LONGEST_REST, REST * self.retry * 2 ** min(self._failures - 1, DOUBLINGS)))
        lane = self._landed(letter)
        if now - letter.at >= self.keep:
            lane.tries = 0
            self._drop_first(letter, lane, now)
            return True
        lane.tries += 1
        self._wait(
            letter.room_id,
            lane,
            now + self._about(min(LONGEST_PAUSE, self.retry * 2 ** min(lane.tries - 1, DOUBLINGS))),
        )
        return False

    def put_back(self, letter: Letter, now: float) -> None:
        """The attempt was broken off; nothing is known of the receiver."""
        self._wait(letter.room_id, self._landed(letter), now)

    def is_flying(self, letter: Letter) -> bool:
        """Whether it is being tried."""
        lane = self._lanes[letter.room_id]
        return lane.flying and lane.letters[0] is letter

    def forget(self, letter: Letter) -> None:
        """Take away one that is not being tried."""
        lane = self._lanes[letter.room_id]
        was_first = lane.letters[0] is letter
        lane.letters.remove(letter)
        self._left(letter)
        if not lane.letters:
            del self._lanes[letter.room_id]
        elif was_first:
            self._wait(letter.room_id, lane, lane.due)

    def _landed(self, letter: Letter) -> _Lane:
        lane = self._lanes[letter.room_id]
        lane.flying = False
        self._flying -= 1
        return lane

    def _drop_first(self, letter: Letter, lane: _Lane, now: float) -> None:
        lane.letters.popleft()
        self._left(letter)
        if lane.letters:
            self._wait(letter.room_id, lane, now)
        else:
            del self._lanes[letter.room_id]

    def _left(self, letter: Letter) -> None:
        del self._waiting[letter.id]
        self._bytes -= len(letter.body)

    def _wait(self, room_id: str, lane: _Lane, due: float) -> None:
        lane.due = due
        self._number += 1
        heappush(self._idle, (due, self._number, room_id))

    def _about(self, seconds: float) -> float:
        """*seconds*, give or take a fifth."""
        return seconds * (0.8 + 0.4 * self._chance())
