"""The loop of one node: in which order, how often, for whom, and what keeps nothing else from being done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.backoff import FIRST, LONGEST
from orama.cluster.desired import MEDIA, RELAY, SIGNALING, Block, DesiredNamespace, WebRtcConfig
from orama.cluster.placement import ROLES, SFU, TURN, Role
from orama.cluster.reconciler import Reconciler, Wanted
from orama.errors import Unavailable
from tests.cluster.nodes import MemoryRunner

BROKEN = Unavailable("broken", "it does not work")


def desired(name: str, block: int = 0, roles: tuple[str, ...] = ROLES, *, enabled: bool = True) -> DesiredNamespace:
    """What is wanted of a namespace that has the *block*-th of each kind on this node."""
    blocks: dict[str, Block] = {}
    if SFU in roles:
        blocks |= {SIGNALING: (30000 + block, 30000 + block), MEDIA: (20000 + 500 * block, 20499 + 500 * block)}
    if TURN in roles:
        blocks |= {RELAY: (49152 + 800 * block, 49951 + 800 * block)}
    return DesiredNamespace(
        name,
        enabled,
        "token",
        "secret",
        None,
        600,
        rooms_on_join=True,
        sfu_nodes=1,
        turn_nodes=1,
        roles=tuple(Role(role, 0, "me") for role in roles),
        blocks={"me": blocks},
    )


class ReconcilerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.wanted: dict[str, DesiredNamespace] = {}
        self.runner = MemoryRunner(lambda namespace: self.reconciler.configs.get(namespace))
        self.said = self.runner.said
        #: What reading fails with, what is waited for before it answers, and how often it was asked.
        self.away: Exception | None = None
        self.slow: Deferred[None] | None = None
        self.reads = 0
        self.stopped: list[str] = []
        self.unreadable: set[str] = set()
        self.attended: list[Mapping[str, WebRtcConfig]] = []
        self.attending: Exception | None = None
        self.repaired = 0
        self.reconciler = self.make({"names": self.attend})

    def make(self, attend: Mapping[str, Callable[[Mapping[str, WebRtcConfig]], Awaitable[None]]]) -> Reconciler:
        wanted = Wanted(self.read, self.config_of, self.note_stopped, self.repair)
        return Reconciler(self.clock, "me", self.runner, wanted, attend, self.move)

    async def read(self) -> Mapping[str, DesiredNamespace]:
        self.reads += 1
        if self.slow is not None:
            await self.slow
        if self.away is not None:
            raise self.away
        return dict(self.wanted)

    def config_of(self, each: DesiredNamespace) -> WebRtcConfig:
        if each.namespace in self.unreadable:
            raise Unavailable("secret_unreadable", "it was sealed with another key")
        return each.config("me", {}, lambda sealed: sealed, 0.0)

    async def note_stopped(self, namespace: str) -> None:
        self.stopped.append(namespace)
        self.wanted.pop(namespace)

    async def attend(self, configs: Mapping[str, WebRtcConfig]) -> None:
        self.attended.append(configs)
        if self.attending is not None:
            raise self.attending

    async def repair(self, _: Mapping[str, DesiredNamespace]) -> None:
        self.repaired += 1

    async def move(self, namespace: str) -> None:
        self.said.append(("move", namespace, ""))
        self.wanted[namespace] = desired(namespace, 7)
        self.runner.broken.clear()

    def want(self, *namespaces: DesiredNamespace) -> None:
        self.wanted = {each.namespace: each for each in namespaces}

    def running(self, urgent: str | None = None) -> Deferred[None]:
        return Deferred.fromCoroutine(self.reconciler.run(urgent))

    def run_once(self, urgent: str | None = None) -> list[tuple[str, str, str]]:
        """What one pass says to the runner."""
        self.said.clear()
        self.successResultOf(self.running(urgent))
        return list(self.said)

    def test_turn_first(self) -> None:
        """TURN is started before the SFU that is reached through it; a second pass has nothing to do."""
        self.want(desired("red"))
        self.assertEqual(self.run_once(), [("start", "red", TURN), ("start", "red", SFU)])
        self.assertTrue(self.reconciler.settled)
        self.assertEqual(self.run_once(), [])

    def test_stops_sfu_first(self) -> None:
        """What is wanted no more is stopped, the SFU first, and only then it is told that it has ended."""
        self.want(desired("red"))
        self.run_once()
        self.want(desired("red", enabled=False))
        self.runner.stubborn["red", TURN] = BROKEN
        self.assertEqual(self.run_once(), [("stop", "red", SFU), ("stop", "red", TURN)])
        self.assertEqual(self.stopped, [])
        self.runner.stubborn.clear()
        self.clock.advance(FIRST)
        self.assertEqual(self.run_once(), [("stop", "red", TURN)])
        self.assertEqual(self.stopped, ["red"])

    def test_ends_before_it_begins(self) -> None:
        """Whoever gets ports begins after whoever had them has ended, or has moved away."""
        self.want(desired("red"), desired("blue", 1))
        self.run_once()
        self.want(desired("blue", 2), desired("amber"), desired("beige", 1))
        said = self.run_once()
        begins = min(said.index(("start", name, TURN)) for name in ("amber", "beige"))
        self.assertLess(said.index(("stop", "red", SFU)), begins)
        self.assertLess(said.index(("stop", "red", TURN)), begins)
        self.assertLess(said.index(("refresh", "blue", "")), begins)

    def test_refresh(self) -> None:
        """What runs is told of a change once; a role that is taken away is stopped and the other goes on."""
        self.want(desired("red"))
        self.run_once()
        self.want(evolve(desired("red"), secret="another"))
        self.assertEqual(self.run_once(), [("refresh", "red", "")])
        self.assertEqual(self.run_once(), [])
        self.assertEqual(self.runner.up["red", TURN].turn_secret, "another")
        self.want(evolve(desired("red", roles=(TURN,)), secret="another"))
        self.assertEqual(self.run_once(), [("stop", "red", SFU), ("refresh", "red", "")])

    def test_survivors(self) -> None:
        """What nobody has asked this process for, and runs all the same, is told how things are, or stopped."""
        old = self.config_of(desired("red"))
        self.runner.up = {("red", TURN): old, ("red", SFU): old, ("blue", SFU): old}
        self.want(desired("red"))
        self.assertEqual(self.run_once(), [("stop", "blue", SFU), ("refresh", "red", "")])

    def test_back_off(self) -> None:
        """What fails is tried later and later, and is told apart from what works: that is started all the same."""
        self.runner.broken["red", TURN] = BROKEN
        self.want(desired("red"), desired("blue", 1))
        self.run_once()
        self.assertEqual(set(self.runner.up), {("blue", TURN), ("blue", SFU)})
        self.assertEqual(self.reconciler.observed("red")["error"], BROKEN.message)
        self.assertIsNone(self.reconciler.observed("blue")["error"])
        self.assertFalse(self.reconciler.settled)
        tries = 0
        for _ in range(300):
            self.clock.advance(1.0)
            tries += len(self.run_once())
        self.assertEqual(tries, 1 + 1 + 1 + 1 + 1 + (300 - 31) // LONGEST)
        self.runner.broken.clear()
        self.clock.advance(LONGEST)
        self.assertEqual(self.run_once(), [("start", "red", TURN), ("start", "red", SFU)])
        self.assertIsNone(self.reconciler.observed("red")["error"])

    def test_urgent(self) -> None:
        """A namespace that somebody waits for is tried at once, also when a pass that is under way fails with it."""
        self.runner.broken["red", TURN] = BROKEN
        self.want(desired("red"))
        self.run_once()
        self.assertEqual(self.run_once(), [])
        self.assertEqual(self.run_once("red"), [("start", "red", TURN)])
        self.clock.advance(LONGEST)
        self.said.clear()
        self.slow = Deferred()
        first, second = self.running(), self.running("red")
        slow, self.slow = self.slow, None
        slow.callback(None)
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.said, [("start", "red", TURN)] * 2)

    def test_anything_may_fail(self) -> None:
        """Also what has no name of ours keeps nothing else from being done."""
        self.attending = ValueError("a bug")
        self.want(desired("red"))
        self.run_once()
        self.assertEqual(self.repaired, 1)
        self.assertTrue(self.reconciler.settled)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.run_once()
        self.assertEqual(len(self.attended), 1)
        self.attending = None
        self.clock.advance(FIRST)
        self.run_once()
        self.assertEqual(len(self.attended), 2)

    def test_repair_fails(self) -> None:
        """When the leader cannot put right the others' affairs its own are in order."""

        async def fails(_: Mapping[str, DesiredNamespace]) -> None:
            raise Unavailable("no_free_ports", "there is no room")

        wanted = Wanted(self.read, self.config_of, self.note_stopped, fails)
        self.reconciler = Reconciler(self.clock, "me", self.runner, wanted, {}, self.move)
        self.want(desired("red"))
        self.run_once()
        self.assertTrue(self.reconciler.settled)

    def test_unreadable_secret(self) -> None:
        """A secret that cannot be read is an error of its namespace; what runs of it goes on, and the others do."""
        self.want(desired("red"))
        self.run_once()
        self.unreadable.add("red")
        self.want(desired("red"), desired("blue", 1))
        self.assertEqual(self.run_once(), [("start", "blue", TURN), ("start", "blue", SFU)])
        self.assertIn("another key", self.reconciler.observed("red")["error"])
        self.assertEqual(set(self.runner.up), {(name, role) for name in ("red", "blue") for role in ROLES})

    def test_moves(self) -> None:
        """An SFU whose port another program has gets other ports and starts; what runs is then told of them."""
        self.runner.broken["red", SFU] = Unavailable("port_in_use", "somebody else has it")
        self.want(desired("red"))
        said = self.run_once()
        self.assertEqual(said[-2:], [("move", "red", ""), ("start", "red", SFU)])
        self.assertEqual(self.runner.up["red", SFU].blocks.signaling, (30007, 30007))
        self.assertEqual(self.run_once(), [("refresh", "red", "")])
        self.assertEqual(self.runner.up["red", TURN].blocks.media, (23500, 23999))

    def test_one_at_a_time(self) -> None:
        """However many ask while a pass is under way, there is one more, which begins after they have asked."""
        self.slow = Deferred()
        waiting = [self.running() for _ in range(5)]
        self.want(desired("red"))
        slow, self.slow = self.slow, None
        slow.callback(None)
        for each in waiting:
            self.successResultOf(each)
        self.assertEqual(self.reads, 2)
        self.assertTrue(self.reconciler.settled)

    def test_database_away(self) -> None:
        """Everybody who asked is told that the database is away; what runs goes on, and the next pass is like any."""
        self.want(desired("red"))
        self.run_once()
        self.slow = Deferred()
        waiting = [self.running() for _ in range(3)]
        self.away = Unavailable("store_unavailable", "the database does not answer")
        slow, self.slow = self.slow, None
        slow.callback(None)
        for each in waiting:
            self.failureResultOf(each, Unavailable)
        self.assertEqual(len(self.runner.up), 2)
        self.away = None
        self.assertEqual(self.run_once(), [])

    def test_impatient(self) -> None:
        """Who stops waiting keeps nobody else from waiting."""
        self.slow = Deferred()
        first, second, third = (self.running() for _ in range(3))
        third.cancel()
        self.failureResultOf(third)
        slow, self.slow = self.slow, None
        slow.callback(None)
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.run_once(), [])

    def test_given_up(self) -> None:
        """Who gives up hears so at once, whatever the pass is at; it goes on, since others' services depend on it."""
        self.want(desired("red"))
        self.slow = Deferred()
        only = self.running()
        only.cancel()
        self.failureResultOf(only, CancelledError)
        slow, self.slow = self.slow, None
        slow.callback(None)
        self.assertTrue(self.reconciler.settled)
        self.assertEqual(len(self.runner.up), 2)

    def test_gives_up_before_its_turn(self) -> None:
        """When the one whose pass is to be shared gives up before it begins, the next who asks gets one."""
        self.slow = Deferred()
        first, second = self.running(), self.running()
        second.cancel()
        self.failureResultOf(second)
        slow, self.slow = self.slow, None
        slow.callback(None)
        self.successResultOf(first)
        self.want(desired("red"))
        self.assertEqual(len(self.run_once()), 2)

    def test_stop(self) -> None:
        """Stopping waits for the pass under way, and there is none afterwards."""
        self.slow = Deferred()
        first = self.running()
        over = Deferred.fromCoroutine(self.reconciler.stop())
        self.assertNoResult(over)
        self.slow.callback(None)
        self.successResultOf(first)
        self.successResultOf(over)
        self.want(desired("red"))
        self.assertEqual(self.run_once(), [])
