"""rqlite below the store: the driver, upgrades, and a leader that is killed."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
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
from twisted.trial.unittest import SynchronousTestCase, TestCase

from orama.errors import StartError, Unavailable
from orama.store import rqlite, rqlite_driver, upgrade
from orama.store.database import Database
from orama.store.rqlite_cluster import Cluster
from orama.store.tables import namespaces
from tests.node import environment
from tests.rqlite import RqliteCluster, RqliteServer, fresh_url


def add(name: str) -> Any:
    return insert(namespaces).values(name=name, created_at=1.0)


def names(connection: Connection) -> list[str]:
    return list(connection.execute(select(namespaces.c.name).order_by(namespaces.c.name)).scalars())


class UrlTests(SynchronousTestCase):
    def test_several(self) -> None:
        """A URL names one node or several, with and without ports."""
        url = rqlite.parse("rqlite+pyrqlite://me:a%40b@10.0.0.1:4001,10.0.0.2,[fd00::1]:5/?level=strong")
        self.assertEqual([str(one) for one in rqlite.addresses(url)], ["10.0.0.1:4001", "10.0.0.2:4001", "[fd00::1]:5"])
        self.assertEqual((url.username, url.password, url.query["level"]), ("me", "a@b", "strong"))


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

    timeout = 240

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

    timeout = 300

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
        self.assertLess(time.monotonic() - began, 20.0)
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
            self.assertLess(time.monotonic() - began, 45.0)
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
