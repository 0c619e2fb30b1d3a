"""The index of user names by their hash."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from orama.turn.names import Names
from orama.wire.stun import userhash
from tests.turn.world import NOW, REALM


class NamesTests(SynchronousTestCase):
    def found(self, names: Names, name: str) -> bool:
        return names.find(userhash(name, REALM)) == name

    def test_learnt(self) -> None:
        """A name is found by its hash with our realm once it was learnt, and by no other."""
        names = Names(REALM, 600)
        names.learn("ann", NOW + 10)
        self.assertTrue(self.found(names, "ann"))
        self.assertIsNone(names.find(userhash("ann", "elsewhere")))
        self.assertIsNone(names.find(userhash("bob", REALM)))

    def test_forgotten_in_time(self) -> None:
        """It is forgotten when its time is over; learning it again makes that later, never earlier."""
        names = Names(REALM, 600)
        names.learn("ann", NOW + 100)
        names.learn("ann", NOW + 50)
        names.tick((), NOW + 99)
        self.assertTrue(self.found(names, "ann"))
        names.tick((), NOW + 100)
        self.assertEqual(len(names), 0)

    def test_bounded(self) -> None:
        """Above the limit the one that was used longest ago is forgotten, and not all names are known any more."""
        names = Names(REALM, 600, all_issued_here=True, limit=100)
        self.assertFalse(names.complete(NOW))
        self.assertTrue(names.complete(NOW + 600))
        for number in range(100):
            names.learn(f"user {number}", NOW + 9999)
        names.learn("user 0", NOW + 9999)
        self.assertTrue(names.complete(NOW + 600))
        names.learn("one too many", NOW + 9999)
        self.assertEqual(len(names), 100)
        self.assertEqual([self.found(names, f"user {number}") for number in (0, 1, 2)], [True, False, True])
        self.assertFalse(names.complete(NOW + 601))
        self.assertTrue(names.complete(NOW + 601 + 600))

    def test_plain_names(self) -> None:
        """Names of a namespace alone are known for every second in which one could have been issued, and no others."""
        names = Names(REALM, 600, all_issued_here=True)
        names.tick(["myapp", ""], NOW)
        for expiry in (NOW + 1, NOW + 300, NOW + 600):
            self.assertTrue(self.found(names, f"{expiry}:myapp"))
            self.assertTrue(self.found(names, str(expiry)))
        for name in (f"{NOW}:myapp", f"{NOW + 700}:myapp", f"{NOW + 1}:other", f"{NOW + 1}:myapp:ann"):
            self.assertFalse(self.found(names, name))

    def test_plain_names_move_on(self) -> None:
        """With the time new ones come and old ones go, so that there are as many at any time."""
        names = Names(REALM, 600, all_issued_here=True)
        sizes = set()
        for second in range(0, 1500, 7):
            names.tick(["myapp"], NOW + second)
            sizes.add(len(names))
            self.assertTrue(self.found(names, f"{NOW + second + 600}:myapp"))
            self.assertFalse(self.found(names, f"{NOW + second}:myapp"))
        self.assertEqual(sizes, {602})

    def test_plain_names_are_bounded(self) -> None:
        """Many namespaces share the limit: the nearest seconds of each are known."""
        names = Names(REALM, 600, all_issued_here=True, limit=1000)
        names.tick([f"ns-{number}" for number in range(100)], NOW)
        self.assertEqual(len(names), 1000)
        self.assertTrue(self.found(names, f"{NOW + 10}:ns-99"))
        self.assertFalse(self.found(names, f"{NOW + 11}:ns-99"))

    def test_plain_names_take_no_long_tick(self) -> None:
        """Where there are many to be made they come in several ticks."""
        names = Names(REALM, 6000, all_issued_here=True)
        sizes = []
        for second in range(4):
            names.tick(["a", "b"], NOW + second)
            sizes.append(len(names))
        self.assertLessEqual(sizes[0], 4100)
        self.assertEqual(sizes[-1], 2 * 6002)

    def test_namespaces_change(self) -> None:
        """A namespace that comes is known at the next tick, and one that goes is not any more."""
        names = Names(REALM, 600, all_issued_here=True)
        names.tick(["myapp"], NOW)
        names.tick(["other"], NOW + 1)
        self.assertEqual([self.found(names, f"{NOW + 9}:{each}") for each in ("myapp", "other")], [False, True])

    def test_one_of_several_issuers(self) -> None:
        """Where others issue credentials too nothing is known in advance, and never all of them."""
        names = Names(REALM, 600)
        names.tick(["myapp"], NOW)
        self.assertEqual(len(names), 0)
        self.assertFalse(names.complete(NOW + 10**6))
