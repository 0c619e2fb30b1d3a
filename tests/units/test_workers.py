"""The SFUs that are processes, as their node sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import asdict, evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.desired import Blocks
from orama.cluster.rooms import RoomRecord
from orama.cluster.workers import (
    ANSWER_TIMEOUT,
    MOST_QUESTIONS,
    OBEY_TIMEOUT,
    SILENCE,
    TOGETHER,
    Assignment,
    LiveRoom,
    Report,
    Worker,
    Workers,
)
from orama.errors import Conflict, NotFound, Unavailable
from orama.settings import AuthSettings, NamespaceWebhookSettings, Settings, WebhookSettings
from orama.sfu.occurrences import Occurrence
from tests.units.test_runner import config


class Rooms:
    """The directory, as far as workers ask it."""

    node_id = "n1"

    def __init__(self) -> None:
        self.rows: set[tuple[str, str]] = set()

    async def claim(self, namespace: str, room_id: str) -> RoomRecord:
        self.rows.add((namespace, room_id))
        return RoomRecord(namespace, room_id, "n1", 10, 0, 0.0)

    async def release(self, namespace: str, room_id: str) -> bool:
        self.rows.discard((namespace, room_id))
        return True


class WorkersCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.assignments = {"demo": Assignment("n1", Settings(), config())}
        self.away = False
        self.workers = Workers(self.clock, Rooms(), self.assign)

    async def assign(self, namespace: str) -> Assignment:
        if self.away:
            raise Unavailable("database_unavailable", "the database is away")
        try:
            return self.assignments[namespace]
        except KeyError:
            raise NotFound("webrtc_not_enabled", "no") from None

    def attached(self, index: int = 0, run: str | None = None) -> tuple[Worker, list[Mapping[str, Any]]]:
        said: list[Mapping[str, Any]] = []

        def say(message: Mapping[str, Any]) -> bool:
            said.append(message)
            return True

        return self.now(self.workers.attach("demo", say, index, run)), said

    def now(self, coroutine: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def now_raising(self, coroutine: Any) -> None:
        raise self.failureResultOf(Deferred.fromCoroutine(coroutine)).value


class WorkersTests(WorkersCase):
    def test_assignment_travels(self) -> None:
        """What a worker is told is what its node means, without the database's URL and the keys of tokens."""
        settings = Settings(database="postgresql+psycopg://u:sesame@h/x", auth=AuthSettings(jwt_keys=("k",)))
        given = Assignment("n1", settings, config(), "wss://n2.example")
        received = Assignment.from_json(given.to_json())
        self.assertEqual(received, evolve(given, settings=evolve(settings, database="", auth=AuthSettings())))
        self.assertNotIn("sesame", repr(given.to_json()))

    def test_webhooks_travel(self) -> None:
        """A worker knows whether events are told, and no secret: its node signs them."""
        own = NamespaceWebhookSettings("https://b", "sesame" * 6, ("room_started",))
        webhooks = WebhookSettings("https://a", "sesame" * 6, namespaces={"demo": own})
        given = Assignment("n1", Settings(webhooks=webhooks), config())
        received = Assignment.from_json(given.to_json()).settings.webhooks
        self.assertEqual((received.url, received.namespaces["demo"].events), ("https://a", ("room_started",)))
        self.assertNotIn("sesame", repr(given.to_json()))

    def test_no_assignment(self) -> None:
        """Anything else is refused in one word."""
        for wrong in (None, [], {}, {"node_id": "x"}, {**self.assignments["demo"].to_json(), "more": 1}):
            with self.assertRaises(ValueError):
                Assignment.from_json(wrong)
        for wrong in (None, [1], {"rooms": [1]}, {"rooms": [{"room_id": "a"}]}, {"more": 1}):
            with self.assertRaises(ValueError):
                Report.from_json(wrong)

    def test_comes_and_serves(self) -> None:
        """It is told what it has to know when it comes, and serves when it reports."""
        _, said = self.attached()
        self.assertEqual([each["event"] for each in said], ["assignment"])
        self.assertFalse(self.workers.serves("demo"))
        self.workers.reported("demo", Report())
        self.assertTrue(self.workers.serves("demo"))

    def test_stuck(self) -> None:
        """One that does not report any more does not serve."""
        self.attached()
        self.workers.reported("demo", Report())
        self.clock.advance(SILENCE + 0.1)
        self.assertFalse(self.workers.serves("demo"))

    def test_goes(self) -> None:
        """One that has gone does not serve, and its rooms are no rooms."""
        worker, _ = self.attached()
        self.workers.reported("demo", Report((LiveRoom("lobby", 2, 10),)))
        self.assertEqual((self.workers.peers(), self.workers.live()), (2, {("demo", "lobby"): 2}))
        self.workers.detach(worker)
        self.assertEqual((self.workers.serves("demo"), self.workers.peers()), (False, 0))
        with self.assertRaises(Conflict):
            self.workers.reported("demo", Report())

    def test_two(self) -> None:
        """The one that came last counts; the end of the other changes nothing."""
        first, said = self.attached()
        self.attached()
        self.assertEqual(said[-1]["event"], "replaced")
        self.workers.reported("demo", Report())
        self.workers.detach(first)
        self.assertTrue(self.workers.serves("demo"))

    def test_unwanted(self) -> None:
        """A namespace that has no SFU here has no worker."""
        failed = self.failureResultOf(Deferred.fromCoroutine(self.workers.attach("other", lambda _: True)), NotFound)
        self.assertEqual(failed.value.code, "webrtc_not_enabled")  # type: ignore[attr-defined]

    def test_moved(self) -> None:
        """Where the role is another node's by now, nobody is let in any more."""
        self.assignments["demo"] = evolve(self.assignments["demo"], config=config(blocks=Blocks()))
        self.failureResultOf(Deferred.fromCoroutine(self.workers.attach("demo", lambda _: True)), NotFound)

    def test_refresh(self) -> None:
        """A change is told to the one that is there."""
        _, said = self.attached()
        self.assignments["demo"] = evolve(self.assignments["demo"], config=config(secret="other"))
        self.now(self.workers.refresh("demo"))
        self.now(self.workers.refresh("nobody"))
        self.assertEqual(Assignment.from_json(said[-1]["assignment"]).config.turn_secrets, ("other",))

    def test_other_settings(self) -> None:
        """Other settings of the node are told to all that are there; what cannot be found out stays as it was."""
        _, said = self.attached()
        settings = Settings(webhooks=WebhookSettings("https://a", "sesame" * 6))
        self.assignments["demo"] = evolve(self.assignments["demo"], settings=settings)
        self.now(self.workers.refresh_all())
        self.assertEqual(Assignment.from_json(said[-1]["assignment"]).settings.webhooks.url, "https://a")
        self.away = True
        self.now(self.workers.refresh_all())
        self.assertEqual(len(said), 2)

    def test_leave(self) -> None:
        """Before it stops it learns whether its people are to go elsewhere, or have nowhere to go."""
        _, said = self.attached()
        self.assignments["demo"] = evolve(self.assignments["demo"], reconnect_url="wss://n2.example")
        leaving = Deferred.fromCoroutine(self.workers.leave("demo"))
        self.assertEqual(said[-1]["assignment"]["reconnect_url"], "wss://n2.example")
        self.workers.reported("demo", Report(heard=1))
        self.assertNoResult(leaving)
        self.workers.reported("demo", Report(heard=2))
        self.successResultOf(leaving)
        self.away = True
        self.now(self.workers.leave("demo"))
        self.assertEqual(len(said), 2)
        self.away = False
        self.assignments.clear()
        leaving = Deferred.fromCoroutine(self.workers.leave("demo"))
        self.assertEqual(said[-1], {"event": "unwanted", "serial": 3})
        self.clock.advance(OBEY_TIMEOUT)
        self.successResultOf(leaving)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_leave_of_the_dead(self) -> None:
        """Nobody waits for a worker that goes away meanwhile."""
        worker, _ = self.attached()
        leaving = Deferred.fromCoroutine(self.workers.leave("demo"))
        self.workers.detach(worker)
        self.successResultOf(leaving)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_rooms(self) -> None:
        """Rooms are made and closed where the worker is, and looked up in what it last said."""
        _, said = self.attached()
        self.workers.create("demo", "lobby", 5)
        self.workers.close("demo", "lobby", "room-closed")
        self.workers.lose("demo", "lobby")
        self.assertEqual([each["event"] for each in said[1:]], ["create", "close", "lose"])
        self.workers.reported("demo", Report((LiveRoom("lobby", 3, 5),)))
        self.assertEqual(self.workers.get("demo", "lobby"), LiveRoom("lobby", 3, 5))
        self.assertIsNone(self.workers.get("demo", "other"))
        with self.assertRaises(NotFound):
            self.workers.create("nobody", "lobby", 5)
        self.workers.close("nobody", "lobby")

    def test_stats(self) -> None:
        """A worker is asked what goes on in a room that it has; its answer goes to whoever asked."""
        worker, said = self.attached()
        self.assertIsNone(self.now(self.workers.stats("demo", "lobby")))
        self.assertIsNone(self.now(self.workers.stats("nobody", "lobby")))
        self.workers.reported("demo", Report((LiveRoom("lobby", 3, 5),)))
        first = Deferred.fromCoroutine(self.workers.stats("demo", "lobby"))
        second = Deferred.fromCoroutine(self.workers.stats("demo", "lobby", "p1"))
        self.assertEqual([each.get("peer_id") for each in said[-2:]], [None, "p1"])
        self.workers.answered("demo", said[-1]["serial"], {"peers": ["p1"]})
        self.workers.answered("demo", said[-1]["serial"], {"peers": ["again"]})
        self.workers.answered("demo", said[-2]["serial"], {"peers": []})
        self.assertEqual(self.successResultOf(first), {"peers": []})
        self.assertEqual(self.successResultOf(second), {"peers": ["p1"]})
        self.assertEqual(self.clock.getDelayedCalls(), [])
        late = Deferred.fromCoroutine(self.workers.stats("demo", "lobby"))
        self.clock.advance(ANSWER_TIMEOUT)
        self.assertEqual(self.failureResultOf(late, Unavailable).value.code, "sfu_silent")
        gone = Deferred.fromCoroutine(self.workers.stats("demo", "lobby"))
        self.workers.detach(worker)
        self.failureResultOf(gone, Unavailable)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_many_questions(self) -> None:
        """So many questions are open at once, and no more."""
        self.attached()
        self.workers.reported("demo", Report((LiveRoom("lobby", 3, 5),)))
        asked = [Deferred.fromCoroutine(self.workers.stats("demo", "lobby")) for _ in range(MOST_QUESTIONS + 1)]
        self.failureResultOf(asked.pop(), Unavailable)
        for each in asked:
            self.assertNoResult(each)
        self.clock.advance(ANSWER_TIMEOUT)
        for each in asked:
            self.failureResultOf(each, Unavailable)

    def test_claims(self) -> None:
        """Only a worker that is attached claims rooms."""
        with self.assertRaises(Conflict):
            self.now_raising(self.workers.claim("demo", "lobby"))
        self.attached()
        self.assertEqual(self.now(self.workers.claim("demo", "lobby")).node_id, "n1")
        self.assertTrue(self.now(self.workers.release("demo", "lobby")))

    def test_figures(self) -> None:
        """What it counts is shown with the node's, its times of joins and first frames too."""
        times: list[float] = []
        self.workers.on_secured = times.append
        self.workers.on_first_frame = times.append
        self.attached()
        sample = ("orama_sfu_peers", {"namespace": "demo"}, 3.0)
        self.workers.reported("demo", Report((), (sample,), secured=(0.25,), first_frames=(0.5,)))
        serving = ("orama_sfu_processes", {"namespace": "demo"}, 1.0)
        self.assertEqual((list(self.workers.samples()), times), ([sample, serving], [0.25, 0.5]))

    def test_occurrences(self) -> None:
        """What happened in its rooms is told on, also what a worker says last; nobody speaks for other namespaces."""
        told: list[Occurrence] = []
        self.workers.on_occurrence = told.append
        one = Occurrence("ev_1", "room_finished", 2.0, "demo", "lobby", 1.0, {"reason": "empty"})
        self.workers.occurred("demo", [asdict(one)])
        self.assertEqual(told, [one])
        for namespace, wrong in (("demo", None), ("demo", [1]), ("demo", [{"id": "x"}]), ("other", [asdict(one)])):
            with self.assertRaises(ValueError):
                self.workers.occurred(namespace, wrong)
        self.assertEqual(len(told), 1)


