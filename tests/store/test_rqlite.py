"""rqlite below the store: the driver, the search for a node that answers, upgrades, and a leader that is killed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from alembic import command
from alembic.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, func, insert, select
from sqlalchemy.exc import IntegrityError
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from orama.errors import StartError, Unavailable
from orama.store import rqlite, rqlite_driver, upgrade
from orama.store.database import Database
from orama.store.rqlite_cluster import Address, Cluster, NoAnswer, NotAllowed, Session, Timeouts
from orama.store.tables import namespaces
from tests.node import environment
from tests.rqlite import RqliteCluster, RqliteServer, fresh_url

A, B, C = (Address("10.0.0.1", port) for port in (1, 2, 3))
SELECT = [["SELECT 1"]]
DONE = {"results": [{"columns": ["1"], "types": ["integer"], "values": [[1]]}]}


def add(name: str) -> Any:
    return insert(namespaces).values(name=name, created_at=1.0)


def names(connection: Connection) -> list[str]:
    return list(connection.execute(select(namespaces.c.name).order_by(namespaces.c.name)).scalars())


class OrderTests(SynchronousTestCase):
    """Which node is asked first."""

    def setUp(self) -> None:
        self.now = 100.0
        self.cluster = Cluster([A, B], seconds=lambda: self.now)

    def test_preferred(self) -> None:
        """The one that answered comes first, one that lost an answer last."""
        self.cluster.prefer(B)
        self.assertEqual(self.cluster.order, (B, A))
        self.cluster.avoid(B)
        self.assertEqual(self.cluster.order, (A, B))

    def test_leader(self) -> None:
        """The leader comes first; others that the cluster knows are asked too, and no longer when it forgets them."""
        self.cluster.learn([(B, False), (C, True)])
        self.assertEqual(self.cluster.order, (C, A, B))
        self.cluster.learn([(A, True)])
        self.assertEqual(self.cluster.order, (A, B))

    def test_leader_out_of_reach(self) -> None:
        """A leader that answers the others and not us is not asked first again and again."""
        self.cluster.prefer(B)
        self.cluster.learn([(A, True), (B, False)], away=[A])
        self.assertEqual(self.cluster.order, (B, A))

    def test_localhost(self) -> None:
        """What another machine calls localhost is not that machine here."""
        here = Address("localhost", 4001)
        self.cluster.learn([(here, True)])
        self.assertEqual(self.cluster.order, (A, B))
        local = Cluster([Address("127.0.0.1", 1)])
        local.learn([(here, True)])
        self.assertIn(here, local.order)

    def test_learns(self) -> None:
        """The nodes are looked for once, and again when somebody else turns out to lead, but not all the time."""
        self.assertTrue(self.cluster.wants_to_learn(forwarded=False))
        self.assertFalse(self.cluster.wants_to_learn(forwarded=True))
        self.now += 5
        self.assertFalse(self.cluster.wants_to_learn(forwarded=False))
        self.assertTrue(self.cluster.wants_to_learn(forwarded=True))


class UrlTests(SynchronousTestCase):
    def test_several(self) -> None:
        """A URL names one node or several, with and without ports."""
        url = rqlite.parse("rqlite+pyrqlite://me:a%40b@10.0.0.1:4001,10.0.0.2,[fd00::1]:5/?level=strong")
        self.assertEqual([str(one) for one in rqlite.addresses(url)], ["10.0.0.1:4001", "10.0.0.2:4001", "[fd00::1]:5"])
        self.assertEqual((url.username, url.password, url.query["level"]), ("me", "a@b", "strong"))

    def test_base_urls(self) -> None:
        """Where the nodes answer HTTP; other databases have none."""
        self.assertEqual(rqlite.base_urls("rqlite+pyrqlite://a,b:2/"), ("http://a:4001", "http://b:2"))
        self.assertEqual(rqlite.base_urls("rqlite://a"), ("http://a:4001",))
        self.assertEqual(rqlite.base_urls("sqlite:////tmp/x"), ())


class Scripted:
    """An HTTP server that answers as *answer* says: status and body, or None for a connection that just ends."""

    def __init__(self, case: SynchronousTestCase, answer: Callable[[str], tuple[int, bytes] | None]) -> None:
        self.asked: list[str] = []
        scripted = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def do_GET(self) -> None:
                scripted.asked.append(self.path)
                said = answer(self.path)
                if said is None:
                    self.close_connection = True
                    return
                self.send_response(said[0])
                self.send_header("Content-Length", str(len(said[1])))
                self.end_headers()
                self.wfile.write(said[1])

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        self.address = Address("127.0.0.1", server.server_port)
        case.addCleanup(thread.join)
        case.addCleanup(server.server_close)
        case.addCleanup(server.shutdown)


def says(status: int, text: str | dict[str, Any]) -> Callable[[str], tuple[int, bytes]]:
    body = text.encode() if isinstance(text, str) else json.dumps(text).encode()
    return lambda path: (404, b"") if path.startswith("/nodes") else (status, body)


class SessionTests(SynchronousTestCase):
    """Whom a statement goes to when nodes do not do as they should."""

    def session(self, *nodes: Address, **options: Any) -> Session:
        self.now, self.slept = 0.0, 0
        timeouts = Timeouts(connect=1.0, write=0.2, read=0.2, election=5.0)
        cluster = Cluster(nodes, timeouts=timeouts, seconds=lambda: self.now, sleep=self.sleep, **options)
        session = Session(cluster)
        self.addCleanup(session.close)
        return session

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += 1

    def silent(self) -> Address:
        """A node that takes what comes and never answers."""
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        return Address("127.0.0.1", listening.getsockname()[1])

    def nobody(self) -> Address:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            return Address("127.0.0.1", taken.getsockname()[1])

    def test_nobody_there(self) -> None:
        """Where nobody listens, the next node is asked, also to write, and first from then on."""
        good = Scripted(self, says(200, DONE))
        session = self.session(self.nobody(), good.address)
        self.assertEqual(session.request("/db/execute", SELECT, reads=False), DONE)
        self.assertEqual(session.cluster.order[0], good.address)

    def test_all_away(self) -> None:
        """When nobody listens anywhere, that is said at once, of each."""
        nodes = self.nobody(), self.nobody()
        error = self.assertRaises(NoAnswer, self.session(*nodes).request, "/db/query", SELECT, True)
        self.assertEqual(str(error), "; ".join(f"{node}: Connection refused" for node in nodes))
        self.assertEqual(self.slept, 0)

    def test_silent(self) -> None:
        """Where no answer comes in time, what reads goes to the next node."""
        good = Scripted(self, says(200, DONE))
        session = self.session(self.silent(), good.address)
        self.assertEqual(session.request("/db/query", SELECT, reads=True), DONE)

    def test_write_in_doubt(self) -> None:
        """What writes is not sent twice when it may have been done."""
        cut = Scripted(self, lambda _: None)
        failed = Scripted(self, says(500, "read protobuf length: EOF"))
        lost = Scripted(self, says(200, {"results": [], "error": "leadership lost while committing log"}))
        for first in (self.silent(), cut.address, failed.address, lost.address):
            good = Scripted(self, says(200, DONE))
            session = self.session(first, good.address)
            error = self.assertRaises(NoAnswer, session.request, "/db/execute", SELECT, False)
            self.assertIn("it may have been written all the same", str(error))
            self.assertEqual(good.asked, [])
            session.request("/db/execute", SELECT, reads=False)
            self.assertNotEqual(good.asked, [])

    def test_election(self) -> None:
        """While there is no leader, what reads and what writes waits for one."""
        refusals = [
            (503, b"leader not found"),
            (200, b'{"results":[],"error":"not leader"}'),
            (
                200,
                b'{"results":[],"error":"node failed to process Execute on remote node: pool get: dial tcp: refused"}',
            ),
            (500, b"leader address: none"),
        ]

        def answer(path: str) -> tuple[int, bytes]:
            return refusals.pop() if refusals and path.startswith("/db") else (200, json.dumps(DONE).encode())

        session = self.session(Scripted(self, answer).address)
        self.assertEqual(session.request("/db/execute", SELECT, reads=False), DONE)
        self.assertEqual(self.slept, 4)

    def test_no_election(self) -> None:
        """Nobody waits for ever; and once it was in vain, nobody waits until somebody had an answer."""
        leads: list[bool] = []
        node = Scripted(self, lambda path: says(*((200, DONE) if leads else (503, "leader not found")))(path))
        session = self.session(node.address)
        self.assertRaises(NoAnswer, session.request, "/db/execute", SELECT, False)
        self.assertGreaterEqual(self.now, 5.0)
        slept = self.slept
        self.assertRaises(NoAnswer, session.request, "/db/execute", SELECT, False)
        self.assertEqual(self.slept, slept)
        leads.append(True)
        session.request("/db/execute", SELECT, reads=False)
        leads.clear()
        self.assertRaises(NoAnswer, session.request, "/db/execute", SELECT, False)
        self.assertGreater(self.slept, slept)

    def test_not_allowed(self) -> None:
        """Wrong credentials are no reason to ask another node."""
        session = self.session(Scripted(self, says(401, "")).address, user="me", password="Geheim77")
        error = self.assertRaises(NotAllowed, session.request, "/db/query", SELECT, True)
        self.assertNotIn("Geheim77", str(error))

    def test_closed_meanwhile(self) -> None:
        """A connection that the node has closed since its last use is not used to write."""
        node = Scripted(self, says(200, DONE))
        session = self.session(node.address)
        session.request("/db/execute", SELECT, reads=False)
        (line,) = session._lines.values()
        assert line.sock is not None
        line.sock.shutdown(socket.SHUT_RDWR)
        self.assertEqual(session.request("/db/execute", SELECT, reads=False), DONE)

    def test_machine_gone(self) -> None:
        """A machine that has lost its power says nothing at all: that is found out well before the answer is late."""
        if os.getuid() or not shutil.which("iptables") or not shutil.which("unshare"):
            raise SkipTest("only root can make a machine that says nothing, with unshare and iptables")
        program = [sys.executable, "-m", "tests.store.gone"]
        script = "ip link set lo up && iptables -V > /dev/null && exec " + shlex.join(program)
        done = subprocess.run(
            ["unshare", "-n", "sh", "-c", script],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if "Operation not permitted" in done.stderr:
            raise SkipTest("no network namespace can be made here")
        self.assertEqual(done.returncode, 0, done.stderr)
        idle, waiting = map(float, done.stdout.split())
        self.assertLess(idle, 4.0)
        self.assertLess(waiting, 5.0)

    def test_any_answer(self) -> None:
        """Whatever is answered gives an answer of rqlite's form or NoAnswer."""
        body = [b""]
        session = self.session(Scripted(self, lambda _: (200, body[0])).address)
        connection = rqlite_driver.connect(session.cluster)
        self.addCleanup(connection.close)
        values = st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["results", "error", "columns", "types", "values", "x"]), inner)
            ),
            max_leaves=10,
        )

        @settings(max_examples=60, deadline=None)
        @given(st.binary(max_size=40) | values.map(lambda value: json.dumps(value).encode()))
        def answered(said: bytes) -> None:
            body[0] = said
            try:
                cursor = connection.cursor()
                cursor.execute("SELECT 1")
                cursor.fetchall()
            except rqlite_driver.Error:
                pass

        answered()


