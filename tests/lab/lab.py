"""The whole lab: machines, wires, servers and nodes, in one directory, under one name.

What runs does not end with the process that started it, so that a person can look at it with the command line;
``state.json`` and the names of the holders tell :meth:`Lab.down` what there is, also after a start that broke off.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.lab import addresses, network, servers
from tests.lab.caddy import caddy
from tests.lab.machine import PREFIX, Machine, alive, holders, missing, remains, until
from tests.lab.node import Node, cluster_key
from tests.lab.servers import Olric, Rqlite
from tests.node import environment

_INTERNET = "internet"


def directory_of(name: str) -> Path:
    # Short, as the address of a Unix socket has 108 bytes.
    return Path(tempfile.gettempdir()) / f"{PREFIX}-{name}"


def labs() -> list[str]:
    """Names of the labs of which something is there: a process or a directory."""
    found = {name.removeprefix(f"{PREFIX}-").rpartition("-")[0] for name in holders()}
    start = f"{PREFIX}-"
    found |= {path.name.removeprefix(start) for path in Path(tempfile.gettempdir()).glob(f"{start}*") if path.is_dir()}
    return sorted(found)


class Lab:
    """:param name: of a-z and 0-9; two labs of different names do not meet."""

    def __init__(self, name: str = "lab") -> None:
        self.name = name
        self.directory = directory_of(name)
        known = holders(name)

        def machine(label: str) -> Machine:
            pid = known.get(f"{PREFIX}-{name}-{label}", 0)
            return Machine(name, label, self.directory / label, pid)

        self.internet = machine(_INTERNET)
        self.hosts = [machine(f"node{number}") for number in addresses.NODES]
        self.clients = [machine(f"client{number}") for number in addresses.CLIENTS]
        #: By number, from 1, once :meth:`start_nodes` was called.
        self.nodes: dict[int, Node] = {}
        self.rqlite = Rqlite(self.hosts)
        self.olric = Olric(self.hosts)

    @property
    def machines(self) -> list[Machine]:
        return [self.internet, *self.hosts, *self.clients]

    def machine(self, name: str) -> Machine:
        """:raises KeyError: there is none of that name."""
        return {machine.name: machine for machine in self.machines}[name]

    @staticmethod
    def lacking() -> dict[str, str]:
        """What cannot be had here, by piece, with the reason."""
        pieces = {
            "machines": missing(),
            "WireGuard": network.wireguard_missing(),
            "RQLite": servers.missing("rqlited"),
            "Olric": servers.missing("olric-server"),
            "UFW": servers.missing("ufw"),
            "PostgreSQL": servers.postgresql_missing(),
        }
        pieces |= {name.title(): servers.missing(name) for name in ("caddy", "pebble", "lego", "chromium")}
        return {piece: reason for piece, reason in pieces.items() if reason}

    def up(self, bare: bool = False) -> None:
        """Machines, wires and the servers of a cluster; when anything fails, nothing stays.

        :param bare: machines and wires alone.
        """
        if self.directory.exists() or holders(self.name):
            raise FileExistsError(f"lab {self.name} is there already: {self.directory}")
        self.directory.mkdir()
        self._write({"owner": os.getpid()})
        try:
            for machine in self.machines:
                machine.boot()
            network.connect(self.internet, self.hosts, self.clients)
            network.mesh(self.hosts)
            if not bare:
                self._serve()
        except BaseException:
            self.down()
            raise

    def _serve(self) -> None:
        lacking = self.lacking()
        if "UFW" not in lacking:
            for node in self.hosts:
                servers.firewall(node)
        wanted = [server for piece, server in (("RQLite", self.rqlite), ("Olric", self.olric)) if piece not in lacking]
        for server in wanted:
            server.start()
        for server in wanted:
            server.wait()

    def environment(self) -> dict[str, str]:
        """For commands in the machines: they find the ``orama`` of what is being tested, and the servers' programs."""
        place = self.directory / "bin"
        if not place.exists():
            place.mkdir()
            (place / "orama").write_text(f'#!/bin/sh\nexec {sys.executable} -m orama.cli.main "$@"\n')
            (place / "orama").chmod(0o755)
        found = filter(None, map(servers.program, ("rqlited", "olric-server")))
        programs = [str(Path(program).parent) for program in found]
        path = [str(place), str(Path(sys.executable).parent), *programs, os.environ["PATH"]]
        return {"PATH": os.pathsep.join(path), "PYTHONPATH": environment()["PYTHONPATH"]}

    def start_nodes(self, database: str = "") -> None:
        """Orama on all three, with Caddy in front where there is one; returns when all are ready.

        :param database: URL; the RQLite cluster's without, or node 1's PostgreSQL where there is no RQLite.
        """
        lacking, key = self.lacking(), cluster_key()
        if not database and "RQLite" in lacking:
            _, database = servers.postgresql(self.hosts[0], 1)
        for number, host in enumerate(self.hosts, 1):
            if "Caddy" not in lacking:
                caddy(host, number)
            url = database or servers.rqlite_url(number)
            self.nodes[number] = Node(host, number, url, key, "Caddy" not in lacking, "Olric" not in lacking)
        for node in self.nodes.values():
            node.launch()
        for node in self.nodes.values():
            node.wait(180.0)

    def down(self) -> None:
        """Take everything away, whatever of it is there."""
        for machine in self.machines:
            machine.off()
        until(self._nobody, f"lab {self.name} is down")
        shutil.rmtree(self.directory, ignore_errors=True)

    def _nobody(self) -> bool:
        """Whether nothing of it runs; what does is told to end."""
        left = remains(self.name)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    def keep_logs(self, directory: Path) -> None:
        """Copy what everything has said to *directory*, in the place of what is there of a lab of that kind."""
        place = directory / self.name.rstrip("0123456789")
        for machine in self.machines:
            shutil.rmtree(place / machine.name, ignore_errors=True)
            for log in machine.directory.glob("*.log"):
                (place / machine.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(log, place / machine.name)

    @property
    def owner(self) -> int:
        """The process that brought it up."""
        try:
            return int(json.loads((self.directory / "state.json").read_text())["owner"])
        except (OSError, ValueError, KeyError):
            return 0

    def abandoned(self) -> bool:
        """Whether a test run has left it behind."""
        return self.name.startswith("test") and not alive(self.owner)

    def _write(self, state: dict[str, Any]) -> None:
        (self.directory / "state.json").write_text(json.dumps(state))
