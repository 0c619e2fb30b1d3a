"""Another cluster key for nodes that are at work, with every interruption there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.keyring import ClusterKey, Keyring, new_key
from orama.cluster.rotation import PATH, Rotation, change_key, rotate_cluster_key, unfinished
from orama.errors import BadRequest, NotAuthenticated, OramaError, Unavailable
from orama.store.sealing import Seal

PURPOSE = "tenant"
NAMES = ("node-1", "node-2", "node-3")


class Crash(Exception):
    """The process with the rotation ends here."""


@frozen
class Place:
    node_id: str
    internal_ip: str = "10.0.0.1"
    internal_port: int = 6002


class World:
    """Three nodes that share a key and a database of sealed secrets.

    Every step (a request, or sealing again) has a number. Before and after each one all nodes must understand each
    other and every secret.

    :ivar down: nodes that do not answer. :ivar crash: the step at which the rotating process ends, and whether what
        the step was for still happens. :ivar waiting: when set, steps wait in it for the test to let them go.
    """

    def __init__(self) -> None:
        self.made = 0
        self.now = 1000.0
        first = ClusterKey(0, self.make())
        self.rings = {name: Keyring([first]) for name in NAMES}
        self.stored = {name: self.seal(name).seal(name, PURPOSE) for name in NAMES}
        self.down: set[str] = set()
        self.crash: tuple[int, bool] | None = None
        self.step = 0
        self.log: list[str] = []
        self.waiting: list[Deferred[None]] | None = None

    def make(self) -> bytes:
        """A key, of which Hypothesis sees no two in different orders."""
        self.made += 1
        return self.made.to_bytes(32, "big")

    def seal(self, name: str) -> Seal:
        return Seal(self.rings[name].sealing_keys)

    async def attempt(self, name: str) -> Rotation:
        """Give the command at the node *name*."""
        others = [Place(other) for other in NAMES if other != name]
        return await rotate_cluster_key(
            self.rings[name], Sender(self, name), others, lambda: self.reseal(name), name, self.now, self.make
        )

    async def within(self, work: Any) -> Any:
        """One step."""
        if self.waiting is not None:
            turn: Deferred[None] = Deferred()
            self.waiting.append(turn)
            await turn
        self.step += 1
        self.check()
        crash = self.crash if self.crash is not None and self.crash[0] == self.step else None
        if crash is not None and not crash[1]:
            raise Crash
        result = await work()
        self.check()
        if crash is not None:
            raise Crash
        return result

    async def reseal(self, name: str) -> int:
        async def work() -> int:
            seal, count = self.seal(name), 0
            for owner, sealed in self.stored.items():
                if seal.needs_reseal(sealed, PURPOSE):
                    self.stored[owner] = seal.seal(seal.open(sealed, PURPOSE), PURPOSE)
                    count += 1
            return count

        result: int = await self.within(work)
        return result

    def check(self) -> None:
        for name, ring in self.rings.items():
            for other, theirs in self.rings.items():
                assert ring.current in theirs.keys, f"{other} does not take what {name} signs: {self.log}"
            for owner, sealed in self.stored.items():
                assert self.seal(name).open(sealed, PURPOSE) == owner

    def finished(self) -> bool:
        """Whether all have one key, the same, and everything is sealed with it."""
        keys = {ring.keys for ring in self.rings.values()}
        return len(keys) == 1 and all(
            len(only) == 1 and not self.seal(NAMES[0]).needs_reseal(sealed, PURPOSE)
            for only in keys
            for sealed in self.stored.values()
        )


class Sender:
    """What *name* asks others, signed with the key that it uses."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name

    async def post(self, node: Any, path: str, body: Mapping[str, Any]) -> Any:
        world, ring = self._world, self._world.rings[node.node_id]

        async def work() -> Any:
            if node.node_id in world.down:
                raise Unavailable("node_unreachable", f"node {node.node_id}: no answer in 5 s")
            if world.rings[self._name].current not in ring.keys:
                raise NotAuthenticated("bad_signature", "another key")
            assert path == PATH
            world.log.append(f"{self._name} → {node.node_id}: {body['stage']}")
            return await change_key(ring, body["stage"], body["sealed"])

        return await world.within(work)


class RotationTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()

    def rotate(self, world: World, name: str) -> Rotation:
        return self.successResultOf(Deferred.fromCoroutine(world.attempt(name)))

    def stopped(self, world: World, name: str) -> str:
        failure = self.failureResultOf(Deferred.fromCoroutine(world.attempt(name)), Unavailable)
        self.assertEqual(failure.value.code, "rotation_stopped")
        text: str = failure.value.message
        return text

    def test_steps(self) -> None:
        """All accept, then all use, then everything is sealed again, then all forget; the caller knows how much."""
        before = self.world.rings["node-1"].current
        done = self.rotate(self.world, "node-2")
        self.assertTrue(self.world.finished())
        self.assertNotEqual(self.world.rings["node-1"].current, before)
        self.assertEqual((done.nodes, done.resealed), (("node-2", "node-1", "node-3"), 3))
        self.assertEqual(done.fingerprint, self.world.rings["node-3"].fingerprints[0])
        self.assertEqual(
            [line.rpartition(" ")[2] for line in self.world.log], ["accept"] * 2 + ["use"] * 2 + ["forget"] * 2
        )

    def test_again(self) -> None:
        """Each rotation makes another key, also within the same second."""
        fingerprints = {self.rotate(self.world, name).fingerprint for name in (*NAMES, *NAMES)}
        self.assertEqual(len(fingerprints), 6)
        self.assertTrue(self.world.finished())

    def test_alone(self) -> None:
        """A single node can change its key too."""
        ring = Keyring([ClusterKey(0, new_key())])

        async def reseal() -> int:
            return 0

        rotating = rotate_cluster_key(ring, Sender(self.world, "node-1"), (), reseal, "node-1", 1.0)
        done = self.successResultOf(Deferred.fromCoroutine(rotating))
        self.assertEqual(ring.fingerprints, (done.fingerprint,))

    def test_node_away(self) -> None:
        """A node that does not answer is named, and everything is as it was before."""
        keys = {name: ring.keys for name, ring in self.world.rings.items()}
        for away in ("node-2", "node-3"):
            self.world.down = {away}
            self.assertIn(away, self.stopped(self.world, "node-1"))
            self.assertEqual({name: ring.keys for name, ring in self.world.rings.items()}, keys)
        self.world.down.clear()
        self.rotate(self.world, "node-1")
        self.assertTrue(self.world.finished())

    def test_stuck_store(self) -> None:
        """A database that cannot be sealed again keeps both keys valid, and says so."""

        async def reseal() -> int:
            raise Unavailable("store_unavailable", "the database does not answer")

        world = self.world
        others = [Place("node-2"), Place("node-3")]
        rotating = rotate_cluster_key(world.rings["node-1"], Sender(world, "node-1"), others, reseal, "node-1", 1000.0)
        failure = self.failureResultOf(Deferred.fromCoroutine(rotating), Unavailable)
        self.assertIn("both keys are valid", failure.value.message)
        world.check()
        self.assertTrue(unfinished(world.rings["node-3"]))
        self.rotate(world, "node-3")
        self.assertTrue(world.finished())

    @given(
        crash=st.tuples(st.integers(1, 9), st.booleans()), first=st.sampled_from(NAMES), second=st.sampled_from(NAMES)
    )
    def test_crash(self, crash: tuple[int, bool], first: str, second: str) -> None:
        """Wherever the rotating process ends, nobody loses touch, and the command, at whichever node, ends it well."""
        world = World()
        before = world.rings[first].current
        world.crash = crash
        rotating = Deferred.fromCoroutine(world.attempt(first))
        if crash[0] <= 8:
            self.failureResultOf(rotating, Crash)
        world.crash = None
        target = world.rings[first].newest
        self.rotate(world, second)
        if not world.finished():  # the other node had never heard of it
            self.rotate(world, first)
        self.assertTrue(world.finished())
        for ring in world.rings.values():
            self.assertNotEqual(ring.current, before)
            self.assertGreaterEqual(ring.newest, target)

    @given(st.lists(st.tuples(st.sampled_from(NAMES), st.sets(st.sampled_from(NAMES)), st.integers(1, 12)), max_size=6))
    def test_nodes_that_come_and_go(self, attempts: list[tuple[str, set[str], int]]) -> None:
        """Attempts of which each loses nodes at some step end, when all are back, in one key for all."""
        world = World()
        for name, down, step in attempts:
            world.down = set()
            world.now += 1
            rotating = Deferred.fromCoroutine(self._losing(world, name, down - {name}, step))
            self.successResultOf(rotating)
        world.down = set()
        world.now += 1
        self.rotate(world, "node-1")
        self.assertTrue(world.finished())

    async def _losing(self, world: World, name: str, down: set[str], step: int) -> None:
        """One attempt, in which the nodes *down* go away at *step*."""
        first, inner = world.step, world.within

        async def within(work: Any) -> Any:
            if world.step - first + 1 >= step:
                world.down = down
            return await inner(work)

        world.within = within  # type: ignore[method-assign]
        try:
            await world.attempt(name)
        except OramaError:
            pass
        finally:
            world.within = inner  # type: ignore[method-assign]

    @given(st.data())
    def test_two_at_once(self, data: st.DataObject) -> None:
        """Two commands at two nodes, their steps in any order: all understand each other, and one key is the end."""
        world = World()
        world.waiting = waiting = []
        running = [Deferred.fromCoroutine(world.attempt(name)) for name in NAMES[:2]]
        ended = [attempt.addErrback(lambda failure: failure.trap(Unavailable)) for attempt in running]
        while waiting:
            waiting.pop(data.draw(st.integers(0, len(waiting) - 1))).callback(None)
        for attempt in ended:
            self.successResultOf(attempt)
        world.waiting = None
        while not world.finished():
            self.rotate(world, next(name for name in NAMES if len(world.rings[name].keys) > 1))
        self.assertTrue(world.finished())


class ChangeKeyTests(SynchronousTestCase):
    def test_refused(self) -> None:
        """A key that is sealed with another key, or for something else, and an unknown step change nothing."""
        ring = Keyring([ClusterKey(0, new_key())])
        seal = Seal(ring.sealing_keys)
        text = ClusterKey(1, new_key()).text()
        for code, stage, sealed in (
            ("invalid_key", "accept", Seal(new_key()).seal(text, "cluster key")),
            ("invalid_key", "accept", seal.seal(text, "tenant")),
            ("invalid_key", "accept", seal.seal("no key", "cluster key")),
            ("invalid_key", "accept", text),
            ("invalid_stage", "become", seal.seal(text, "cluster key")),
        ):
            changing = Deferred.fromCoroutine(change_key(ring, stage, sealed))
            self.assertEqual(self.failureResultOf(changing, BadRequest).value.code, code)
        self.assertEqual(len(ring.keys), 1)
