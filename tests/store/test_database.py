"""Transactions, migrations and failures of the database, the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    Connection,
    Double,
    String,
    bindparam,
    create_engine,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from orama.errors import OramaError, StartError, Unavailable
from orama.store.database import Database
from orama.store.tables import metadata, namespaces, webrtc_port_allocations
from orama.store.tables import namespace_webrtc_config as config
from orama.store.upgrade import POSTGRES_LOCK, statements
from tests.store.databases import DatabaseCase, OnPostgres, OnRqlite, OnSQLite

#: Texts that a database which pastes them into statements, or takes some for something else, gets wrong.
TEXTS = (
    "",
    " ",
    "plain",
    "it's",
    '"quoted"',
    "'; DROP TABLE namespaces; --",
    "?",
    "what? :x and :name, ?1 and $1 and %s and %(x)s and @x",
    "\\",
    "\\' OR 1=1",
    "x'41'",
    " X'00ff' ",
    "x''",
    "x'4'",
    "NULL",
    "true",
    "12",
    "1.0",
    "ünïcödé \N{SNOWMAN} \N{MUSICAL SYMBOL G CLEF} \u200f\ufeff",
    "line\nfeed\r\n\ttab",
    "</script>&<>",
    "long" * 5000,
)


def add(name: str) -> Any:
    return lambda connection: connection.execute(insert(namespaces).values(name=name, created_at=1.0))


def names(connection: Connection) -> list[str]:
    return list(connection.execute(select(namespaces.c.name).order_by(namespaces.c.name)).scalars())


class DatabaseTests(DatabaseCase):
    """What holds on every database."""

    async def test_commits(self) -> None:
        """What a transaction wrote is there for the next one, and after another start."""
        await self.database.transact(add("one"))
        self.assertEqual(await self.database.read(names), ["one"])
        await self.database.stop()
        again = await self.open(self.url)
        self.assertEqual(await again.read(names), ["one"])

    async def test_values(self) -> None:
        """Whatever is stored comes back as it was, of the type that it was."""
        numbers = (0.0, 1.0, -2.0, 0.1, 1e300, 1.7e9 + 0.25, 5e-324, 1e21)
        for number, value in enumerate(TEXTS):
            name, seconds = f"n{number}", numbers[number % len(numbers)]
            row = {"enabled": bool(number % 2), "sfu_node_count": number, "turn_node_count": -number}
            row |= {"turn_secret_encrypted": value, "enabled_by": None, "enabled_at": seconds, "rooms_on_join": True}
            await self.database.write(
                insert(namespaces).values(name=name, created_at=seconds), insert(config).values(namespace=name, **row)
            )
            mine = select(config).where(config.c.turn_secret_encrypted == value)
            found = await self.database.read(lambda connection, mine=mine: connection.execute(mine).one())
            for column, stored in row.items():
                self.assertEqual(getattr(found, column), stored)
                self.assertIs(type(getattr(found, column)), type(stored), column)

    async def test_literal_text(self) -> None:
        """Placeholders are what the statement has as such, not what looks like one inside of a text."""
        odd = r"""SELECT '?', '\:y', name AS "n?", 'it''s ?', :x -- ?
            FROM namespaces WHERE name = '?' AND :x = :x"""
        await self.database.transact(add("?"))
        statement = text(odd).bindparams(bindparam("x", "x'41'", String))
        row = await self.database.read(lambda connection: connection.execute(statement).one())
        self.assertEqual(tuple(row), ("?", ":y", "?", "it's ?", "x'41'"))

    async def test_ten_writers(self) -> None:
        """Ten that want a block at once, each looking for the first that is free, get ten different ones."""
        other = await self.open(self.url)
        await self.database.write(*(insert(namespaces).values(name=f"n{n}", created_at=1.0) for n in range(10)))
        blocks = webrtc_port_allocations

        async def claim(number: int) -> int:
            database = (self.database, other)[number % 2]
            for block in range(10):
                row = {"node_id": "n", "namespace": f"n{number}", "kind": "turn-relay", "host": "h", "block": block}
                try:
                    await database.write(insert(blocks).values(**row, first_port=1, last_port=2, allocated_at=1.0))
                except IntegrityError:
                    continue
                return block
            raise AssertionError("no block is left")

        claimed = await gatherResults([Deferred.fromCoroutine(claim(number)) for number in range(10)])
        self.assertEqual(sorted(claimed), list(range(10)))

    async def test_remote(self) -> None:
        """Whoever waits for a database that is away can tell whether it is one that can be."""
        self.assertEqual(self.database.remote, not self.url.startswith("sqlite"))

    async def test_starts_again(self) -> None:
        """A database that was stopped, or could not be started, can be started."""
        await self.database.stop()
        await self.database.start()
        self.assertEqual(await self.database.write(insert(namespaces).values(name="one", created_at=1.0)), [1])

    async def test_own_threads(self) -> None:
        """Work runs on threads of the database, neither on the reactor's nor on its pool's."""
        there = await self.database.transact(lambda _: threading.current_thread())
        pooled = await deferToThread(threading.current_thread)
        self.assertIsNot(there, threading.current_thread())
        self.assertIsNot(there, pooled)

    async def test_constraints(self) -> None:
        """A duplicate, a row of a missing namespace and a block that somebody has are IntegrityErrors."""
        await self.database.transact(add("one"))
        await self.database.transact(add("two"))

        def port(node: str, namespace: str, block: int) -> Any:
            times = {"first_port": 1, "last_port": 2, "allocated_at": 1.0}
            row = {"node_id": node, "namespace": namespace, "kind": "turn-relay", "host": "h", "block": block}
            return lambda connection: connection.execute(insert(webrtc_port_allocations).values(**row, **times))

        await self.database.transact(port("n", "one", 0))
        for work in (add("one"), port("n", "nobody", 1), port("n", "two", 0)):
            with self.assertRaises(IntegrityError):
                await self.database.transact(work)

    async def test_write(self) -> None:
        """Statements are written together, and each tells how many rows it touched."""
        one, two = (insert(namespaces).values(name=name, created_at=1.0) for name in ("one", "two"))
        later = update(namespaces).values(created_at=2.0)
        none = delete(namespaces).where(namespaces.c.name == "three")
        self.assertEqual(await self.database.write(one, two, later, none), [1, 1, 2, 0])
        self.assertEqual(await self.database.read(names), ["one", "two"])

    async def test_write_is_atomic(self) -> None:
        """When a constraint refuses one statement, none of them has been written."""
        one = insert(namespaces).values(name="one", created_at=1.0)
        with self.assertRaises(IntegrityError):
            await self.database.write(one, update(namespaces).values(created_at=5.0), one)
        self.assertEqual(await self.database.read(names), [])

    async def test_write_conditions(self) -> None:
        """A statement sees what those before it have written, so that it can depend on them."""
        await self.database.transact(add("one"))

        def taken(now: float) -> tuple[Any, Any]:
            first = update(namespaces).where(namespaces.c.created_at == 1.0).values(created_at=now)
            mine = select(literal(f"by-{now}", String), literal(now, Double)).where(
                select(namespaces.c.name).where(namespaces.c.name == "one", namespaces.c.created_at == now).exists()
            )
            return first, insert(namespaces).from_select(["name", "created_at"], mine)

        self.assertEqual(await self.database.write(*taken(7.0)), [1, 1])
        self.assertEqual(await self.database.write(*taken(8.0)), [0, 0])
        self.assertEqual(await self.database.read(names), ["by-7.0", "one"])

    async def test_write_is_alone(self) -> None:
        """A condition that holds for a writer holds until it has written, however many write at once."""
        other = await self.open(self.url)
        few = select(func.count()).select_from(namespaces).scalar_subquery() < 3

        def attempt(number: int) -> Any:
            row = select(literal(f"n{number}", String), literal(1.0, Double)).where(few)
            into = insert(namespaces).from_select(["name", "created_at"], row)
            return (self.database, other)[number % 2].write(into)

        counts = await gatherResults([attempt(number) for number in range(12)])
        self.assertEqual(sorted(counts), [[0]] * 9 + [[1]] * 3)
        self.assertEqual(len(await self.database.read(names)), 3)

    async def test_cascade(self) -> None:
        """What belongs to a namespace goes with it."""
        await self.database.transact(add("one"))
        key = "INSERT INTO api_keys VALUES ('i', 'one', 'owner', 'k', 'h', 1.0)"
        await self.database.transact(lambda connection: connection.execute(text(key)))
        await self.database.transact(lambda connection: connection.execute(text("DELETE FROM namespaces")))
        left = await self.database.read(lambda connection: connection.execute(text("SELECT * FROM api_keys")).all())
        self.assertEqual(left, [])

    async def test_many_writers(self) -> None:
        """Writers at the same time wait for each other and all succeed."""
        await gatherResults([self.database.transact(add(f"n{number:03}")) for number in range(50)])
        self.assertEqual(len(await self.database.read(names)), 50)

    async def test_two_processes_worth(self) -> None:
        """Two programs on one database see each other's rows; only one gets a name."""
        other = await self.open(self.url)
        both = await gatherResults(
            [one.transact(add("same")).addErrback(lambda f: f.trap(IntegrityError)) for one in (self.database, other)]
        )
        self.assertIn(IntegrityError, both)
        self.assertEqual(await other.read(names), ["same"])

    async def test_migrations_build_the_tables(self) -> None:
        """The migrations give exactly the tables that the program works with."""

        def differences(connection: Connection) -> list[Any]:
            return list(compare_metadata(MigrationContext.configure(connection), metadata))

        self.assertEqual(await self.database.transact(differences), [])

    async def test_newer_database(self) -> None:
        """A database of a newer program is refused with a line that says so, and left as it is."""
        newer = text("UPDATE alembic_version SET version_num = '9999'")
        await self.database.transact(lambda connection: connection.execute(newer))
        await self.database.stop()
        with self.assertRaises(StartError) as caught:
            await self.open(self.url)
        self.assertIn("newer version (9999)", caught.exception.message)
        self.assertNotIn("\n", caught.exception.message)

    async def test_starting_together(self) -> None:
        """Several programs that start on an empty database at once all come up."""
        url = self.new_url()
        await gatherResults([_opened(self, url) for _ in range(3)])

    async def test_stop_waits(self) -> None:
        """Stopping lets running work finish, and leaves no thread behind."""
        started, go = threading.Event(), threading.Event()

        def slow(connection: Connection) -> str:
            started.set()
            go.wait(10)
            return str(threading.current_thread().name)

        running = self.database.transact(slow)
        await deferToThread(started.wait, 10)
        stopping = self.database.stop()
        self.assertNoResult(stopping)
        go.set()
        name = await running
        await stopping
        self.assertNotIn(name, [thread.name for thread in threading.enumerate()])

    async def test_closed(self) -> None:
        """A database that is not open says so."""
        await self.database.stop()
        with self.assertRaises(Unavailable) as caught:
            await self.database.read(names)
        self.assertEqual(caught.exception.code, "store_unavailable")

    async def test_cancel(self) -> None:
        """Who stops waiting does not disturb the work, and stopping still waits for it."""
        started, go = threading.Event(), threading.Event()

        def slow(connection: Connection) -> None:
            started.set()
            go.wait(10)
            add("late")(connection)

        running = self.database.transact(slow)
        await deferToThread(started.wait, 10)
        running.cancel()
        go.set()
        await self.assertFailure(running, Exception)
        await self.database.stop()
        again = await self.open(self.url)
        self.assertEqual(await again.read(names), ["late"])