class DriverTests(SynchronousTestCase):
    """PEP 249 on a real server."""

    def setUp(self) -> None:
        url = rqlite.parse(fresh_url())
        self.connection = rqlite_driver.connect(Cluster(rqlite.addresses(url)))
        self.addCleanup(self.connection.close)
        self.cursor = self.connection.cursor()
        self.cursor.execute("CREATE TABLE t (a TEXT UNIQUE NOT NULL, b DOUBLE, c BLOB, CHECK (b < 1e6))")

    def test_round_trip(self) -> None:
        """Any text and number come back as they were, and are what they were to SQLite."""
        text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
        odd = st.sampled_from(["x''", "X'ff'", " x'41' ", "'", "?", ":a", "--", "\\"])
        number = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)

        @settings(max_examples=150, deadline=None)
        @given(text | odd | number | st.none(), text | odd)
        def same(one: Any, other: Any) -> None:
            self.cursor.execute("SELECT ?, '?', typeof(?), ?", [one, one, other])
            kind = {str: "text", int: "integer", float: "real"}.get(type(one), "null")
            self.assertEqual(self.cursor.fetchall(), [(one, "?", kind, other)])

        same()

    def test_bytes(self) -> None:
        """Bytes come back as bytes from a column that is for them."""
        for stored in (b"\0", b"x'41'", bytes(range(256))):
            self.cursor.execute("INSERT OR REPLACE INTO t (a, c) VALUES ('x', ?)", [stored])
            self.cursor.execute("SELECT c, typeof(c) FROM t")
            self.assertEqual(self.cursor.fetchall(), [(stored, "blob")])

    def test_refused_values(self) -> None:
        """What cannot be stored is an error before it is sent."""
        for value in (float("nan"), float("inf"), 2**63, "\ud800"):
            with self.assertRaises(rqlite_driver.DataError):
                self.cursor.execute("INSERT INTO t (a) VALUES (?)", [value])
        with self.assertRaises(rqlite_driver.InterfaceError):
            self.cursor.execute("INSERT INTO t (a) VALUES (?)", [object()])

    def test_errors(self) -> None:
        """Constraints are told apart from mistakes."""
        self.cursor.execute("INSERT INTO t (a) VALUES ('x')")
        for row in (["x", 1], [None, 1], ["y", 1e7]):
            with self.assertRaises(rqlite_driver.IntegrityError):
                self.cursor.execute("INSERT INTO t (a, b) VALUES (?, ?)", row)
        for statement, row in (("SELEKT", []), ("SELECT * FROM nosuch", []), ("SELECT ?, ?", [1]), ("", [])):
            with self.assertRaises(rqlite_driver.DatabaseError):
                self.cursor.execute(statement, row)

    def test_rows(self) -> None:
        """Rows are fetched one by one, some at a time, or all; what returns none has counts."""
        self.cursor.executemany("INSERT INTO t (a, b) VALUES (?, ?)", [[str(n), n] for n in range(5)])
        self.assertEqual((self.cursor.rowcount, self.cursor.description), (5, None))
        self.cursor.execute("SELECT a, b FROM t ORDER BY a")
        assert self.cursor.description is not None
        self.assertEqual([column[0] for column in self.cursor.description], ["a", "b"])
        self.assertEqual(self.cursor.fetchone(), ("0", 0.0))
        self.assertEqual(self.cursor.fetchmany(2), [("1", 1.0), ("2", 2.0)])
        self.assertEqual(len(self.cursor.fetchall()), 2)
        self.assertIsNone(self.cursor.fetchone())
        self.cursor.execute("WITH few AS (SELECT a FROM t WHERE b < 2) DELETE FROM t WHERE a IN (SELECT a FROM few)")
        self.assertEqual(self.cursor.rowcount, 2)
        self.cursor.execute("WITH few AS (SELECT a FROM t) SELECT count(*) FROM few")
        self.assertEqual(self.cursor.fetchall(), [(3,)])

    def test_many_is_one(self) -> None:
        """Of several rows none is stored when one is refused."""
        with self.assertRaises(rqlite_driver.IntegrityError):
            self.cursor.executemany("INSERT INTO t (a) VALUES (?)", [["x"], ["y"], ["x"]])
        self.cursor.execute("SELECT * FROM t")
        self.assertEqual(self.cursor.fetchall(), [])

    def test_gather(self) -> None:
        """What is gathered is executed by commit, all of it or nothing, and forgotten by rollback."""
        counts = self.connection.gather()
        self.cursor.execute("INSERT INTO t (a) VALUES ('x')")
        self.cursor.execute("UPDATE t SET b = 1 WHERE a = 'nobody'")
        self.connection.rollback()
        self.connection.commit()
        self.assertEqual(counts, [])
        for _ in range(2):
            counts = self.connection.gather()
            self.cursor.execute("INSERT INTO t (a) VALUES ('y')")
            self.cursor.execute("UPDATE t SET b = 1 WHERE a = 'nobody'")
            self.cursor.execute("INSERT INTO t (a) VALUES ('x')")
            if self.rows() == 0:
                self.connection.commit()
                self.assertEqual(counts, [1, 0, 1])
        self.assertRaises(rqlite_driver.IntegrityError, self.connection.commit)
        self.assertEqual(self.rows(), 2)

    def rows(self) -> int:
        other = rqlite_driver.connect(self.connection._session.cluster)
        cursor = other.cursor()
        cursor.execute("SELECT count(*) FROM t")
        row = cursor.fetchone()
        other.close()
        assert row is not None
        return int(row[0])

    def test_dialect(self) -> None:
        """SQLAlchemy finds the dialect by its name, without the store."""
        engine = create_engine(rqlite.parse(fresh_url()))
        self.addCleanup(engine.dispose)
        with engine.begin() as connection:
            self.assertEqual(connection.execute(select(func.max(3, 4))).scalar(), 4)


