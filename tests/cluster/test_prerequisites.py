"""What WebRTC needs to be there first, asked of real servers where they are, and of ones that misbehave."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from attrs import evolve
from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.filepath import FilePath
from twisted.trial.unittest import SynchronousTestCase, TestCase

from orama.cluster.prerequisites import Prerequisite, probe, require, rqlite_places
from orama.errors import PreconditionFailed
from orama.net.tls import ServerCertificates
from orama.settings import ClusterSettings, Settings
from orama.store.database import Database
from tests.ports import free_port
from tests.rqlite import RqliteServer, find_program

reactor: Any = _reactor
PATIENCE = 30.0


class Script(Protocol):
    """Answers the n-th thing that comes with the n-th of *answers*; None is silence, | a pause. Remembers what came."""

    def __init__(self, answers: Sequence[bytes | None], heard: list[bytes]) -> None:
        self._answers: Iterator[bytes | None] = iter(answers)
        self._heard = heard

    def dataReceived(self, data: bytes) -> None:
        self._heard.append(data)
        answer = next(self._answers, None)
        if answer is None or self.transport is None:
            return
        for number, piece in enumerate(answer.split(b"|")):
            reactor.callLater(number * 0.02, self.transport.write, piece)
        if answer == b"":
            self.transport.loseConnection()


def http(status: int, body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class ProbeCase(TestCase):
    timeout = 240

    async def setUp(self) -> None:
        self.heard: list[bytes] = []
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.database = Database(f"sqlite:///{(self.directory / 'orama.db').absolute()}", reactor)
        await self.database.start()
        self.addCleanup(self.database.stop)

    def serve(self, *answers: bytes | None) -> str:
        """Where somebody answers like that."""
        factory = Factory.forProtocol(lambda: Script(answers, self.heard))  # type: ignore[arg-type]
        factory.noisy = False
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return f"127.0.0.1:{port.getHost().port}"

    async def probe(self, own: str = "", database_url: str | None = None, **cluster: str) -> dict[str, Prerequisite]:
        settings = evolve(Settings(), database=database_url, cluster=evolve(ClusterSettings(), **cluster))
        found = await probe(settings, reactor, own, self.database)
        return {each.name: each for each in found}

    async def olric(self, *answers: bytes | None) -> Prerequisite:
        return (await self.probe(olric=self.serve(*answers)))["olric"]

    async def rqlite(self, *answers: bytes | None) -> Prerequisite:
        return (await self.probe(rqlite=f"http://{self.serve(*answers)}"))["rqlite"]


class ProbeTests(ProbeCase):
    async def test_single_node(self) -> None:
        """A node that nobody gave a cluster needs its database and its own gateway."""
        found = await self.probe(f"http://{self.serve(http(200, b'{}'))}")
        self.assertEqual(
            {name: each.ok for name, each in found.items()}, {"database": True, "olric": True, "gateway": True}
        )
        self.assertEqual((found["olric"].required, found["olric"].detail), (False, "not used"))
        require(found.values())

    async def test_gateway(self) -> None:
        """The gateway answers 200, or it is told how it does not; a node that has none yet waits for it."""
        for gateway, detail in (
            (self.serve(http(503)), "answers HTTP 503"),
            (self.serve(b"no http\r\n\r\n"), "does not answer: the connection was lost"),
            (f"127.0.0.1:{free_port()}", "does not answer: connection refused"),
        ):
            found = (await self.probe(gateway=f"http://{gateway}"))["gateway"]
            self.assertEqual((found.ok, found.required, found.detail), (False, True, detail))
        self.assertEqual((await self.probe(""))["gateway"].detail, "is not there yet")

    async def test_own_certificate(self) -> None:
        """Our own gateway may have any certificate; another's must be one that is trusted."""
        certificates = ServerCertificates(self.directory, ["127.0.0.1"], reactor)
        factory = Factory.forProtocol(lambda: Script([http(200)], self.heard))  # type: ignore[arg-type]
        factory.noisy = False
        port = reactor.listenSSL(0, factory, certificates.context_factory(), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        url = f"https://127.0.0.1:{port.getHost().port}"
        self.assertTrue((await self.probe(url))["gateway"].ok)
        found = (await self.probe(url, gateway=url))["gateway"]
        self.assertEqual((found.ok, found.detail), (False, "does not answer: its certificate is not accepted"))

    async def test_database_away(self) -> None:
        """A database that is closed is not there."""
        await self.database.stop()
        found = (await self.probe())["database"]
        self.assertEqual((found.ok, found.required), (False, True))
        self.assertIn("the database is not open", found.detail)

    async def test_silence(self) -> None:
        """All are asked at once: whoever says nothing costs two seconds in all."""
        began = reactor.seconds()
        found = await self.probe(
            f"http://{self.serve(None)}", rqlite=f"http://{self.serve(None)}", olric=self.serve(None)
        )
        self.assertLess(reactor.seconds() - began, 3.5)
        for name in ("rqlite", "olric", "gateway"):
            self.assertEqual((found[name].ok, found[name].detail), (False, "does not answer: no answer in 2 s"))

    async def test_olric_misbehaves(self) -> None:
        """Only PONG is an answer; what else comes is said, and cut where it is long."""
        refused = (await self.probe(olric=f"127.0.0.1:{free_port()}"))["olric"]
        self.assertEqual((refused.ok, refused.detail), (False, "does not answer: connection refused"))
        for answer, detail in (
            (b"-ERR operation timeout\r\n", "answers ERR operation timeout"),
            (b"-" + b"x" * 300 + b"\r\n", "answers " + "x" * 119),
            (b"+OK\r\n", "does not answer as Olric does"),
            (http(400), "does not answer as Olric does"),
            (b"x" * 1000, "does not answer as Olric does"),
            (b"", "does not answer: the connection was lost"),
        ):
            found = await self.olric(answer)
            self.assertEqual((found.ok, found.required, found.detail), (False, True, detail))

    async def test_olric(self) -> None:
        """One PING; its answer may come in pieces."""
        found = await self.olric(b"+PO|NG\r|\n")
        self.assertEqual((found.ok, found.detail), (True, "answers PING"))
        self.assertEqual(self.heard, [b"*1\r\n$4\r\nPING\r\n"])

    async def test_rqlite_misbehaves(self) -> None:
        """No leader, an error, or no rqlite at all: each is said."""
        place = f"127.0.0.1:{free_port()}"
        refused = (await self.probe(rqlite=f"http://{place}"))["rqlite"]
        self.assertEqual((refused.detail, refused.place), ("does not answer: connection refused", place))
        for answer, detail in (
            (http(503, b"[+]node ok\n[+]leader does not exist"), "has no leader"),
            (http(503, b"[+]node ok\n[+]leader ok\n[+]store not ready"), "answers HTTP 503: store not ready"),
            (http(401), "answers HTTP 401"),
            (http(500, b"\xff"), "answers HTTP 500"),
            (b"", "does not answer: the connection was lost"),
        ):
            found = await self.rqlite(answer)
            self.assertEqual((found.ok, found.required, found.detail), (False, True, detail))

    async def test_no_password(self) -> None:
        """Passwords are used, and never said."""
        rqlite = self.serve(http(401))
        olric = self.serve(b"-WRONGPASS\r\n")
        gateway = self.serve(http(403))
        found = await self.probe(
            rqlite=f"http://me:p%40ss@{rqlite}", olric=f"p%40ss@{olric}", gateway=f"http://me:p%40ss@{gateway}"
        )
        with self.assertRaises(PreconditionFailed) as caught:
            require(found.values())
        for text in (caught.exception.message, *(json.dumps(each.as_report()) for each in found.values())):
            self.assertNotIn("p%40ss", text)
            self.assertNotIn("p@ss", text)
        sent = b"".join(self.heard)
        self.assertEqual(sent.count(b"Authorization: Basic bWU6cEBzcw=="), 2)
        self.assertIn(b"*2\r\n$4\r\nAUTH\r\n$4\r\np@ss\r\n*1\r\n$4\r\nPING\r\n", sent)

    async def test_several_hosts(self) -> None:
        """Of an RQLite whose URL names several hosts, one that is ready is enough."""
        gone, down = f"127.0.0.1:{free_port()}", self.serve(http(503, b"[+]leader does not exist"))
        good = self.serve(http(200), b"")
        url = f"rqlite+pyrqlite://u:p@{gone},{down}"
        found = await self.probe(database_url=url)
        self.assertNotIn("database", found)
        self.assertFalse(found["rqlite"].ok)
        detail = f"{gone} does not answer: connection refused; {down} has no leader"
        self.assertEqual(found["rqlite"].detail, detail)
        self.assertTrue((await self.probe(database_url=f"{url},{good}/"))["rqlite"].ok)


class RequireTests(SynchronousTestCase):
    def test_text(self) -> None:
        """The error says what is missing, where, and why; what is not required is not missed."""
        found = [
            Prerequisite("rqlite", True, True, "leader 10.0.0.1:4002", place="10.0.0.1:4001"),
            Prerequisite("olric", False, True, "does not answer: connection refused", place="10.0.0.1:3320"),
            Prerequisite("gateway", False, False, "is not there yet"),
        ]
        with self.assertRaises(PreconditionFailed) as caught:
            require(found)
        self.assertEqual(caught.exception.code, "cluster_not_ready")
        self.assertEqual(caught.exception.message, "Olric at 10.0.0.1:3320 does not answer: connection refused")
        require([found[0], found[2]])

    def test_places(self) -> None:
        """The hosts in the URL of an RQLite database; other databases have none."""
        for url, places in (
            ("rqlite+pyrqlite://a:1,b/", ["http://a:1", "http://b:4001"]),
            (
                "rqlite+pyrqlite://u:p%3A@[::1]:2,[::2]/?level=weak",
                ["http://u:p%3A@[::1]:2", "http://u:p%3A@[::2]:4001"],
            ),
            ("sqlite:////tmp/x", []),
            ("postgresql+psycopg://h/rqlite", []),
            ("http://[", []),
            ("", []),
        ):
            self.assertEqual(rqlite_places(url), places)


class RqliteTests(ProbeCase):
    """Real rqlite."""

    async def test_ready(self) -> None:
        """A server with a leader is ready, and the leader is named."""
        server = RqliteServer(self.directory / "rqlite")
        self.addCleanup(server.stop)
        server.start()
        await deferToThread(server.wait_ready)
        found = (await self.probe(database_url=server.url))["rqlite"]
        self.assertEqual((found.ok, found.detail), (True, f"leader 127.0.0.1:{server.raft_port}"))
        self.assertEqual(found.place, server.address)

    async def test_no_leader(self) -> None:
        """A server that looks for its cluster has no leader."""
        server = RqliteServer(self.directory / "rqlite", "-join=127.0.0.1:1", "-join-attempts=100")
        self.addCleanup(server.stop)
        server.start()
        deadline = reactor.seconds() + PATIENCE
        found = (await self.probe(database_url=server.url))["rqlite"]
        while "refused" in found.detail and reactor.seconds() < deadline:
            await deferLater(reactor, 0.05)
            found = (await self.probe(database_url=server.url))["rqlite"]
        self.assertEqual((found.ok, found.detail), (False, "has no leader"))


class OlricTests(ProbeCase):
    """Real Olric."""

    async def start(self, more: str = "") -> str:
        """A server on its own; its address once it answers."""
        program = find_program("olric-server")
        port, gossip = free_port(), free_port()
        directory = Path(mkdtemp(prefix="orama-olric-"))
        self.addCleanup(FilePath(str(directory)).remove)
        (directory / "olric.yaml").write_text(
            f"server:\n  bindAddr: 127.0.0.1\n  bindPort: {port}\n  bootstrapTimeout: 5s\n"
            f"memberlist:\n  environment: local\n  bindAddr: 127.0.0.1\n  bindPort: {gossip}\n"
            f"client:\n  dialTimeout: 1s\nlogging:\n  verbosity: 1\n  level: ERROR\n  output: stderr\n{more}"
        )
        log = (directory / "log").open("wb")
        self.addCleanup(log.close)
        process = subprocess.Popen([program, "-c", str(directory / "olric.yaml")], stdout=log, stderr=log)  # noqa: ASYNC220
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        deadline = reactor.seconds() + PATIENCE
        while reactor.seconds() < deadline:
            self.assertIsNone(process.poll(), (directory / "log").read_text())
            found = (await self.probe(olric=f"127.0.0.1:{port}"))["olric"]
            if found.detail.startswith("answers "):  # if only that it wants a password
                break
            await deferLater(reactor, 0.05)
        return f"127.0.0.1:{port}"

    async def test_answers(self) -> None:
        """A server that runs answers PING."""
        place = await self.start()
        found = (await self.probe(olric=place))["olric"]
        self.assertEqual((found.ok, found.detail, found.place), (True, "answers PING", place))

    async def test_password(self) -> None:
        """With a password only whoever knows it is answered."""
        place = await self.start("authentication:\n  password: s3cret\n")
        found = (await self.probe(olric=f"s3cret@{place}"))["olric"]
        self.assertTrue(found.ok, found.detail)
        for login in ("", "wrong@"):
            found = (await self.probe(olric=login + place))["olric"]
            self.assertFalse(found.ok)
            self.assertIn("answers ", found.detail)