def _opened(case: DatabaseCase, url: str) -> Any:
    database = Database(url, reactor)
    case.addCleanup(database.stop)
    return database.start()


class TransactionTests(DatabaseTests):
    """What holds on databases with transactions that stay open."""

    async def test_rolls_back(self) -> None:
        """A function that raises has written nothing, and its exception arrives as it is."""

        def work(connection: Connection) -> None:
            add("one")(connection)
            raise KeyError("mine")

        with self.assertRaises(KeyError):
            await self.database.transact(work)
        self.assertEqual(await self.database.read(names), [])


class SQLiteDatabaseTests(OnSQLite, TransactionTests):
    async def test_wal(self) -> None:
        """SQLite runs in WAL mode with foreign keys and a patient writer; its file is for us alone."""
        pragmas = {}
        for name in ("journal_mode", "foreign_keys", "busy_timeout"):
            pragmas[name] = await self.database.read(lambda c, name=name: c.execute(text(f"PRAGMA {name}")).scalar())
        self.assertEqual(pragmas, {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 10_000})
        mode = stat.S_IMODE(os.stat(self.url.removeprefix("sqlite:///")).st_mode)
        self.assertEqual(mode, 0o600)

    async def test_readers_do_not_wait(self) -> None:
        """A reader answers while a writer is in the middle of its transaction."""
        started, go = threading.Event(), threading.Event()

        def slow(connection: Connection) -> None:
            add("late")(connection)
            started.set()
            go.wait(10)

        writing = self.database.transact(slow)
        await deferToThread(started.wait, 10)
        self.assertEqual(await self.database.read(names), [])
        go.set()
        await writing
        self.assertEqual(await self.database.read(names), ["late"])


