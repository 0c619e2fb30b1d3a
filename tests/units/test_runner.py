"""Roles as parts of the process, and as units."""

from __future__ import annotations

from attrs import evolve
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.desired import Blocks, SfuPlace, TurnPlace, WebRtcConfig
from orama.cluster.placement import SFU, TURN
from orama.cluster.runner import InlineRunner, SystemdRunner, unit_name
from orama.errors import BadRequest, NotFound, Unavailable
from tests.units.systemctl import Systemctl, UnitState

BLOCKS = Blocks((30000, 30000), (20000, 20499), (49152, 49951))


def config(namespace: str = "demo", *, secret: str = "c2VjcmV0", blocks: Blocks = BLOCKS) -> WebRtcConfig:
    return WebRtcConfig(
        namespace,
        (secret,),
        600,
        True,
        blocks,
        (SfuPlace("n1", "127.0.0.1", 30000, (20000, 20499)),),
        (TurnPlace("n1", "127.0.0.1", "127.0.0.1", (49152, 49951), 3478, 5349),),
    )


class InlineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.served: dict[str, WebRtcConfig] = {}
        self.wanted = {"demo": config()}
        self.fails = False
        self.runner = InlineRunner(self.apply, self.config)

    async def apply(self, namespace: str, given: WebRtcConfig | None) -> None:
        if self.fails:
            raise Unavailable("port_in_use", "taken")
        if given is None:
            self.served.pop(namespace, None)
        else:
            self.served[namespace] = given

    async def config(self, namespace: str) -> WebRtcConfig:
        if namespace not in self.wanted:
            raise NotFound("webrtc_not_enabled", "no")
        return self.wanted[namespace]

    def now(self, coroutine: object) -> object:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))  # type: ignore[arg-type]

    def test_roles_one_by_one(self) -> None:
        """A role that was not started has no ports in what is served."""
        self.now(self.runner.start("demo", TURN))
        self.assertEqual(self.served["demo"].blocks, Blocks(relay=BLOCKS.relay))
        self.now(self.runner.start("demo", SFU))
        self.assertEqual(self.served["demo"].blocks, BLOCKS)
        self.now(self.runner.stop("demo", TURN))
        self.assertEqual(self.served["demo"].blocks, Blocks(BLOCKS.signaling, BLOCKS.media))
        self.assertEqual(self.now(self.runner.survey()), {("demo", SFU)})
        self.now(self.runner.stop("demo", SFU))
        self.assertEqual((self.served, self.now(self.runner.survey())), ({}, frozenset()))

    def test_refresh(self) -> None:
        """What has changed reaches what runs, and nothing else."""
        self.now(self.runner.start("demo", TURN))
        self.wanted["demo"] = config(secret="other")
        self.wanted["idle"] = config("idle")
        self.now(self.runner.refresh("demo"))
        self.now(self.runner.refresh("idle"))
        self.assertEqual(self.served, {"demo": evolve(config(secret="other"), blocks=Blocks(relay=BLOCKS.relay))})

    def test_failure(self) -> None:
        """A role that could not be started does not run; the reason goes through."""
        self.fails = True
        failed = self.failureResultOf(Deferred.fromCoroutine(self.runner.start("demo", SFU)), Unavailable)
        self.assertEqual(failed.value.code, "port_in_use")  # type: ignore[attr-defined]
        self.assertFalse(self.runner.running("demo", SFU))


class SystemdTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.systemctl = Systemctl()
        self.attached: set[tuple[str, str]] = set()
        self.told: list[tuple[str, ...]] = []
        self.taken: list[str] = []
        self.runner = SystemdRunner(
            self.systemctl,
            lambda namespace, role: (namespace, role) in self.attached,
            self.tell,
            self.leave,
            lambda namespace, role: self.taken.pop() if self.taken else None,
        )

    async def tell(self, namespace: str) -> None:
        self.told.append(("tell", namespace))

    async def leave(self, namespace: str, role: str) -> None:
        self.told.append(("leave", namespace, role))

    def now(self, coroutine: object) -> object:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))  # type: ignore[arg-type]

    def test_start(self) -> None:
        """A unit is asked for without waiting; the role runs when its process has come."""
        self.now(self.runner.start("demo", SFU))
        self.assertEqual(self.systemctl.calls[-1], ("start", "orama-namespace-sfu@demo.service"))
        self.assertFalse(self.runner.running("demo", SFU))
        self.attached.add(("demo", SFU))
        self.assertTrue(self.runner.running("demo", SFU))

    def test_start_again(self) -> None:
        """A unit that is on its way is not asked for again."""
        self.now(self.runner.start("demo", SFU))
        self.now(self.runner.start("demo", SFU))
        self.assertEqual([call[0] for call in self.systemctl.calls].count("start"), 1)

    def test_keeps_failing(self) -> None:
        """A unit that systemd starts again and again is an error that says where to look."""
        name = unit_name("demo", SFU)
        self.systemctl.units[name] = UnitState("activating", "auto-restart", "exit-code")
        error = self.failureResultOf(Deferred.fromCoroutine(self.runner.start("demo", SFU)), Unavailable).value
        self.assertEqual(
            error.message,  # type: ignore[attr-defined]
            f"{name} fails (exit-code); journalctl -u {name} says why",
        )

    def test_taken_port(self) -> None:
        """A process that could not open its ports is an error of its own, once: other ports may help."""
        self.taken = ["30000 is taken"]
        error = self.failureResultOf(Deferred.fromCoroutine(self.runner.start("demo", SFU)), Unavailable).value
        self.assertEqual(error.code, "port_in_use")  # type: ignore[attr-defined]
        self.now(self.runner.start("demo", SFU))

    def test_runs_and_does_not_serve(self) -> None:
        """A process that has come and does not serve is told what it has to know once more."""
        self.now(self.runner.start("demo", SFU))
        self.systemctl.unit(unit_name("demo", SFU)).active = "active"
        self.now(self.runner.start("demo", SFU))
        self.assertEqual(self.told, [("tell", "demo")])

    def test_failed_before(self) -> None:
        """A unit that systemd has given up is started all the same."""
        name = unit_name("demo", TURN)
        self.systemctl.units[name] = UnitState("failed", "failed", "watchdog")
        self.now(self.runner.start("demo", TURN))
        self.assertEqual([call[0] for call in self.systemctl.calls], ["show", "reset-failed", "start"])

    def test_stop(self) -> None:
        """People are told first; the unit is there until its drain is through, and is not stopped twice."""
        self.now(self.runner.start("demo", SFU))
        self.now(self.runner.stop("demo", SFU))
        self.assertEqual(self.told, [("leave", "demo", SFU)])
        self.assertEqual(self.now(self.runner.survey()), {("demo", SFU)})
        self.now(self.runner.stop("demo", SFU))
        self.assertEqual([call[0] for call in self.systemctl.calls].count("stop"), 1)
        self.systemctl.units.clear()
        self.assertEqual(self.now(self.runner.survey()), frozenset())

    def test_stop_what_is_not_there(self) -> None:
        """Nothing happens."""
        self.now(self.runner.stop("demo", SFU))
        self.assertEqual((self.told, [call[0] for call in self.systemctl.calls]), ([], ["show"]))

    def test_survey(self) -> None:
        """Units that an earlier process of this node has started are found; whatever else is there is not ours."""
        for name in (
            "orama-namespace-sfu@my-app.service",
            "orama-namespace-turn@my-app.service",
            "orama-namespace-other@my-app.service",
            "orama-namespace-sfu@Not.Ours.service",
        ):
            self.systemctl.units[name] = UnitState("active", "running")
        self.systemctl.units["orama-namespace-sfu@gone.service"] = UnitState()
        self.assertEqual(self.now(self.runner.survey()), {("my-app", SFU), ("my-app", TURN)})

    def test_no_systemd(self) -> None:
        """Where systemd does not answer, its own words say why."""
        self.systemctl.away = True
        error = self.failureResultOf(Deferred.fromCoroutine(self.runner.start("demo", SFU)), Unavailable).value
        self.assertIn("Failed to connect to bus: No such file or directory", str(error))
        self.flushLoggedErrors()

    def test_names(self) -> None:
        """Only what is a namespace becomes a part of the name of a unit."""
        self.assertEqual(unit_name("my-app", TURN), "orama-namespace-turn@my-app.service")
        for wrong in ("", "-a", "a b", "a/../b", "a.service --now", "A", "ä", "a\n"):
            with self.assertRaises(BadRequest):
                unit_name(wrong, TURN)
        with self.assertRaises(BadRequest):
            unit_name("a", "dns")

    def test_refresh(self) -> None:
        """What has changed is told to whatever runs."""
        self.now(self.runner.refresh("demo"))
        self.assertEqual(self.told, [("tell", "demo")])


