"""Three nodes that are one cluster, each on loopback addresses of its own, with a real database and a real Olric.

The addresses are chosen at random in 127.0.0.0/8, so that two runs on a machine do not meet; the ports are those of the
contract. What the nodes share lives until the interpreter ends, as do they.
"""

from __future__ import annotations

import atexit
import hmac
import json
import os
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache, cached_property
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from twisted.names import dns
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from orama.cli.control import Control, Failed
from tests.contract.commands import orama
from tests.contract.rest import Answer, ask
from tests.contract.stage import directory
from tests.contract.turn import Turn
from tests.node import NodeProcess
from tests.ports import free_port
from tests.rqlite import RqliteServer, find_program
from tests.store.databases import OnPostgres

T = TypeVar("T")
BASE = "lab.example"
ENABLE, DISABLE, STATUS = (f"/v1/namespace/webrtc/{what}" for what in ("enable", "disable", "status"))
CREDENTIALS, ROOMS = "/v1/webrtc/turn/credentials", "/v1/webrtc/rooms"
HTTP, INTERNAL, DNS, TURN, TURNS = 6001, 6002, 5353, 3478, 5349
#: What the ranges of ports have room for, so that they are soon full.
NAMESPACES = 5
HEARTBEAT = 1.0
REPLACE_AFTER = 4.0
#: Seconds within which the cluster is as it should be again.
PATIENCE = 120.0
#: Seconds that a busy machine takes beyond what is promised; by a clock of their own, ``tests.cluster`` allow none.
SLACK = 5.0
_names = count(1)