class PostgresDatabaseTests(OnPostgres, TransactionTests):
    async def test_away(self) -> None:
        """A server that goes away is Unavailable, and the program goes on when it is back."""
        kill = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        other = await self.open(self.url)
        await self.database.read(names)
        await other.transact(lambda connection: connection.execute(kill).all())
        self.assertEqual(await self.database.read(names), [])
        suicide = text("SELECT pg_terminate_backend(pg_backend_pid())")
        with self.assertRaises(Unavailable):
            await self.database.transact(lambda connection: connection.execute(suicide))
        await self.database.transact(add("one"))
        self.assertEqual(await other.read(names), ["one"])

    async def test_upgrades_wait(self) -> None:
        """While one program upgrades, another that starts waits for it to be done."""
        held, go = threading.Event(), threading.Event()

        def upgrading(connection: Connection) -> None:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": POSTGRES_LOCK})
            held.set()
            go.wait(10)

        first = self.database.transact(upgrading)
        await deferToThread(held.wait, 10)
        second = Database(self.url, reactor)
        self.addCleanup(second.stop)
        starting = second.start()
        waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        while not await self.database.read(lambda connection: connection.execute(waiting).scalar()):
            self.assertNoResult(starting)
        go.set()
        await first
        await starting

    async def test_refused(self) -> None:
        """A server that answers and has no such database is no server that is away."""
        database = Database(self.url.replace("@/orama", "@/nosuch"), reactor)
        with self.assertRaises(StartError) as caught:
            await database.start()
        self.assertIn("does not exist", caught.exception.message)


