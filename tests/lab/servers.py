"""The programs that a cluster needs beside orama: RQLite, Olric, UFW, PostgreSQL."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from tests.lab import addresses
from tests.lab.machine import Machine, Process, until

TOP = Path(__file__).resolve().parents[2]
RQLITE_PORT, RAFT_PORT, OLRIC_PORT, GOSSIP_PORT, POSTGRESQL_PORT = 4001, 4002, 3320, 3322, 5432
#: What a firewall lets in before orama adds its own: WireGuard, the gateways, DNS, and all of the mesh.
_OPEN = ("51820/udp", "443/tcp", "80/tcp", "53/udp", "53/tcp", "6001/tcp")


def program(name: str) -> str:
    """Where *name* is; empty when it is not. What etc/lab/build makes is found too."""
    places = [os.environ.get("ORAMA_LAB_BIN", ""), str(TOP / "build" / "lab" / "bin"), os.environ.get("PATH", "")]
    return shutil.which(name, path=os.pathsep.join(filter(None, places))) or ""


def missing(name: str) -> str:
    """Why there is no *name*; empty when there is."""
    return "" if program(name) else f"{name} is not installed"


def fetch(
    machine: Machine,
    host: str,
    port: int,
    path: str,
    body: Any = None,
    method: str = "",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Status and body of a plain HTTP answer, asked from *machine*.

    :raises OSError: there is none.
    """
    connection = HTTPConnection(host, port, timeout=5)
    connection.sock = machine.connect(host, port)
    try:
        content = None if body is None else json.dumps(body)
        given = {**(headers or {}), **({} if content is None else {"Content-Type": "application/json"})}
        connection.request(method or ("GET" if body is None else "POST"), path, content, given)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except HTTPException as error:
        raise OSError(str(error)) from None
    finally:
        connection.close()


def rqlite_url(number: int) -> str:
    """The database, for node *number*: its own RQLite first."""
    order = sorted(addresses.NODES, key=lambda other: (other != number, other))
    return "rqlite+pyrqlite://" + ",".join(f"{addresses.mesh(other)}:{RQLITE_PORT}" for other in order)


class Rqlite:
    """RQLite on three nodes; foreign keys on."""

    def __init__(self, nodes: list[Machine]) -> None:
        self._nodes = nodes
        self.running: dict[int, Process] = {}

    def start(self, *numbers: int) -> None:
        """On these nodes, or on all; returns at once."""
        everybody = ",".join(f"{addresses.mesh(other)}:{RAFT_PORT}" for other in addresses.NODES)
        for number in numbers or addresses.NODES:
            own = addresses.mesh(number)
            machine = self._nodes[number - 1]
            self.running[number] = machine.spawn(
                "rqlited",
                program("rqlited"),
                "-fk",
                f"-node-id=node{number}",
                f"-http-addr={own}:{RQLITE_PORT}",
                f"-raft-addr={own}:{RAFT_PORT}",
                f"-bootstrap-expect={len(addresses.NODES)}",
                f"-join={everybody}",
                "-join-interval=500ms",
                str(machine.directory / "rqlite"),
            )

    def wait(self, *numbers: int, seconds: float = 90.0) -> None:
        for number in numbers or addresses.NODES:
            until(lambda number=number: self.ready(number), f"RQLite on node{number} is ready", seconds)  # type: ignore[misc]

    def ready(self, number: int) -> bool:
        """Whether the one on that node knows a leader and takes requests."""
        try:
            return fetch(self._nodes[number - 1], addresses.mesh(number), RQLITE_PORT, "/readyz")[0] == 200
        except OSError:
            return False

    def leader(self, ask: int = 0) -> int:
        """The number of the node that leads, as *ask* (or any node that answers) sees it; 0 when there is none."""
        for number in (ask,) if ask else addresses.NODES:
            try:
                _, body = fetch(self._nodes[number - 1], addresses.mesh(number), RQLITE_PORT, "/status")
                found = json.loads(body)["store"]["leader"]["node_id"]
            except (OSError, ValueError, KeyError):
                continue
            if found:
                return int(found.removeprefix("node"))
        return 0

    def stop(self) -> None:
        for process in self.running.values():
            process.signal(15)
        for process in self.running.values():
            process.stop()
        self.running.clear()


class Olric:
    """Olric on three nodes."""

    def __init__(self, nodes: list[Machine]) -> None:
        self._nodes = nodes
        self.running: dict[int, Process] = {}

    def start(self, *numbers: int) -> None:
        for number in numbers or addresses.NODES:
            machine, own = self._nodes[number - 1], addresses.mesh(number)
            configuration = machine.directory / "olric.yaml"
            peers = "".join(
                f'    - "{addresses.mesh(other)}:{GOSSIP_PORT}"\n' for other in addresses.NODES if other != number
            )
            configuration.write_text(
                f"server:\n  bindAddr: {own}\n  bindPort: {OLRIC_PORT}\n  bootstrapTimeout: 10s\n"
                "  partitionCount: 23\n  replicaCount: 1\n  writeQuorum: 1\n  readQuorum: 1\n  memberCountQuorum: 1\n"
                "  keepAlivePeriod: 300s\n  routingTablePushInterval: 1m\n"
                "client:\n  dialTimeout: 5s\n  readTimeout: 3s\n  writeTimeout: 3s\n"
                "logging:\n  verbosity: 1\n  level: WARN\n  output: stderr\n"
                f"memberlist:\n  environment: lan\n  bindAddr: {own}\n  bindPort: {GOSSIP_PORT}\n"
                "  joinRetryInterval: 500ms\n  maxJoinAttempts: 5\n"
                f"  peers:\n{peers}"
            )
            self.running[number] = machine.spawn("olric", program("olric-server"), "--config", str(configuration))

    def wait(self, *numbers: int) -> None:
        for number in numbers or addresses.NODES:
            until(lambda number=number: self.pings(number), f"Olric on node{number} answers")  # type: ignore[misc]

    def pings(self, number: int) -> bool:
        """Whether the one on that node answers PING."""
        try:
            with self._nodes[number - 1].connect(addresses.mesh(number), OLRIC_PORT) as connection:
                connection.sendall(b"*1\r\n$4\r\nPING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def firewall(machine: Machine) -> None:
    """UFW with rules of its own in *machine*, as an operator leaves it before orama comes."""
    machine.bind_mount("/etc/ufw")
    for rule in _OPEN:
        machine.run("ufw", "allow", rule)
    machine.run("ufw", "allow", "in", "on", "wg0")
    machine.run("ufw", "--force", "enable")


def postgresql_missing() -> str:
    """Why there is no PostgreSQL server; empty when there is."""
    return "" if _postgres("initdb") else "postgresql is not installed"


def _postgres(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else ""


def postgresql(machine: Machine, number: int) -> tuple[Process, str]:
    """A PostgreSQL server on node *number* for all of the mesh, and its URL."""
    data = machine.directory / "postgresql"
    data.mkdir()
    shutil.chown(data, "postgres")
    as_user = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
    machine.run(*as_user, _postgres("initdb"), "-D", str(data), "-A", "trust", "-U", "orama", "--no-sync")
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {addresses.MESH}.0/24 trust\n")
    own = addresses.mesh(number)
    options = ["-c", f"listen_addresses={own}", "-c", f"unix_socket_directories={data}", "-c", "fsync=off"]
    server = machine.spawn("postgresql", *as_user, _postgres("postgres"), "-D", str(data), *options)
    server.wait_for("database system is ready to accept connections")
    return server, f"postgresql+psycopg://orama@{own}:{POSTGRESQL_PORT}/postgres"