def until(what: str, look: Callable[[], T], seconds: float = PATIENCE) -> T:
    """What *look* finds, once that is something; a foreign process tells nobody when."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not in {seconds} s: {what}")
        time.sleep(0.05)


class Node(NodeProcess):
    """One node of the cluster: ``internal`` and ``public`` are its addresses."""

    def __init__(self, home: Path, number: int, network: str, database: str, olric: str, more: str = "") -> None:
        self.internal, self.public = f"{network}.{number}", f"{network}.{100 + number}"
        config = (
            f'[cluster]\nheartbeat = {HEARTBEAT}\nreplace_after = {REPLACE_AFTER}\nolric = "{olric}"\n'
            f'[dns]\nlisten = "{self.public}:{DNS}"\n'
            "[limits]\nrequest_rate = 100000\nrequest_burst = 100000\n"
            "[turn]\nunauthenticated_rate = 100000\nunauthenticated_burst = 100000\n"
            f"[sfu]\nmedia_ports = [20000, {19999 + 500 * NAMESPACES}]\n"
            f"[signaling]\ndrain_deadline = 3.0\n{more}"
        )
        super().__init__(
            home,
            *("--database", database, "--base-domain", BASE, "--internal-ip", self.internal),
            *("--public-ip", self.public, "--http", f"tcp:{HTTP}:interface={self.public}"),
            *("--turn-port", str(TURN), "--turns-port", str(TURNS), "--log-format", "json"),
            config=config,
        )
        self._before = ""

    @property
    def node_id(self) -> str:
        return (self.data / "node.id").read_text().strip()

    @property
    def authority(self) -> str:
        return f"{self.public}:{HTTP}"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def log(self) -> str:
        """All that it has said in all its lives."""
        return "\n".join([self._before, *self.said()])

    def launch(self) -> None:
        if hasattr(self, "process"):
            self._before = self.log
        super().launch()

    def kill(self) -> None:
        """As a machine that loses power."""
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Stop it without waiting for whoever is still there: a second signal says so."""
        if self.alive:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGINT)
        return self.wait()

    def orama(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command that speaks to this node."""
        return orama(self.data, *arguments)

    def told(self, *arguments: str) -> Any:
        """What a command that works says in JSON."""
        done = self.orama(*arguments, "--json")
        assert done.returncode == 0, done
        return json.loads(done.stdout)

    def ask(self, method: str, path: str, key: str = "", body: Any = None, **more: Any) -> Answer:
        """The answer of its gateway."""
        return ask(self, method, path, body, {"X-API-Key": key} if key else {}, **more)

    def inside(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: Any = None) -> Answer:
        """The answer on its internal address."""
        return ask(self, method, path, body, headers or {}, host=f"{self.internal}:{INTERNAL}")

    @property
    def ready(self) -> str:
        """Nothing when it can take calls, else why not."""
        try:
            answer = self.inside("GET", "/ready")
        except OSError as error:
            return str(error)
        return "" if answer.status == 200 else str(answer.json["error"])

    def resolve(self, name: str, kind: int = dns.A, *, tcp: bool = False) -> list[tuple[str, int]] | None:
        """The values that its DNS server has for a name in the domain, sorted, each with its TTL.

        None when there is no server, or no such name.
        """
        question = dns.Message(random.randrange(1 << 16))
        question.queries = [dns.Query(f"{name}.{BASE}".lstrip(".").encode(), kind)]
        raw, answer = question.toStr(), dns.Message()
        with socket.socket(type=socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as asking:
            asking.settimeout(2)
            try:
                asking.connect((self.public, DNS))
                asking.sendall(len(raw).to_bytes(2, "big") + raw if tcp else raw)
                answer.fromStr(asking.recv(4096)[2 if tcp else 0 :])
            except OSError:
                return None
        found = [record for record in answer.answers if record.type == kind]
        return sorted((_text(record.payload), record.ttl) for record in found) if answer.rCode == dns.OK else None

    def names(self, name: str) -> list[str]:
        """The addresses of a name in the domain."""
        return [value for value, _ in self.resolve(name) or ()]

    @property
    def control(self) -> Control:
        """Its control socket: quicker than the command, where that is not what is tested."""
        return Control(self.data)

    def turn(self, credentials: Mapping[str, Any], transport: str = "udp") -> Turn:
        """A TURN client of this node."""
        port = TURNS if transport == "tls" else TURN
        return Turn((self.public, port), credentials["username"], credentials["password"], transport)

    def signed(self, method: str, path: str, body: bytes = b"", key: str = "", age: int = 0) -> dict[str, str]:
        """Headers as the documentation of security has them. :param age: of the request, seconds."""
        secret = _key_bytes(key or (self.data / "cluster.key").read_text())
        now, nonce = str(int(time.time()) - age), secrets.token_hex(16)
        lines = ("orama1", method, path, now, nonce, "operator", sha256(body).hexdigest())
        signature = hmac.new(secret, "\n".join(lines).encode(), sha256).hexdigest()
        return {
            "X-Orama-Node": "operator",
            "X-Orama-Time": now,
            "X-Orama-Nonce": nonce,
            "X-Orama-Signature": signature,
        }

    def listed(self) -> list[dict[str, Any]]:
        """What ``orama node list`` says here; nothing while there is nobody to ask."""
        try:
            nodes: list[dict[str, Any]] = self.control.get("nodes")["nodes"]
        except (Failed, OSError):
            return []
        return nodes

    def report(self) -> Any:
        """What it sees of itself."""
        path = "/v1/internal/report"
        return self.inside("GET", path, self.signed("GET", path)).json

    def state(self) -> Any:
        """Its ``cluster_state.json``."""
        return json.loads((self.data / "cluster_state.json").read_bytes())

    def listening(self, protocol: str) -> Iterator[tuple[str, int]]:
        """Where its process listens, as the kernel has it."""
        inodes = set()
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
        for line in Path(f"/proc/{self.process.pid}/net/{protocol}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and (protocol == "udp" or fields[3] == "0A"):
                ip, _, port = fields[1].partition(":")
                yield socket.inet_ntoa(int(ip, 16).to_bytes(4, "little")), int(port, 16)


class Olric:
    """One ``olric-server``, for all nodes."""

    def __init__(self, home: Path) -> None:
        self._program = find_program("olric-server")
        self._home = home
        self._port, gossip = free_port(), free_port()
        self.address = f"127.0.0.1:{self._port}"
        (home / "olric.yaml").write_text(
            f"server:\n  bindAddr: 127.0.0.1\n  bindPort: {self._port}\n  bootstrapTimeout: 5s\n"
            f"memberlist:\n  environment: local\n  bindAddr: 127.0.0.1\n  bindPort: {gossip}\n"
            "client:\n  dialTimeout: 1s\nlogging:\n  verbosity: 1\n  level: ERROR\n  output: stderr\n"
        )

    def start(self) -> None:
        with (self._home / "olric.log").open("ab") as log:
            command = [self._program, "-c", str(self._home / "olric.yaml")]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until("Olric answers", self._answers)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), 2) as connection:
                connection.sendall(b"*1\r\n$4\r\nPING\r\n")
                return b"PONG" in connection.recv(64)
        except OSError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Cluster:
    """Three nodes. They take their key, and the namespace ``default`` its owner, from the first one."""

    def __init__(self) -> None:
        self.home = directory()
        self.database: RqliteServer | None = None
        self.olric: Olric | None = None
        self.nodes: list[Node] = []
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        try:
            self.database = RqliteServer(self.home / "rqlite")
        except SkipTest:
            self.url = OnPostgres().new_url()
        else:
            self.database.start()
            self.database.wait_ready()
            self.url = self.database.url
        try:
            self.olric = Olric(self.home)
        except SkipTest:
            self.olric = None
        else:
            self.olric.start()
        self.network = f"127.{random.randrange(16, 250)}.{random.randrange(1, 250)}"
        self.nodes = [self.node(number) for number in (1, 2, 3)]
        first, *others = self.nodes
        first.launch()
        made = first.data / "cluster.key"
        until("a cluster key", lambda: made.exists() and made.read_text())
        for node in others:
            node.data.mkdir(mode=0o700)
            shutil.copy(made, node.data)
        for node in others:
            node.launch()
        self.settle()

    def node(self, number: int, more: str = "") -> Node:
        """The node of that number, not started."""
        olric = "" if self.olric is None else self.olric.address
        return Node(self.home / f"n{number}", number, self.network, self.url, olric, more)

    @cached_property
    def key(self) -> str:
        """The owner key of ``default``."""
        (found,) = (node.key for node in self.nodes if (node.data / "default.api-key").exists())
        return found

    def settle(self) -> None:
        """Have all nodes up, active and doing what they should."""
        for node in self.nodes:
            if not node.alive:
                node.launch()
        for each in until(f"{self.nodes[0].public} answers", self._first_listed):
            # One that drains is not ready.
            if each["state"] != "active":
                self.nodes[0].told("node", "activate", each["node_id"])
        for node in self.nodes:
            until(f"{node.public} is ready", lambda node=node: self._up(node))  # type: ignore[misc]
        until("all nodes are alive and active", self._whole)
        until("default is served", lambda: self.serving(self.key) == (3, 2))

    def _first_listed(self) -> list[dict[str, Any]]:
        first = self.nodes[0]
        assert first.alive, f"{first.public} has ended: {first.errors}"
        return first.listed()

    def _up(self, node: Node) -> bool:
        assert node.alive, f"{node.public} has ended: {node.errors}"
        return not node.ready

    def _whole(self) -> bool:
        listed = [node.listed() for node in self.nodes]
        return all(len(each) == 3 and all(one["alive"] and one["state"] == "active" for one in each) for each in listed)

    def serving(self, key: str) -> tuple[int, int]:
        """On how many nodes the SFU and TURN of a namespace run, as the status says."""
        seen = self.status(key)["observed"]["nodes"]
        return sum(each["sfu_up"] for each in seen), sum(each["turn_up"] for each in seen)

    def status(self, key: str) -> Any:
        node = next(node for node in self.nodes if node.alive)
        return node.ask("GET", STATUS, key).json

    def by_id(self, node_id: str) -> Node:
        return next(node for node in self.nodes if node.node_id == node_id)

    def owner(self, room: str, key: str) -> Node:
        """The node that has *room*."""
        node = next(node for node in self.nodes if node.alive)
        rooms = node.ask("GET", ROOMS, key).json["rooms"]
        return self.by_id(next(each["node_id"] for each in rooms if each["room_id"] == room))

    def turns(self, key: str) -> list[Node]:
        """The nodes that relay for a namespace."""
        return [self.by_id(each["node_id"]) for each in self.status(key)["observed"]["nodes"] if each["turn_up"]]

    def environment(self, key: str = "") -> Path:
        """An environments file with this cluster as ``devnet``."""
        made = self.home / "environments.toml"
        nodes, servers = ([f"{ip}:{port}" for ip in ips] for ips, port in self._places())
        copied = self.home / "operator.key"
        copied.write_text(key or (self.nodes[0].data / "cluster.key").read_text())
        copied.chmod(0o600)
        made.write_text(
            f"[devnet]\nnodes = {json.dumps(nodes)}\nkey = {json.dumps(str(copied))}\n"
            f'dns = {json.dumps(servers)}\nbase_domain = "{BASE}"\n'
        )
        return made

    def _places(self) -> tuple[tuple[list[str], int], tuple[list[str], int]]:
        return ([node.internal for node in self.nodes], INTERNAL), ([node.public for node in self.nodes], DNS)

    def rows(self, statement: str) -> list[list[Any]]:
        """What the database has."""
        if self.database is None:
            raise SkipTest("there is no rqlited: etc/lab/build makes it")
        return self.database.query(statement)

    def stop(self) -> None:
        for node in self.nodes:
            if hasattr(node, "process"):
                node.end()
        for server in (self.olric, self.database):
            if server is not None and getattr(server, "process", None) is not None:
                server.kill()


@cache
def shared() -> Cluster:
    made = Cluster()
    atexit.register(made.stop)
    return made


class ClusterTestCase(SynchronousTestCase):
    """A test with the cluster, which is whole again when the next one begins."""

    def setUp(self) -> None:
        self.cluster = shared()
        self.nodes = self.cluster.nodes
        if not all(node.alive for node in self.nodes):
            self.cluster.settle()

    def namespace(self, enabled: bool = True) -> tuple[str, str]:
        """A namespace of this test's own, and its owner key."""
        name = f"space{next(_names)}"
        control = self.nodes[0].control
        control.post("namespaces", {"name": name})
        self.addCleanup(self.forget, name)
        key = self.new_key(name)
        if enabled:
            answer = self.nodes[0].ask("POST", ENABLE, key)
            self.assertEqual(answer.status, 200, answer.content)
        return name, key

    def forget(self, name: str) -> None:
        with suppress(Failed):
            self.nodes[0].control.delete("namespaces", {"name": name})

    def new_key(self, namespace: str, role: str = "owner") -> str:
        key: str = self.nodes[0].control.post("keys", {"namespace": namespace, "role": role})["api_key"]
        return key

    def credentials(self, key: str, node: Node | None = None) -> Any:
        answer = (node or self.nodes[0]).ask("POST", CREDENTIALS, key)
        self.assertEqual(answer.status, 200, answer.content)
        return answer.json


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _text(payload: Any) -> str:
    if isinstance(payload, dns.Record_A):
        return str(payload.dottedQuad())
    return b"".join(payload.data).decode() if isinstance(payload, dns.Record_TXT) else str(payload.name)


def _key_bytes(text: str) -> bytes:
    """The key of the first line: base64 of 32 bytes."""
    return b64decode(text.split()[0])
