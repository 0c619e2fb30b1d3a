"""A small network for bad lines: a router in the middle, one server, and clients, each on a line of its own.

::

    client1 203.0.113.2 ──┐
                          ├── router ── 198.51.100.1 server
    client2 203.0.113.6 ──┘
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.browser.files import Files
from tests.lab.addresses import HOMES, PUBLIC
from tests.lab.lab import Lab, directory_of, labs
from tests.lab.line import CLEAN, Conditions, Line
from tests.lab.machine import Machine
from tests.node import NodeProcess

#: The server's address.
SERVER = f"{PUBLIC}.1"
HTTP_PORT = 6001


class _Node(NodeProcess):
    """A node that ends with its machine, whatever becomes of the tests."""

    def __init__(self, machine: Machine, directory: Path, *options: str, config: str) -> None:
        super().__init__(directory, *options, config=config)
        self._command = [*machine.enter(), "env", f"--chdir={directory}", *self._command]

    def end(self) -> None:
        """Let it be gone, and nsenter with it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in map(int, children):
            os.kill(child, signal.SIGKILL)
        self.wait()


class Star:
    """:param clients: how many. :param name: of a-z and 0-9."""

    def __init__(self, clients: int, name: str = "") -> None:
        for left in map(Lab, labs()):
            if left.abandoned():
                left.down()
        self.name = name or f"teststar{os.getpid()}"
        self.directory = directory_of(self.name)
        self.directory.mkdir()
        # By this a later run knows what this one has left behind.
        (self.directory / "state.json").write_text(json.dumps({"owner": os.getpid()}))
        labels = ("router", "server", *(f"client{number + 1}" for number in range(clients)))
        machines = [Machine(self.name, label, self.directory / label) for label in labels]
        self.router, self.server, *self.clients = machines
        self.lines: list[Line] = []
        try:
            for machine in machines:
                machine.boot()
            self._connect()
        except BaseException:
            self.close()
            raise
        self._files: list[Files] = []

    def _connect(self) -> None:
        self.router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self._plug(self.server, "server", f"{PUBLIC}.2", SERVER)
        for number, client in enumerate(self.clients):
            device = f"line{number + 1}"
            self._plug(client, device, f"{HOMES}.{4 * number + 1}", f"{HOMES}.{4 * number + 2}")
            self.lines.append(Line(self.router, client, device, SERVER))
        for machine in (self.router, self.server, *self.clients):
            machine.bind_mount("/etc/hosts", "127.0.0.1 localhost\n")

    def _plug(self, machine: Machine, device: str, near: str, far: str) -> None:
        """A cable with a network of four addresses. Nothing on it is put together: a packet is a packet."""
        cable = ["ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", str(machine.pid)]
        self.router.run(*cable, host_pids=True)
        for place, end, address in ((self.router, device, near), (machine, "eth0", far)):
            place.run("ip", "address", "add", f"{address}/30", "dev", end)
            place.run("ip", "link", "set", "dev", end, "gso_max_segs", "1", "up")
        machine.run("ip", "route", "add", "default", "via", near)

    def become(self, *conditions: Conditions) -> None:
        """How the lines are from now on, the first client's first; clean where nothing is said."""
        for number, line in enumerate(self.lines):
            line.become(conditions[number] if number < len(conditions) else CLEAN)

    def move(self, client: int) -> None:
        """A client has another address from now on, in another network, and the one that it had no more."""
        machine, place = self.clients[client], 4 * (len(self.clients) + client)
        near, far = f"{HOMES}.{place + 1}", f"{HOMES}.{place + 2}"
        self.router.run("ip", "address", "add", f"{near}/30", "dev", f"line{client + 1}")
        machine.run("ip", "address", "flush", "dev", "eth0")
        machine.run("ip", "address", "add", f"{far}/30", "dev", "eth0")
        machine.run("ip", "route", "replace", "default", "via", near)

    @contextmanager
    def node(self) -> Iterator[NodeProcess]:
        """Orama on the server; ask it from inside the server's network."""
        config = '[limits]\norigins = ["*"]\nrequest_rate = 1000\nrequest_burst = 1000\n'
        where = ("--http", f"tcp:{HTTP_PORT}:interface={SERVER}", "--turn-port", "3478", "--turns-port", "5349")
        addresses = ("--public-ip", SERVER, "--internal-ip", SERVER)
        node = _Node(self.server, self.directory / "node", *where, *addresses, config=config)
        node.start()
        try:
            yield node
        finally:
            node.end()

    def pages(self, client: int) -> str:
        """The origin of the test pages on a client's own machine: browsers trust what is theirs with cameras."""
        with self.clients[client].inside():
            self._files.append(Files())
        return self._files[-1].origin

    def close(self) -> None:
        """Take everything away."""
        for files in getattr(self, "_files", []):
            files.close()
        for machine in (self.router, self.server, *self.clients):
            machine.off()
        shutil.rmtree(self.directory, ignore_errors=True)
