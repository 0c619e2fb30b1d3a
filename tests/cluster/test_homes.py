"""Which process has which room."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.homes import SETTLING, Homes, RoomName

A, B, C = "a", "b", "c"


def room(number: int) -> RoomName:
    return "demo", f"room-{number}"


class HomesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.homes: Homes[str] = Homes()

    def test_spread(self) -> None:
        """Rooms that come at once, before anybody says how many are in them, are spread evenly."""
        chosen = Counter(self.homes.choose(room(number), [A, B, C], 0.0) for number in range(30))
        self.assertEqual(chosen, {A: 10, B: 10, C: 10})

    def test_fewest_people(self) -> None:
        """A room goes where the fewest people are, however many rooms they are in."""
        self.homes.reported(A, [(room(1), 9)], 0.0)
        self.homes.reported(B, [(room(2), 2), (room(3), 2), (room(4), 2)], 0.0)
        self.assertEqual(self.homes.choose(room(5), [A, B], 0.0), B)
        self.assertEqual(self.homes.choose(room(6), [A, B], 0.0), B)
        self.assertEqual(self.homes.choose(room(7), [A, B], 0.0), A)

    def test_stays(self) -> None:
        """A room stays where it is while it lives, wherever there is more place, and whatever is said of others."""
        self.assertEqual(self.homes.choose(room(1), [A, B], 0.0), A)
        for now in range(1, 100):
            self.homes.reported(A, [(room(1), 50)], float(now))
            self.homes.reported(B, [], float(now))
        self.assertEqual(self.homes.choose(room(1), [A, B], 100.0), A)
        self.assertEqual(self.homes.find(room(1)), A)

    def test_never_came(self) -> None:
        """A room into which nobody came after all is forgotten, but not before whoever was sent there could come."""
        self.homes.choose(room(1), [A, B], 0.0)
        self.homes.reported(A, [], SETTLING)
        self.assertEqual(self.homes.find(room(1)), A)
        self.homes.reported(A, [], SETTLING + 0.1)
        self.assertEqual((self.homes.find(room(1)), len(self.homes)), (None, 0))

    def test_asked_for_again(self) -> None:
        """Who is sent there later gets the same time."""
        self.homes.choose(room(1), [A], 0.0)
        self.homes.choose(room(1), [A], SETTLING)
        self.homes.reported(A, [], SETTLING + 1)
        self.assertEqual(self.homes.find(room(1)), A)

    def test_gone(self) -> None:
        """When a process is gone its rooms are free, and no others."""
        self.homes.reported(A, [(room(1), 2)], 0.0)
        self.homes.reported(B, [(room(2), 2)], 0.0)
        self.homes.forget(A)
        self.homes.forget(A)
        self.assertEqual((self.homes.find(room(1)), self.homes.find(room(2))), (None, B))
        self.assertEqual((self.homes.load(A), self.homes.choose(room(1), [B], 0.0)), (0, B))

    def test_contested(self) -> None:
        """What two say they have is the first one's, and the other is told so for as long as it says it."""
        self.homes.reported(A, [(room(1), 2)], 0.0)
        self.assertEqual(self.homes.reported(B, [(room(1), 1), (room(2), 1)], 0.0), [room(1)])
        self.assertEqual((self.homes.find(room(1)), self.homes.load(B)), (A, 2))
        self.homes.forget(A)
        self.assertEqual(self.homes.reported(B, [(room(1), 1)], 1.0), [])
        self.assertEqual(self.homes.find(room(1)), B)

    @given(
        st.lists(
            st.tuples(st.sampled_from("cfr"), st.sampled_from("abc"), st.integers(0, 63), st.integers(0, 15)),
            max_size=20,
        )
    )
    def test_whatever_happens(self, steps: list[tuple[str, str, int, int]]) -> None:
        """Whatever is asked and said, a room that is its process's stays that, and nothing is kept for nobody."""
        homes: Homes[str] = Homes()
        now = 0.0
        for kind, process, some, seconds in steps:
            now += seconds
            numbers = [number for number in range(6) if some >> number & 1]
            before = {number: homes.find(room(number)) for number in range(6)}
            if kind == "f":
                homes.forget(process)
                self.assertEqual(homes.load(process), 0)
            elif kind == "r":
                contested = homes.reported(process, [(room(each), each) for each in numbers], now)
                for each in numbers:
                    self.assertEqual(room(each) in contested, homes.find(room(each)) != process)
            else:
                for each in numbers:
                    self.assertEqual(homes.choose(room(each), [process], now), before[each] or process)
            for each in range(6):
                if before[each] is not None and before[each] != process:
                    self.assertEqual(homes.find(room(each)), before[each])
        for process in "abc":
            homes.forget(process)
        self.assertEqual(len(homes), 0)