class UpgradeTests(TestCase):
    """Tables on a database where a transaction cannot be left open."""

    timeout = 60.0

    def setUp(self) -> None:
        self.url = fresh_url()
        self.engine = create_engine(rqlite.parse(self.url))
        self.addCleanup(self.engine.dispose)

    def database(self) -> Database:
        database = Database(self.url, reactor)
        self.addCleanup(database.stop)
        return database

    def tables(self) -> set[str]:
        with self.engine.begin() as connection:
            rows = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'")
            return set(rows.scalars())

    def written(self, connection: Connection, span: str) -> list[str]:
        """What Alembic would execute, as the upgrade has it."""
        output = upgrade._Statements()
        config = Config()
        config.set_main_option("script_location", "orama.store:migrations")
        config.attributes.update(connection=connection, output=output)
        command.upgrade(config, span, sql=True)
        return output.taken

    def script(self, span: str) -> None:
        with self.engine.connect() as connection:
            upgrade._execute(connection, self.written(connection, span))

    async def test_nothing_or_all(self) -> None:
        """An upgrade that fails in its middle leaves no table behind, and says why."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE dns_records (theirs TEXT)")
        with self.assertRaises(StartError) as caught:
            await self.database().start()
        self.assertIn("dns_records already exists", caught.exception.message)
        self.assertEqual(self.tables(), {"dns_records"})

    async def test_from_the_first(self) -> None:
        """A database of the first version gets what was added since, and keeps its rows."""
        self.script("base:0001")
        with self.engine.begin() as connection:
            connection.execute(add("one"))
        database = self.database()
        await database.start()
        self.assertEqual(await database.read(names), ["one"])
        self.assertIn("webrtc_roles", self.tables())

    def test_somebody_was_faster(self) -> None:
        """What was written down for a version is refused as a whole when it is another's turn already."""
        self.script("base:0001")
        config = Config()
        config.set_main_option("script_location", "orama.store:migrations")
        with self.engine.connect() as connection:
            config.attributes["connection"] = connection
            script = upgrade.statements(config, "0001")
            upgrade._execute(connection, script)
        before = self.tables()
        with self.engine.connect() as connection, self.assertRaises(IntegrityError):
            upgrade._execute(connection, script)
        self.assertEqual(self.tables(), before)

    async def test_processes_together(self) -> None:
        """Programs that find an empty database at the same time all come up, on the same tables."""
        program = (
            "import sys\nfrom twisted.internet import reactor\nfrom orama.store.database import Database\n"
            "database = Database(sys.argv[1], reactor)\n"
            "def end(result):\n    print(result)\n    reactor.stop()\n"
            "reactor.callWhenRunning(lambda: database.start().addCallback(lambda _: 'up').addBoth(\n"
            "    lambda result: database.stop().addCallback(lambda _: end(result))))\n"
            "reactor.run()\n"
        )
        command = [sys.executable, "-c", program, self.url]

        def run() -> str:
            done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, timeout=50, check=True)
            return done.stdout

        self.assertEqual(await gatherResults([deferToThread(run) for _ in range(4)]), ["up\n"] * 4)

    async def test_foreign_keys(self) -> None:
        """A server that does not enforce foreign keys is refused with the option that it lacks."""
        directory = Path(tempfile.mkdtemp(dir=Path.cwd()))
        server = RqliteServer(directory / "n", foreign_keys=False)
        self.addCleanup(server.stop)
        server.start()
        await deferToThread(server.wait_ready)
        database = Database(server.url, reactor)
        with self.assertRaises(StartError) as caught:
            await database.start()
        self.assertIn("start rqlited with -fk", caught.exception.message)

    async def test_password(self) -> None:
        """User and password of the URL are given; wrong ones are refused with a line that does not tell them."""
        directory = Path(tempfile.mkdtemp(dir=Path.cwd()))
        (directory / "auth").write_text(
            json.dumps(
                [
                    {"username": "me", "password": "Geheim77", "perms": ["execute", "query", "status"]},
                    {"username": "*", "perms": ["ready"]},
                ]
            )
        )
        server = RqliteServer(directory / "n", "-auth", str(directory / "auth"))
        self.addCleanup(server.stop)
        server.start()
        await deferToThread(server.wait_ready)
        database = Database(f"rqlite+pyrqlite://me:Geheim77@{server.address}", reactor)
        self.addCleanup(database.stop)
        await database.start()
        wrong = Database(f"rqlite+pyrqlite://me:Geheim78@{server.address}", reactor)
        with self.assertRaises(StartError) as caught:
            await wrong.start()
        self.assertNotIn("Geheim", caught.exception.message)
        self.assertIn("password is wrong", caught.exception.message)


