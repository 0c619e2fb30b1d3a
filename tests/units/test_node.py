"""A whole node with ``cluster.runner = "systemd"``: its namespaces are units, and every one of them a process."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import socket
import sqlite3
import time
from contextlib import closing
from typing import Any
from urllib.request import urlopen

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from orama.cluster.desired import RELAY, SIGNALING
from tests.contract.commands import data, run
from tests.contract.signalling import PATIENCE, Client, connect, join
from tests.interop.caller import Caller, Tone
from tests.ports import free_port
from tests.units.manager import Unit, UnitNode, until
from tests.webhooks.receiver import SECRET, ReceiverThread

SFU, TURN = "orama-namespace-sfu@default.service", "orama-namespace-turn@default.service"


def status(node: UnitNode) -> dict[str, Any]:
    """What the node that is asked first sees of ``default``."""
    code, body = node.request("GET", "/v1/namespace/webrtc/status")
    assert code == 200, body
    [seen] = [each for each in json.loads(body)["observed"]["nodes"] if each["node_id"] == node.node_id]
    return dict(seen)


def serves(node: UnitNode) -> bool:
    seen = status(node)
    return bool(seen["sfu_up"] and seen["turn_up"])


class NodeTestCase(TestCase):
    timeout = 400

    def node(self, *options: str, **tables: str) -> UnitNode:
        """A node that has yet to be started."""
        node = UnitNode(self, *options, signaling="drain_deadline = 1.0", **tables)
        self.addCleanup(node.stop)
        return node

    def started(self, *options: str, **tables: str) -> UnitNode:
        """A node whose units serve ``default``."""
        node = self.node(*options, **tables)
        node.start()
        # The first start goes on when the node is ready, since units wait for that.
        node.wait_for("the owner key of default is in")
        until(lambda: serves(node), lambda: (status(node), [each.journal for each in self.units(node)], node.errors))
        return node

    def units(self, node: UnitNode) -> tuple[Unit, Unit]:
        return node.manager.unit(SFU), node.manager.unit(TURN)

    def joined(self, node: UnitNode, room: str = "lobby") -> Client:
        client = join(node, room)
        self.addCleanup(client.drop)
        return client

    async def meet(self, *callers: Caller) -> None:
        for caller in callers:
            await caller.join()
            caller.connection.addTrack(Tone())
            await caller.publish()
        await self.heard(*callers)

    async def heard(self, *callers: Caller) -> None:
        """Everybody hears something new."""
        before = [sum(caller.frames.values()) for caller in callers]
        for caller, frames in zip(callers, before, strict=True):
            await caller.until(lambda caller=caller, frames=frames: sum(caller.frames.values()) > frames + 20)

    def rows(self, node: UnitNode, table: str) -> int:
        with closing(sqlite3.connect(node.data / "orama.db")) as database:
            (number,) = database.execute(f"select count(*) from {table}").fetchone()
        return int(number)


class LifeTests(NodeTestCase):
    def test_life(self) -> None:
        """The first start brings both units up; a client's room is in the SFU's process, and every command shows it;
        what happens in it is told to an application; an SFU that finds its port taken gets another; ``disable`` takes
        everything away, ``enable`` brings it back."""
        port = free_port()
        receiver = ReceiverThread()
        self.addCleanup(receiver.close)
        node = self.started(cluster=f"port = {port}", webhooks=f'url = "{receiver.url}"\nsecret = "{SECRET}"')
        sfu, turn = self.units(node)
        self.assertEqual([(each.active, each.sub, each.starts) for each in (sfu, turn)], [("active", "running", 1)] * 2)
        self.assertIn(("start", SFU), node.manager.verbs)
        client = self.joined(node)
        until(lambda: status(node)["participants"] == 1, lambda: status(node))
        self.assertEqual(json.loads(node.request("GET", "/v1/webrtc/rooms")[1])["rooms"][0]["participants"], 1)
        [room] = json.loads(node.request("GET", "/v1/webrtc/rooms?room_id=lobby&stats=1")[1])["rooms"]
        self.assertEqual([peer["state"] for peer in room["stats"]["peers"]], ["connecting"])
        with urlopen(f"http://{node.internal}:{port}/metrics") as answer:
            metrics = answer.read().decode()
        self.assertIn("orama_signaling_forwarded 1", metrics)
        self.assertIn('orama_sfu_peers{namespace="default"} 1', metrics)
        self.shown(node, port)
        ports = self.moved(node, client)
        client = self.joined(node)
        self.disabled(node)
        client.until("room-closed")
        self.nothing_left(node, ports)
        told = [each["event"] for each in receiver.taken]
        self.assertEqual(told.count("participant_joined"), 2)
        self.assertEqual(told[-2:], ["participant_left", "room_finished"])
        self.assertEqual(run(node, "namespace", "enable", "webrtc", "--namespace", "default").returncode, 0)
        self.assertTrue(serves(node))
        self.assertEqual((sfu.active, turn.active, turn.starts), ("active", "active", 2))
        self.joined(node, "another")
        self.assertEqual(node.stop(), 0)
        self.assertEqual((sfu.active, turn.active), ("active", "active"))
        self.assertNotIn("Traceback", node.errors + "\n".join([*node.output, *sfu.journal, *turn.journal]))

    def shown(self, node: UnitNode, port: int) -> None:
        """What the commands say."""
        [seen] = data(node, "namespace", "webrtc-status", "--namespace", "default")["observed"]["nodes"]
        self.assertEqual((seen["sfu_up"], seen["turn_up"], seen["rooms"], seen["participants"]), (True, True, 1, 1))
        environments = node.directory / "environments.toml"
        environments.write_text(f'[here]\nnodes = ["{node.internal}:{port}"]\nkey = "{node.data / "cluster.key"}"\n')
        arguments = "monitor", "report", "--env", "here", "--environments", str(environments)
        [report] = data(node, *arguments)["nodes"]
        [mine] = report["namespaces"]
        self.assertEqual(report["runner"], "systemd")
        self.assertEqual((mine["sfu_up"], mine["turn_up"], mine["participants"]), (True, True, 1))

    def moved(self, node: UnitNode, client: Client) -> dict[str, list[int]]:
        """Take the port of the SFU while it is away for a moment; the ports that it has after that."""
        sfu, turn = self.units(node)
        before = self.ports(node)
        sfu.kill()
        node.manager.until(lambda: sfu.sub == "auto-restart", "the SFU is gone")
        with socket.create_server((node.internal, before[SIGNALING][0])):
            self.assertEqual(client.until_closed(), 1012)
            until(lambda: self.ports(node)[SIGNALING] != before[SIGNALING], lambda: sfu.journal)
            until(lambda: serves(node), lambda: (status(node), sfu.journal))
        after = self.ports(node)
        self.assertEqual(after[RELAY], before[RELAY])
        self.assertEqual(turn.starts, 1)
        return after

    def ports(self, node: UnitNode) -> dict[str, list[int]]:
        with closing(sqlite3.connect(node.data / "orama.db")) as database:
            rows = database.execute("select kind, first_port, last_port from webrtc_port_allocations").fetchall()
        return {kind: [first, last] for kind, first, last in rows}

    def disabled(self, node: UnitNode) -> None:
        done = run(node, "namespace", "disable", "webrtc", "--namespace", "default")
        self.assertEqual((done.returncode, done.stderr), (0, ""), done)

    def nothing_left(self, node: UnitNode, ports: dict[str, list[int]]) -> None:
        sfu, turn = self.units(node)
        node.manager.until(lambda: sfu.active == turn.active == "inactive", "both have ended")
        self.assertEqual((sfu.pid, turn.pid, sfu.result, turn.result), (0, 0, "success", "success"))
        self.assertIn("default is relayed for no more", turn.journal[-1])
        for table in ("webrtc_roles", "webrtc_port_allocations", "webrtc_rooms"):
            self.assertEqual(self.rows(node, table), 0, table)
        for kind, (first, _) in ports.items():
            with socket.socket(type=socket.SOCK_STREAM if kind == SIGNALING else socket.SOCK_DGRAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((node.internal, first))

    def test_systemd_is_away(self) -> None:
        """Where systemd takes no orders, the first start says so in one line, leaves nothing and is tried again by
        the next."""
        node = self.node()
        node.manager.refuses = "Failed to start: Interactive authentication required."
        node.start()
        said = node.wait_for("the first start is incomplete")
        self.assertIn("Interactive authentication required.", said)
        self.assertEqual(self.rows(node, "namespaces"), 0)
        self.assertFalse((node.data / "default.api-key").exists())
        node.manager.refuses = ""
        node.stop()
        node.start()
        node.wait_for("the owner key of default is in")
        until(lambda: serves(node), lambda: status(node))


class CallTests(NodeTestCase):
    """Two people in a call, through TURN in the node and the SFU in a process of its own."""

    def test_call(self) -> Deferred[None]:
        """SIGHUP and the death of the lease cost it nothing; the death of the SFU sends everybody back in (1012); the
        journal of the lease has every allocation, with what it relayed."""
        return Deferred.fromFuture(asyncio.ensure_future(self._call()))

    async def _call(self) -> None:
        node = await asyncio.to_thread(self.started)
        callers = Caller(node, "lobby"), Caller(node, "lobby")
        try:
            await self.meet(*callers)
            await asyncio.to_thread(self.undisturbed, node)
            await self.heard(*callers)
            await self.killed(node, *callers)
        finally:
            for caller in callers:
                await caller.close()
        await asyncio.to_thread(self.written, node)

    def undisturbed(self, node: UnitNode) -> None:
        sfu, turn = self.units(node)
        until(lambda: status(node)["participants"] == 2, lambda: status(node))
        self.assertEqual(self.allocations(node), 2)
        node.config.write_text(node.config.read_text().replace("drain_deadline = 1.0", "drain_deadline = 20.0"))
        node.signal(signal.SIGHUP)
        node.wait_for("the configuration was read again")
        self.assertNotIn("waits for the next start", "\n".join(node.output))
        turn.kill()
        node.manager.until(lambda: turn.starts == 2 and turn.active == "active", "the lease is there again")
        until(lambda: serves(node), lambda: status(node))
        self.assertEqual((self.allocations(node), sfu.starts), (2, 1))

    def allocations(self, node: UnitNode) -> int:
        [mine] = data(node, "monitor", "report")["nodes"][0]["namespaces"]
        return int(mine["allocations"])

    async def killed(self, node: UnitNode, *callers: Caller) -> None:
        sfu, _ = self.units(node)
        sfu.kill()
        for caller in callers:
            await caller.until(lambda caller=caller: caller.client.code is not None)
            self.assertEqual(caller.client.code, 1012)
        [welcome] = callers[0].told("welcome")
        await asyncio.to_thread(self.let_in, node, welcome)
        self.assertEqual(sfu.starts, 2)
        again = Caller(node, "lobby"), Caller(node, "lobby")
        try:
            await self.meet(*again)
        finally:
            for caller in again:
                await caller.close()

    def let_in(self, node: UnitNode, welcome: dict[str, Any]) -> None:
        """As the client library does: again and again, until somebody takes us, who has our place no more."""
        deadline = time.monotonic() + 60
        while True:
            client = connect(node, "lobby")
            client.say("join", resume=welcome["resume"])
            answer = client.until_one(lambda message: message["type"] in ("welcome", "error"), "answer")
            if answer["type"] == "welcome":
                self.assertNotEqual(answer["peerId"], welcome["peerId"])
                client.say("leave")
                client.until_closed()
                return
            self.assertEqual((client.until_closed(), answer["code"]), (1013, "internal"))
            self.assertLess(time.monotonic(), deadline)

    def written(self, node: UnitNode) -> None:
        _, turn = self.units(node)
        done = run(node, "namespace", "disable", "webrtc", "--namespace", "default")
        self.assertEqual((done.returncode, done.stderr), (0, ""), done)
        node.manager.until(lambda: turn.active == "inactive", "the lease has ended")
        begun = [line for line in turn.journal if "begins on port" in line]
        ended = [line for line in turn.journal if " ended (" in line]
        # Two before the SFU died, and two after.
        self.assertEqual((len(begun), len(ended)), (4, 4), turn.journal)
        for line in ended:
            numbers = [int(number) for number in re.findall(r"(\d+) bytes", line)]
            self.assertTrue(numbers and min(numbers) > 1000, line)


class _Far(Caller):
    """Somebody who comes through the gateway of one node, and relays there as well."""

    def connect(self) -> Client:
        return _OwnRelay(self._node, f"?room={self._room}&api_key={self._node.key}")


class _OwnRelay(Client):
    """Has the relay of its own gateway's node stand first."""

    def __init__(self, node: UnitNode, query: str) -> None:
        super().__init__(node, query)
        self._port = f":{node.turn_port}?"

    def until(self, kind: str, seconds: float = PATIENCE) -> dict[str, Any]:
        message = super().until(kind, seconds)
        if kind == "turn-credentials":
            message["uris"].sort(key=lambda uri: self._port not in uri)
        return message