class SeveralTests(WorkersCase):
    """Workers that share the rooms of a namespace."""

    def setUp(self) -> None:
        super().setUp()
        self.workers = Workers(self.clock, Rooms(), self.assign, lambda namespace, index: f"/{namespace}.{index}")

    def serving(self, *reports: Report) -> list[tuple[Worker, list[Mapping[str, Any]]]]:
        """So many workers that have said that."""
        pairs = [self.attached(index) for index in range(len(reports))]
        for index, report in enumerate(reports):
            self.workers.reported("demo", report, index)
        return pairs

    def test_doors(self) -> None:
        """Each is told where it is to take clients."""
        pairs = self.serving(Report(), Report())
        doors = [Assignment.from_json(said[0]["assignment"]).door for _, said in pairs]
        self.assertEqual(doors, ["/demo.0", "/demo.1"])
        self.now(self.workers.refresh("demo"))
        self.assertEqual([Assignment.from_json(said[-1]["assignment"]).door for _, said in pairs], doors)

    def test_way(self) -> None:
        """Everybody who comes for a room is sent to the same one, and rooms to several."""
        self.serving(Report(), Report())
        ways = [self.workers.way("demo", f"room-{number}") for number in range(4)]
        self.assertEqual(ways, ["/demo.0", "/demo.1", "/demo.0", "/demo.1"])
        self.assertEqual([self.workers.way("demo", f"room-{number}") for number in range(4)], ways)

    def test_no_way(self) -> None:
        """Where none has come there is no way; where none serves yet, none yet."""
        self.assertIsNone(self.workers.way("demo", "lobby"))
        self.attached()
        with self.assertRaises(Unavailable):
            self.workers.way("demo", "lobby")

    def test_together(self) -> None:
        """At the start the first one waits for the others with rooms; once all have come nobody waits any more."""
        self.workers = Workers(self.clock, Rooms(), self.assign, lambda namespace, index: f"/{index}", 3)
        self.clock.advance(1000.0)
        first, _ = self.attached(0)
        self.workers.reported("demo", Report(), 0)
        self.assertFalse(self.workers.serves("demo"))
        with self.assertRaises(Unavailable):
            self.workers.way("demo", "lobby")
        for index in (1, 2):
            self.attached(index)
            self.workers.reported("demo", Report(), index)
        ways = [self.workers.way("demo", f"room-{number}") for number in range(3)]
        self.assertEqual((self.workers.serves("demo"), ways), (True, ["/0", "/1", "/2"]))
        self.workers.detach(first)
        self.assertEqual(self.workers.way("demo", "room-0"), "/1")

    def test_one_never_comes(self) -> None:
        """Nobody waits for ever for one that does not come."""
        self.workers = Workers(self.clock, Rooms(), self.assign, count=2)
        self.attached(0)
        self.clock.advance(TOGETHER)
        self.workers.reported("demo", Report(), 0)
        self.assertTrue(self.workers.serves("demo"))

    def test_stuck(self) -> None:
        """New rooms do not go to one that says nothing; those that it has stay with it."""
        self.serving(Report((LiveRoom("lobby", 2, 5),)), Report())
        self.clock.advance(SILENCE + 0.1)
        self.workers.reported("demo", Report(), 1)
        self.assertTrue(self.workers.serves("demo"))
        self.assertEqual(self.workers.way("demo", "lobby"), "/demo.0")
        self.assertEqual([self.workers.way("demo", f"room-{number}") for number in range(3)], ["/demo.1"] * 3)

    def test_one_goes(self) -> None:
        """When one has gone its rooms go to another, at once; the rooms of others stay where they are."""
        (first, _), _ = self.serving(Report((LiveRoom("a", 2, 5),)), Report((LiveRoom("b", 9, 9),)))
        self.assertEqual(self.workers.live(), {("demo", "a"): 2, ("demo", "b"): 9})
        self.workers.detach(first)
        self.assertEqual((self.workers.live(), self.workers.serves("demo")), ({("demo", "b"): 9}, True))
        self.assertEqual(self.workers.way("demo", "a"), "/demo.1")
        self.serving(Report())
        self.assertEqual((self.workers.way("demo", "a"), self.workers.way("demo", "b")), ("/demo.1", "/demo.1"))
        self.assertEqual(self.workers.way("demo", "c"), "/demo.0")

    def test_rooms(self) -> None:
        """All that is asked of a room goes to the one that has it, and to no other."""
        (_, one), (_, other) = self.serving(Report(), Report((LiveRoom("b", 3, 5),)))
        self.workers.create("demo", "a", 5)
        self.workers.close("demo", "b")
        self.workers.lose("demo", "b")
        asking = Deferred.fromCoroutine(self.workers.stats("demo", "b"))
        self.workers.answered("demo", other[-1]["serial"], {"peers": []}, 1)
        self.assertEqual(self.successResultOf(asking), {"peers": []})
        self.assertEqual([each["event"] for each in one[1:]], ["create"])
        self.assertEqual([each["event"] for each in other[1:]], ["close", "lose", "stats"])
        self.assertEqual([room.room_id for room in self.workers.all("demo")], ["b"])

    def test_claims(self) -> None:
        """A room is claimed by the one that it is given to; another is told that it is not the one."""
        self.serving(Report(), Report())
        self.assertEqual(self.workers.way("demo", "lobby"), "/demo.0")
        with self.assertRaises(Unavailable):
            self.now_raising(self.workers.claim("demo", "lobby", 1))
        self.assertEqual(self.now(self.workers.claim("demo", "lobby", 0)).node_id, "n1")
        self.assertEqual(self.now(self.workers.claim("demo", "other", 0)).node_id, "n1")
        self.assertEqual(self.workers.way("demo", "other"), "/demo.0")

    def test_twice(self) -> None:
        """A room that two have is the first one's: the other sends its people there."""
        _, (_, said) = self.serving(Report((LiveRoom("a", 2, 5),)), Report((LiveRoom("a", 1, 5),)))
        self.assertEqual((said[-1]["event"], said[-1]["room_id"]), ("lose", "a"))
        self.assertEqual(self.workers.way("demo", "a"), "/demo.0")

    def test_leave(self) -> None:
        """All are told what becomes of their people, and all are waited for."""
        self.serving(Report(), Report())
        leaving = Deferred.fromCoroutine(self.workers.leave("demo"))
        self.workers.reported("demo", Report(heard=2), 1)
        self.assertNoResult(leaving)
        self.workers.reported("demo", Report(heard=2), 0)
        self.successResultOf(leaving)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_figures(self) -> None:
        """Their figures are added up; what one has counted stays when it is gone, or comes back as another process."""

        def report(packets: float, peers: float) -> Report:
            labels = {"namespace": "demo"}
            return Report((), (("orama_sfu_x_total", labels, packets), ("orama_sfu_peers", labels, peers)))

        def figures() -> dict[str, float]:
            return {name: value for name, _, value in self.workers.samples()}

        (first, _), _ = self.serving(report(10, 2), report(5, 3))
        self.assertEqual(figures(), {"orama_sfu_x_total": 15, "orama_sfu_peers": 5, "orama_sfu_processes": 2})
        self.workers.detach(first)
        self.assertEqual(figures(), {"orama_sfu_x_total": 15, "orama_sfu_peers": 3, "orama_sfu_processes": 1})
        self.attached(0, "7")
        self.workers.reported("demo", report(1, 1), 0)
        self.assertEqual(figures()["orama_sfu_x_total"], 16)
        self.attached(0, "7")
        self.workers.reported("demo", report(2, 1), 0)
        self.assertEqual(figures(), {"orama_sfu_x_total": 17, "orama_sfu_peers": 4, "orama_sfu_processes": 2})

    def test_unwanted(self) -> None:
        """Of a namespace that is wanted no more no figures stay."""
        pairs = self.serving(Report(), Report())
        self.assignments.clear()
        leaving = Deferred.fromCoroutine(self.workers.leave("demo"))
        for worker, said in pairs:
            self.assertEqual(said[-1]["event"], "unwanted")
            self.workers.detach(worker)
        self.successResultOf(leaving)
        self.assertEqual(list(self.workers.samples()), [])