NAMESPACES = st.sampled_from(("a", "b-c"))
ROLES = st.sampled_from((SFU, TURN))


class _History(RuleBasedStateMachine):
    """Units that come, go and fail as they like, and a runner that is to bring about what is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.systemctl = Systemctl()
        self.wanted: set[tuple[str, str]] = set()
        self.runner = SystemdRunner(self.systemctl, self.serves, self.tell, self.leave)

    def serves(self, namespace: str, role: str) -> bool:
        return self.systemctl.unit(unit_name(namespace, role)).active in ("active", "deactivating")

    async def tell(self, namespace: str) -> None:
        """Nobody listens."""

    async def leave(self, namespace: str, role: str) -> None:
        """Nobody listens."""

    @rule(namespace=NAMESPACES, role=ROLES, wanted=st.booleans())
    def want(self, namespace: str, role: str, wanted: bool) -> None:
        (self.wanted.add if wanted else self.wanted.discard)((namespace, role))

    @rule(namespace=NAMESPACES, role=ROLES)
    def fail(self, namespace: str, role: str) -> None:
        unit = self.systemctl.unit(unit_name(namespace, role))
        if unit.active == "active":
            unit.active, unit.sub, unit.result = "failed", "failed", "exit-code"

    @rule()
    def time_goes_by(self) -> None:
        self.settle()

    @rule()
    def reconcile(self) -> None:
        """As the reconciler does it."""
        held = self.result(self.runner.survey())
        for namespace, role in held - self.wanted:
            self.result(self.runner.stop(namespace, role))
        for namespace, role in self.wanted:
            if not self.runner.running(namespace, role):
                self.result(self.runner.start(namespace, role))

    @invariant()
    def in_the_end(self) -> None:
        """From anywhere, three passes with time between them make what is wanted true, and nothing else."""
        kept = {name: UnitState(unit.active, unit.sub, unit.result) for name, unit in self.systemctl.units.items()}
        for _ in range(3):
            self.reconcile()
            self.settle()
        assert self.result(self.runner.survey()) == self.wanted, (self.systemctl.units, self.wanted)
        assert all(self.runner.running(*each) for each in self.wanted)
        self.systemctl.units = kept

    def settle(self) -> None:
        for unit in self.systemctl.units.values():
            if unit.active == "activating":
                unit.active, unit.sub = "active", "running"
            elif unit.active == "deactivating":
                unit.active, unit.sub = "inactive", "dead"

    @staticmethod
    def result(coroutine: object) -> frozenset[tuple[str, str]]:
        found: list[frozenset[tuple[str, str]]] = []
        Deferred.fromCoroutine(coroutine).addCallback(found.append)  # type: ignore[arg-type]
        return found[0]


class HistoryTests(SynchronousTestCase):
    def test_any_history(self) -> None:
        """Whatever units did before, what is wanted runs in the end, and nothing that is not."""
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            _History, settings=hypothesis_settings(max_examples=60, stateful_step_count=20, deadline=None)
        )
