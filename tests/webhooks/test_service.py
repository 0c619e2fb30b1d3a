"""Events on their way to a real HTTP server, one that fails, hangs, redirects and goes away among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet import reactor as _reactor
from twisted.internet import ssl
from twisted.trial.unittest import TestCase
from twisted.web.server import Site

from orama.cluster.exchange import Exchange
from orama.errors import NotFound, Unavailable
from orama.settings import NamespaceWebhookSettings, WebhookSettings
from orama.sfu.occurrences import Occurrence
from orama.webhooks.service import Webhooks
from tests.browser.certificates import issue
from tests.webhooks.receiver import SECRET, Receiver

reactor: Any = _reactor


def occurred(number: int, event: str = "participant_joined", namespace: str = "default", room: str = "r") -> Occurrence:
    about = {"peer_id": f"p{number}", "user_id": "ada", "metadata": {"name": "Ада"}}
    return Occurrence(f"ev_{number}", event, reactor.seconds(), namespace, room, 1_800_000_000.0, about)


class WebhookTests(TestCase):
    timeout = 120

    def setUp(self) -> None:
        self.receiver = Receiver()
        self.port = 0
        self.listening: Any = None
        self.listen()
        self.settings = WebhookSettings(f"http://127.0.0.1:{self.port}/hook?a=b", SECRET, retry=0.02)
        self.spool = Path(self.mktemp())
        self.addCleanup(self.close)

    def listen(self) -> None:
        self.listening = reactor.listenTCP(self.port, Site(self.receiver), interface="127.0.0.1")
        self.port = self.listening.getHost().port

    async def close(self) -> None:
        await self.listening.stopListening()

    def webhooks(self, settings: WebhookSettings | None = None) -> Webhooks:
        made = Webhooks(reactor, settings or self.settings, "node-1", self.spool, Exchange(reactor), lambda: 0.5)
        made.startService()
        self.addCleanup(made.stopService)
        return made

    def sample(self, webhooks: Webhooks, name: str, **labels: str) -> float:
        return sum(
            value for each, found, value in webhooks.samples() if each == name and labels.items() <= found.items()
        )

    async def told(self, webhooks: Webhooks, *occurrences: Occurrence) -> None:
        """Tell, and wait until all that was told has been taken."""
        count = len(self.receiver.taken) + len(occurrences)
        for each in occurrences:
            webhooks.note(each)
        await self.receiver.until(lambda: len(self.receiver.taken) >= count)

    async def test_body(self) -> None:
        """An event says who it is, what happened when, where, and to whom; its signature is good."""
        webhooks = self.webhooks()
        await self.told(webhooks, occurred(1))
        (event,) = self.receiver.taken
        moment = event.pop("created_at")
        self.assertRegex(moment, r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual(
            event,
            {
                "id": "ev_1",
                "event": "participant_joined",
                "namespace": "default",
                "node_id": "node-1",
                "room_id": "r",
                "room_created_at": "2027-01-15T08:00:00.000Z",
                "peer_id": "p1",
                "user_id": "ada",
                "metadata": {"name": "Ада"},
            },
        )

    async def test_fails_at_first(self) -> None:
        """What is answered with an error is told again until it is taken, and what follows it in its room waits."""
        answers = iter([500, 429, 404])
        self.receiver.manner = lambda event: next(answers, 200)
        webhooks = self.webhooks()
        await self.told(webhooks, occurred(1), occurred(2))
        self.assertEqual(self.receiver.tries, ["ev_1"] * 4 + ["ev_2"])
        self.assertEqual(self.receiver.ids, ["ev_1", "ev_2"])
        await webhooks.stopService()
        self.assertEqual(self.sample(webhooks, "orama_webhooks_failed_total", namespace="default"), 3)
        self.assertEqual(self.sample(webhooks, "orama_webhooks_sent_total", namespace="default"), 2)

    async def test_hangs(self) -> None:
        """A receiver that says nothing has so many seconds, then it is asked anew; other rooms do not wait for it."""
        silent = iter([None])
        self.receiver.manner = lambda event: next(silent, 200) if event["room_id"] == "slow" else 200
        webhooks = self.webhooks(evolve(self.settings, timeout=0.2))
        webhooks.note(occurred(1, room="slow"))
        await self.told(webhooks, occurred(2))
        self.assertEqual(self.receiver.ids, ["ev_2"])
        await self.receiver.until(lambda: len(self.receiver.taken) == 2)
        self.assertEqual(self.receiver.tries.count("ev_1"), 2)

    async def test_redirects(self) -> None:
        """A redirect is not followed: it is a failure like others."""
        answers = iter([302, 307, 308])
        self.receiver.manner = lambda event: next(answers, 200)
        await self.told(self.webhooks(), occurred(1))
        self.assertEqual(self.receiver.tries, ["ev_1"] * 4)

    async def test_away_and_restart(self) -> None:
        """Events that nobody could be told of are told after a restart, in order, each under its own id."""
        await self.listening.stopListening()
        before = self.webhooks()
        for number in range(1, 4):
            before.note(occurred(number))
        await before.stopService()
        self.assertGreater(self.sample(before, "orama_webhooks_failed_total"), 0)
        self.listen()
        after = self.webhooks()
        await self.receiver.until(lambda: len(self.receiver.taken) == 3)
        self.assertEqual(self.receiver.ids, ["ev_1", "ev_2", "ev_3"])
        await after.stopService()
        third = self.webhooks()
        await self.told(third, occurred(4))
        self.assertEqual(self.receiver.ids[3:], ["ev_4"])

    async def test_process_killed(self) -> None:
        """What a process knew that ended without a word is told by the next one, also what may have been taken."""
        self.receiver.manner = lambda event: None
        killed = self.webhooks()
        killed.note(occurred(1))
        await self.receiver.until(lambda: self.receiver.tries == ["ev_1"])
        self.receiver.manner = lambda event: 200
        self.webhooks()
        await self.receiver.until(lambda: self.receiver.ids == ["ev_1"])

    async def test_farewell(self) -> None:
        """What happens last, when rooms end with the node, is told before the service has stopped."""
        webhooks = self.webhooks()
        for number in range(20):
            webhooks.note(occurred(number, room=f"r{number % 3}"))
        await webhooks.stopService()
        self.assertEqual(sorted(self.receiver.ids), sorted(f"ev_{number}" for number in range(20)))
        self.assertEqual(self.spool.stat().st_size, 0)

    async def test_chosen(self) -> None:
        """Events that the settings do not name are not told; a namespace may have a receiver, or none, of its own."""
        other = NamespaceWebhookSettings(self.settings.url + "&own=1", events=())
        settings = evolve(
            self.settings,
            events=("room_started",),
            namespaces={"own": other, "quiet": NamespaceWebhookSettings("")},
        )
        webhooks = self.webhooks(settings)
        webhooks.note(occurred(1))
        webhooks.note(occurred(2, "room_started", "quiet"))
        await self.told(webhooks, occurred(3, "room_started"), occurred(4, namespace="own"))
        self.assertEqual(sorted(self.receiver.tries), ["ev_3", "ev_4"])

    async def test_configured_anew(self) -> None:
        """Events wait for the receiver that the settings name now."""
        self.receiver.manner = lambda event: 503
        webhooks = self.webhooks()
        webhooks.note(occurred(1))
        await self.receiver.until(lambda: len(self.receiver.tries) > 1)
        self.receiver.manner = lambda event: 200
        await self.listening.stopListening()
        self.port = 0
        self.listen()
        webhooks.configure(evolve(self.settings, url=f"http://127.0.0.1:{self.port}/"))
        await self.receiver.until(lambda: self.receiver.ids == ["ev_1"])

    async def test_switched_off(self) -> None:
        """Where the settings name no receiver any more, what waits is let go."""
        self.receiver.manner = lambda event: 503
        webhooks = self.webhooks()
        webhooks.note(occurred(1))
        await self.receiver.until(lambda: len(self.receiver.tries) > 1)
        webhooks.configure(WebhookSettings())
        await webhooks.stopService()
        self.assertEqual(self.sample(webhooks, "orama_webhooks_waiting"), 0)
        self.assertEqual(self.sample(webhooks, "orama_webhooks_dropped_total", reason="unconfigured"), 1)
        self.assertEqual(self.spool.stat().st_size, 0)

    async def test_test(self) -> None:
        """An event that means nothing can be sent by hand, once: what came of it is said."""
        webhooks = self.webhooks()
        told = await webhooks.test("default")
        self.assertEqual([(each["event"], each["id"]) for each in self.receiver.taken], [("test", told["id"])])
        self.receiver.manner = lambda event: 500
        with self.assertRaisesRegex(Unavailable, "HTTP 500"):
            await webhooks.test("default")
        webhooks.configure(WebhookSettings())
        with self.assertRaises(NotFound):
            await webhooks.test("default")
        self.assertEqual(len(self.receiver.tries), 2)

    async def test_too_old(self) -> None:
        """An event that is refused for longer than it is kept is given up, and counted."""
        self.receiver.manner = lambda event: 400 if event["id"] == "ev_1" else 200
        webhooks = self.webhooks(evolve(self.settings, keep=0.0))
        webhooks.note(occurred(1))
        webhooks.note(occurred(2))
        await self.receiver.until(lambda: self.receiver.ids == ["ev_2"])
        self.assertEqual(self.receiver.tries, ["ev_1", "ev_2"])
        self.assertEqual(self.sample(webhooks, "orama_webhooks_dropped_total", reason="too_old"), 1)

    async def test_unknown_certificate(self) -> None:
        """Over https nothing is said to a server whose certificate nobody vouches for."""
        issued = issue(Path(self.mktemp()))
        context = ssl.DefaultOpenSSLContextFactory(str(issued.private_key), str(issued.certificate))
        secure = reactor.listenSSL(0, Site(self.receiver), context, interface="127.0.0.1")
        self.addCleanup(secure.stopListening)
        webhooks = self.webhooks(evolve(self.settings, url=f"https://127.0.0.1:{secure.getHost().port}/"))
        webhooks.note(occurred(1))
        await webhooks.stopService()
        self.assertEqual((self.receiver.tries, self.sample(webhooks, "orama_webhooks_failed_total") > 0), ([], True))

    async def test_no_place_to_keep(self) -> None:
        """Where nothing can be written events are told all the same, and the log says what is missing."""
        self.spool = Path("/proc/nowhere/spool")
        await self.told(self.webhooks(), occurred(1))
        self.assertEqual(self.receiver.ids, ["ev_1"])

    async def test_nothing_configured(self) -> None:
        """Without an address nothing is kept and nothing is told."""
        webhooks = self.webhooks(WebhookSettings())
        webhooks.note(occurred(1))
        self.assertEqual(list(webhooks.samples()), [])
        await webhooks.stopService()
        self.assertLessEqual(self.spool.stat().st_size, 1)
