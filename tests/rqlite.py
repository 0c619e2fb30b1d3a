"""Real rqlite servers for tests: one that all tests share, and clusters of a test's own.

``rqlited`` is looked for on PATH, in $ORAMA_LAB_BIN and in ``build/lab/bin``, where ``etc/lab/build`` puts it.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from twisted.trial.unittest import SkipTest

from orama.store.tables import metadata
from tests.ports import free_ports

#: Seconds within which a server is up and has a leader.
PATIENCE = 90.0
#: Elections between processes of one machine need not take seconds.
QUICK = ("-raft-timeout=300ms", "-raft-election-timeout=300ms", "-raft-leader-lease-timeout=300ms")
_BUILT = Path(__file__).resolve().parent.parent / "build" / "lab" / "bin"


def find_program(name: str) -> str:
    """:raises SkipTest: it is not on this machine."""
    places = filter(None, (os.environ.get("PATH"), os.environ.get("ORAMA_LAB_BIN"), str(_BUILT)))
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise SkipTest(f"there is no {name}: etc/lab/build makes it")
    return found


class RqliteServer:
    """One ``rqlited``.

    :param options: further ones; foreign keys are on unless *foreign_keys* says otherwise.
    """

    def __init__(
        self, directory: Path, *options: str, foreign_keys: bool = True, join: RqliteServer | None = None
    ) -> None:
        self._program = find_program("rqlited")
        self.directory = directory
        self.port, self.raft_port = free_ports(2)
        self._options = [*QUICK, *options, *(["-fk"] if foreign_keys else [])]
        if join is not None:
            self._options += ["-join", f"127.0.0.1:{join.raft_port}", "-join-interval", "200ms", "-join-attempts", "50"]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"rqlite+pyrqlite://{self.address}/"

    def start(self) -> None:
        command = [self._program, "-node-id", f"n{self.port}", "-http-addr", self.address]
        command += ["-raft-addr", f"127.0.0.1:{self.raft_port}", *self._options, str(self.directory)]
        with (self.directory.parent / f"{self.directory.name}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        """Wait until it knows of a leader and has caught up."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.process is not None and self.process.poll() is None, "rqlited has ended"
            with suppress(OSError):
                self.ask("/readyz")
                return
            time.sleep(0.02)
        raise AssertionError(f"rqlited is not ready after {PATIENCE} s: see {self.directory}.log")

    def ask(self, path: str, body: Any = None, timeout: float = 5.0) -> bytes:
        """What it answers. :raises OSError: it does not, or with an error."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"http://{self.address}{path}", data, {"Content-Type": "application/json"})
        with urlopen(request, timeout=timeout) as answer:
            return bytes(answer.read())

    def execute(self, *statements: str) -> list[dict[str, Any]]:
        answer = json.loads(self.ask("/db/execute?transaction", list(statements)))
        results: list[dict[str, Any]] = answer["results"]
        return results

    def query(self, statement: str) -> list[list[Any]]:
        answer = json.loads(self.ask("/db/query", [statement]))
        return list(answer["results"][0].get("values") or [])

    def leads(self) -> bool:
        with suppress(OSError):
            return bool(json.loads(self.ask("/status"))["store"]["raft"]["state"] == "Leader")
        return False

    def empty(self) -> None:
        """Drop every table."""
        ours = [table.name for table in reversed(metadata.sorted_tables)]
        found = [name for (name,) in self.query("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found.sort(key=lambda name: ours.index(name) if name in ours else -1)
        for result in self.execute(*(f'DROP TABLE "{name}"' for name in found)) if found else ():
            assert "error" not in result, result

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it as a machine that loses power does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


class RqliteCluster:
    """Servers that are one database."""

    def __init__(self, size: int = 3, *options: str) -> None:
        find_program("rqlited")
        self.directory = Path(tempfile.mkdtemp(prefix="orama-rqlite-"))
        self.servers: list[RqliteServer] = []
        try:
            for number in range(size):
                first = self.servers[0] if self.servers else None
                server = RqliteServer(self.directory / f"n{number}", *options, join=first)
                self.servers.append(server)
                server.start()
                if first is None:
                    server.wait_ready()
            for server in self.servers:
                server.wait_ready()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """Names all of them."""
        return f"rqlite+pyrqlite://{','.join(server.address for server in self.servers)}/"

    @property
    def leader(self) -> RqliteServer:
        """The server that leads; waits for an election."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for server in self.servers:
                if server.process is not None and server.process.poll() is None and server.leads():
                    return server
            time.sleep(0.02)
        raise AssertionError(f"no leader after {PATIENCE} s")

    @property
    def followers(self) -> list[RqliteServer]:
        leader = self.leader
        return [server for server in self.servers if server is not leader]

    def stop(self) -> None:
        for server in self.servers:
            server.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def fresh_url() -> str:
    """The URL of the shared server, emptied: whoever used it before must be done with it."""
    server = _shared().servers[0]
    server.empty()
    return server.url


@cache
def _shared() -> RqliteCluster:
    cluster = RqliteCluster(1)
    atexit.register(cluster.stop)
    return cluster
