"""The databases that the tests run on: SQLite in a file, and PostgreSQL and rqlite servers that they start themselves.

PostgreSQL listens on a Unix socket in a directory of its own, runs as nobody in particular when the tests
run as root (it refuses to be root), starts with the first test that needs it and ends with the process.
"""

from __future__ import annotations

import atexit
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SkipTest, TestCase

from orama.store.database import Database
from tests.rqlite import fresh_url


class PostgresServer:
    """One PostgreSQL server."""

    def __init__(self) -> None:
        binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
        found = str(binaries[0]) if binaries else shutil.which("initdb")
        if found is None:
            raise SkipTest("there is no PostgreSQL server on this machine")
        self._bin = Path(found).parent
        self._names = itertools.count()
        self.directory = Path(tempfile.mkdtemp(prefix="orama-pg-"))
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres" if _exists("postgres") else "nobody")
            os.chown(self.directory, user.pw_uid, user.pw_gid)
            self._user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._call("initdb", "-D", "data", "-U", "orama", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        options = f"-c listen_addresses='' -c fsync=off -k {self.directory}"
        self._call("pg_ctl", "-D", "data", "-o", options, "-l", "log", "-w", "-t", "60", "start")

    def stop(self) -> None:
        self._call("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.directory)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"orama{next(self._names)}"
        with psycopg.connect(f"host={self.directory} user=orama dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://orama@/{name}?host={self.directory}"

    def _call(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments],
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            **self._user,
        )
        if done.returncode:
            raise AssertionError(f"{program} failed: {done.stderr}")


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


class DatabaseCase(TestCase):
    """A test with an open database; subclasses say on what."""

    timeout = 240

    def new_url(self) -> str:
        """The URL of a database that nobody has used."""
        raise NotImplementedError

    async def open(self, url: str) -> Database:
        """The database of *url*, closed again when the test is over."""
        database = Database(url, reactor)
        self.addCleanup(database.stop)
        await database.start()
        return database

    async def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        self.url = self.new_url()
        self.database = await self.open(self.url)


class OnSQLite:
    """Mixed in first: the default database."""

    def new_url(self) -> str:
        return f"sqlite:///{Path(tempfile.mkdtemp(dir=Path.cwd())) / 'test.db'}"


class OnPostgres:
    """Mixed in first: a real PostgreSQL."""

    def new_url(self) -> str:
        return _server().new_database()


class OnRqlite:
    """Mixed in first: a real rqlite."""

    def new_url(self) -> str:
        return fresh_url()


@cache
def _server() -> PostgresServer:
    server = PostgresServer()
    atexit.register(server.stop)
    return server