class ClusterTests(TestCase):
    """Three servers, of which some go away."""

    timeout = 120.0

    async def setUp(self) -> None:
        self.cluster = await deferToThread(RqliteCluster, 3)
        self.addCleanup(self.cluster.stop)

    async def open(self, url: str) -> Database:
        database = Database(url, reactor)
        self.addCleanup(database.stop)
        await database.start()
        return database

    async def test_leader_killed(self) -> None:
        """A write that begins after the leader was killed waits for the next one, and nothing is lost or done twice."""
        database = await self.open(self.cluster.url)
        self.assertEqual(await database.write(add("before")), [1])
        leader = await deferToThread(lambda: self.cluster.leader)
        leader.kill()
        began = time.monotonic()
        self.assertEqual(await database.write(add("after")), [1])
        self.assertLess(time.monotonic() - began, 5.0)
        self.assertEqual(await database.read(names), ["after", "before"])
        with self.assertRaises(IntegrityError):
            await database.write(add("after"))
        leader.start()
        await deferToThread(leader.wait_ready)
        self.assertEqual(await database.write(add("again")), [1])

    async def test_found_by_one(self) -> None:
        """A URL that names one node is enough to find the others when that one is gone."""
        follower = (await deferToThread(lambda: self.cluster.followers))[0]
        database = await self.open(follower.url)
        await database.write(add("one"))
        follower.kill()
        self.assertEqual(await database.read(names), ["one"])
        self.assertEqual(await database.write(add("two")), [1])

    async def test_no_majority(self) -> None:
        """With most nodes away, reading and writing are Unavailable within seconds, and go on when they are back."""
        database = await self.open(self.cluster.url)
        await database.write(add("one"))
        followers = await deferToThread(lambda: self.cluster.followers)
        for server in followers:
            server.kill()
        for attempt in (lambda: database.write(add("two")), lambda: database.read(names)):
            began = time.monotonic()
            with self.assertRaises(Unavailable) as caught:
                while True:
                    await attempt()  # a leader believes for a moment that it still is one
            self.assertEqual(caught.exception.code, "store_unavailable")
            self.assertLess(time.monotonic() - began, 15.0)
        other = Database(self.cluster.url, reactor)
        with self.assertRaises(Unavailable):
            await other.start()
        for server in followers:
            server.start()
        for server in followers:
            await deferToThread(server.wait_ready)
        await other.start()
        self.addCleanup(other.stop)
        self.assertIn("one", await other.read(names))
        self.assertEqual(await database.write(add("three")), [1])