class PairTests(NodeTestCase):
    """Two nodes with one database, on one machine."""

    def pair(self, **tables: str) -> tuple[UnitNode, UnitNode]:
        """:param tables: of the first one's configuration."""
        one = self.started(**tables)
        database = f"sqlite:///{one.data / 'orama.db'}"
        two = self.node("--database", database)
        two.data.mkdir(mode=0o700)
        shutil.copy2(one.data / "cluster.key", two.data)
        two.start()
        (two.data / "default.api-key").write_text(one.key)
        until(lambda: serves(two), lambda: (status(two), [each.journal for each in self.units(two)]))
        return one, two

    def owner(self, node: UnitNode) -> list[tuple[str, int]]:
        with closing(sqlite3.connect(node.data / "orama.db")) as database:
            return database.execute("select node_id, participants from webrtc_rooms").fetchall()

    def test_restart(self) -> Deferred[None]:
        """A restart of the node leaves its SFU as it is, with everybody who comes by another gateway and another
        relay; afterwards rooms, people and lease are the node's again, and nothing has moved."""
        return Deferred.fromFuture(asyncio.ensure_future(self._restart()))

    async def _restart(self) -> None:
        one, two = await asyncio.to_thread(self.pair, sfu="resume_timeout = 300.0")
        near = await asyncio.to_thread(self.joined, one)
        callers = _Far(two, "lobby"), _Far(two, "lobby")
        try:
            await self.meet(*callers)
            before = [(unit.pid, unit.starts) for unit in self.units(one)]
            stopped, code = await asyncio.gather(asyncio.to_thread(one.stop), asyncio.to_thread(near.until_closed))
            self.assertEqual((stopped, code), (0, 1001))
            await self.heard(*callers)
            await asyncio.to_thread(one.start)
            await self.heard(*callers)
            self.assertEqual([caller.client.code for caller in callers], [None, None])
            await asyncio.to_thread(until, lambda: serves(one), lambda: status(one))
            self.assertEqual([(unit.pid, unit.starts) for unit in self.units(one)], before)
            await asyncio.to_thread(self.resumed, one, near)
            await asyncio.to_thread(
                until, lambda: self.owner(one) == [(one.node_id, 3)], lambda: (self.owner(one), status(one))
            )
            self.assertEqual(status(one)["participants"], 3)
            _, turn = self.units(one)
            self.assertEqual(sum("is relayed for on ports" in line for line in turn.journal), 2, turn.journal)
        finally:
            for caller in callers:
                await caller.close()

    def resumed(self, node: UnitNode, former: Client) -> None:
        """Who came by the gateway that went away takes the same place again."""
        [before] = [each for each in former.received if each["type"] == "welcome"]
        client = connect(node, "lobby")
        self.addCleanup(client.drop)
        client.say("join", resume=before["resume"])
        self.assertEqual(client.until("welcome")["peerId"], before["peerId"])

    def test_drain(self) -> None:
        """A node that is drained sends its people to another one, by whichever gateway they came, and its units end;
        they are back when it is to be used again."""
        one, two = self.pair()
        people = self.joined(one), self.joined(two)
        self.assertEqual(self.owner(one)[0][0], one.node_id)
        done = run(two, "node", "drain", one.node_id)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done)
        for client in people:
            self.assertIn(f"ws://{two.authority}/", client.until("server-draining")["reconnectUrl"])
            client.say("leave")
            client.until_closed()
        sfu, turn = self.units(one)
        one.manager.until(lambda: sfu.active == turn.active == "inactive", "both have ended")
        again = self.joined(two)
        until(lambda: self.owner(one) == [(two.node_id, 1)], lambda: self.owner(one))
        self.assertEqual([unit.starts for unit in self.units(two)], [1, 1])
        done = run(two, "node", "activate", one.node_id)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done)
        until(lambda: serves(one), lambda: (status(one), sfu.journal))
        self.assertEqual((sfu.starts, turn.starts, again.settled()[:1]), (2, 2, ["welcome"]))
