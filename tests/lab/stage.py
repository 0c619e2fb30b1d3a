"""The lab that the tests of a run share: brought up when first needed, gone when the interpreter ends."""

from __future__ import annotations

import atexit
import json
import os
import time
from functools import cache
from itertools import count

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.lab import addresses
from tests.lab.lab import Lab, labs
from tests.lab.node import Node, until_true
from tests.lab.people import Phone
from tests.lab.report import DIRECTORY, report

#: The namespace that the scenarios are about.
NAMESPACE = "myapp"

_rooms = count(1)


@cache
def lacking() -> dict[str, str]:
    """As :meth:`Lab.lacking`, asked once."""
    return Lab.lacking()


def fresh(name: str, bare: bool = False) -> Lab:
    """A lab that is up, without nodes; it goes with the interpreter."""
    for left in map(Lab, labs()):
        if left.abandoned():
            left.down()
    made = Lab(f"test{name}{os.getpid()}")
    atexit.register(_end, made)
    made.up(bare)
    return made


def _end(made: Lab) -> None:
    """Its logs stay in ``build/lab/logs``, until the next run."""
    made.keep_logs(DIRECTORY / "logs")
    made.down()


@cache
def lab() -> Lab:
    return fresh("")


@cache
def cluster() -> Lab:
    """The same with orama on all three nodes, and :data:`NAMESPACE` enabled."""
    made = lab()
    began = time.monotonic()
    made.start_nodes()
    report().milliseconds("Starting", "three nodes at once, with an empty database", time.monotonic() - began)
    enable(made, NAMESPACE)
    return made


def enable(at: Lab, namespace: str) -> float:
    """Make *namespace* and enable WebRTC in it, by the command line of node 1; the seconds that enabling took."""
    node = at.nodes[1]
    node.orama("namespace", "create", namespace)
    began = time.monotonic()
    node.orama("namespace", "enable", "webrtc", "--namespace", namespace)
    took = time.monotonic() - began
    report().milliseconds("Enabling", f"orama namespace enable webrtc --namespace {namespace}", took)
    return took


def key_of(node: Node, namespace: str) -> str:
    """A new owner key."""
    made = node.orama_json("namespace", "key", "create", "--namespace", namespace, "--role", "owner")
    return str(made["api_key"])


@cache
def key(namespace: str = NAMESPACE) -> str:
    return key_of(cluster().nodes[1], namespace)


class LabTestCase(SynchronousTestCase):
    """:cvar needs: pieces of the lab, as :meth:`Lab.lacking` calls them, without which a test is skipped."""

    needs: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.require("machines", "WireGuard", *self.needs)
        self.lab = lab()

    def require(self, *pieces: str) -> None:
        """:raises SkipTest: one of these cannot be had, and why."""
        for piece in pieces:
            if reason := lacking().get(piece):
                raise SkipTest(reason)


class ClusterTestCase(LabTestCase):
    """Three nodes that are well when a test begins, whatever the one before has done to them."""

    def setUp(self) -> None:
        super().setUp()
        self.lab = cluster()
        self.nodes = self.lab.nodes
        self.report = report()
        self.room = f"room-{next(_rooms)}"
        self.well()

    def well(self) -> None:
        """Return once every node does all that is wanted of it."""
        stopped = [number for number, process in self.lab.rqlite.running.items() if not process.running]
        if stopped:
            self.lab.rqlite.start(*stopped)
        for node in self.nodes.values():
            if not node.process.running:
                node.launch()
        until_true("every node is well", 120.0, self._well)

    def _well(self) -> bool:
        for node in self.nodes.values():
            node.get("/ready")
        up = self.up()
        return sum(sfu for sfu, _ in up.values()) == 3 and sum(turn for _, turn in up.values()) == 2

    def up(self, namespace: str = NAMESPACE, ask: int = 1) -> dict[int, tuple[bool, bool]]:
        """What runs, SFU and TURN by node, as one node tells it."""
        status = self.nodes[ask].orama_json("namespace", "webrtc-status", "--namespace", namespace)
        ids = self.ids()
        return {ids[each["node_id"]]: (each["sfu_up"], each["turn_up"]) for each in status["observed"]["nodes"]}

    def ids(self) -> dict[str, int]:
        """Numbers of the nodes by their ids."""
        for number, node in self.nodes.items():
            if number not in _node_ids and node.process.running:
                _node_ids[number] = node.node_id
        return {node_id: number for number, node_id in _node_ids.items()}

    def relaying(self, namespace: str = NAMESPACE) -> list[int]:
        """The nodes with TURN."""
        return sorted(number for number, (_, turn) in self.up(namespace).items() if turn)

    def phone(self, client: int, *gateways: int, namespace: str = NAMESPACE, room: str = "", secret: str = "") -> Phone:
        """Somebody at *client* who calls by way of these nodes; hangs up at the end of the test."""
        urls = [self.nodes[number].url for number in gateways]
        made = Phone(self.lab.clients[client - 1], urls, secret or key(namespace), room or self.room)
        self.addCleanup(made.hang_up)
        return made

    def owner(self, room: str = "", ask: int = 1) -> int:
        """The node that has a room."""
        found = until_true("the room", 60.0, lambda: self.nodes[ask].rooms(key())[room or self.room])
        return self.ids()[found["node_id"]]

    def environment(self, ask: int = 1) -> tuple[str, ...]:
        """Options for commands that ask the whole cluster, from one node."""
        file = self.nodes[ask].machine.directory / "environments.toml"
        file.write_text(
            "[lab]\n"
            f"nodes = {json.dumps([f'{addresses.mesh(number)}:6002' for number in addresses.NODES])}\n"
            f'key = "{self.nodes[ask].data / "cluster.key"}"\n'
            f"dns = {json.dumps([f'{addresses.public(number)}:53' for number in addresses.NODES])}\n"
            f'base_domain = "{addresses.DOMAIN}"\n'
        )
        return "--env", "lab", "--environments", str(file)

    def inspect(self, ask: int = 1, namespace: str = NAMESPACE) -> list[str]:
        """What fails, as the inspector says it on one node; its exit status agrees."""
        command = ("inspector", *self.environment(ask), "--namespace", namespace)
        found = self.nodes[ask].orama_json(*command, code=None)
        failed = [f"{each['id']}: {each['message']}" for each in found["findings"] if each["status"] == "fail"]
        self.nodes[ask].orama_json(*command, code=1 if failed else 0)
        return failed

    def resolve(self, namespace: str = NAMESPACE, ask: int = 1) -> list[str]:
        """The addresses that the DNS server of a node gives for the namespace's TURN host, in order."""
        from tests.lab.names import addresses_of

        name = f"turn.ns-{namespace}.{addresses.DOMAIN}"
        return sorted(addresses_of(self.lab.clients[0], addresses.public(ask), name))


#: Ids of the nodes by number: they stay.
_node_ids: dict[int, str] = {}