class RqliteDatabaseTests(OnRqlite, DatabaseTests):
    async def test_stands_at_once(self) -> None:
        """There are no transactions: what a function has written before it raises stays."""

        def work(connection: Connection) -> None:
            add("one")(connection)
            raise KeyError("mine")

        with self.assertRaises(KeyError):
            await self.database.transact(work)
        self.assertEqual(await self.database.read(names), ["one"])


del DatabaseTests, TransactionTests


class MemoryTests(TestCase):
    async def test_one_database(self) -> None:
        """``sqlite://`` is one database for all threads, not one for each."""
        database = Database("sqlite://", reactor)
        self.addCleanup(database.stop)
        await database.start()
        await database.transact(add("one"))
        found = await gatherResults([database.read(names) for _ in range(20)])
        self.assertEqual(found, [["one"]] * 20)


class RefusedTests(TestCase):
    """What a database cannot be opened for is one line, without the password."""

    async def refused(self, url: str, error: type[OramaError] = StartError) -> str:
        database = Database(url, reactor)
        with self.assertRaises(error) as caught:
            await database.start()
        message = caught.exception.message
        self.assertNotIn("\n", message)
        return message

    def other_file(self) -> Path:
        file = Path(self.mktemp()).absolute()
        file.write_bytes(b"This is not a database. " * 100)
        return file

    async def test_no_url(self) -> None:
        """Something that is no URL."""
        self.assertIn("database", await self.refused("nonsense"))

    async def test_no_dialect(self) -> None:
        """A database that SQLAlchemy does not know."""
        self.assertIn("nosuch", await self.refused("nosuch://h/d"))

    async def test_no_folder(self) -> None:
        """A SQLite file in a folder that is not there."""
        self.assertIn("No such file or directory", await self.refused("sqlite:////nonexistent/folder/x.db"))

    async def test_no_database(self) -> None:
        """A file that is something else."""
        self.assertIn("not a database", await self.refused(f"sqlite:///{self.other_file()}"))

    async def test_no_server(self) -> None:
        """A server that does not answer may do so later; the password is not told."""
        for kind in ("postgresql+psycopg", "rqlite+pyrqlite"):
            message = await self.refused(f"{kind}://me:Geheim77@127.0.0.1:13899/db", Unavailable)
            self.assertIn("127.0.0.1", message)
            self.assertNotIn("Geheim77", message)

    async def test_bad_rqlite_urls(self) -> None:
        """A port, an option or a level that is none."""
        for rest in ("h:port", "me:Geheim77@h:1,h:2x/", "h:1/?level=none", "h:1/?ssl=1", "h:1,/", "h:1,a@b:1/"):
            message = await self.refused(f"rqlite+pyrqlite://{rest}")
            self.assertIn("database: ", message)
            self.assertNotIn("Geheim77", message)


class UpgradeTests(SynchronousTestCase):
    def config(self) -> Config:
        config = Config()
        config.set_main_option("script_location", "orama.store:migrations")
        return config

    def test_every_revision_is_packaged(self) -> None:
        """Revisions form one line from nothing to the head."""
        script = ScriptDirectory.from_config(self.config())
        self.assertEqual(len(script.get_heads()), 1)
        self.assertEqual([r.revision for r in script.walk_revisions()][-1], "0001")

    def test_every_revision_can_be_written_down(self) -> None:
        """No revision looks into the database: written down beforehand, they give the same tables."""
        engine = create_engine("sqlite://")
        self.addCleanup(engine.dispose)
        config = self.config()
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            for statement in statements(config, None):
                connection.exec_driver_sql(statement)
            self.assertEqual(compare_metadata(MigrationContext.configure(connection), metadata), [])
