"""The units as processes: they come to their node, serve, drain, and outlive it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from orama.cluster.desired import Blocks
from orama.cluster.keyring import ClusterKey, new_key
from orama.cluster.placement import SFU, TURN
from tests.contract.signalling import Client
from tests.interop.caller import Caller, Tone
from tests.node import TWISTD
from tests.units.host import HOST, Host, Unit, on_thread, until


class ProcessTestCase(TestCase):
    timeout = 400

    def run_async(self, coroutine: Coroutine[Any, Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(coroutine)

    async def served(self, host: Host) -> Unit:
        """The SFU, once its node says that it serves."""
        worker = Unit.of(self, host, "orama.worker")
        await worker.notified("READY=1")
        await worker.until(lambda: host.workers.serves("demo"), "serves")
        return worker

    async def leased(self, host: Host) -> Unit:
        """The TURN lease, once its node says that it is held."""
        lease = Unit.of(self, host, "orama.lease")
        await lease.notified("READY=1")
        await lease.until(lambda: host.leases.serves("demo"), "serves")
        return lease


class WorkerTests(ProcessTestCase):
    def test_serves(self) -> Deferred[None]:
        """It waits for its node, serves clients that other nodes forward, and reports what it has."""
        return self.run_async(self._serves())

    async def _serves(self) -> None:
        host = Host(self)
        await host.stop()
        worker = Unit.of(self, host, "orama.worker")
        await worker.notified("STATUS=waiting for the node")
        self.assertNotIn("READY=1", worker.told)
        host.start()
        await worker.notified("READY=1")
        client = await on_thread(host.joined, "lobby")
        self.addCleanup(client.drop)
        [granted] = [each for each in client.received if each["type"] == "turn-credentials"]
        self.assertEqual(granted["uris"][0], f"turn:{HOST}:{host.turn.udp_port}?transport=udp")
        await worker.until(lambda: host.workers.live() == {("demo", "lobby"): 1}, "a report of one")
        self.assertIn(("orama_sfu_peers", {"namespace": "demo"}, 1.0), list(host.workers.samples()))
        self.assertEqual(host.directory.rooms, {"lobby": "n1"})

    def test_strangers(self) -> Deferred[None]:
        """Who is not forwarded by a node of the cluster is not let in, with whatever key."""
        return self.run_async(self._strangers())

    async def _strangers(self) -> None:
        host = Host(self)
        await self.served(host)

        def closed(query: str) -> int:
            client = Client(None, query, base=f"ws://{HOST}:{host.signaling}")  # type: ignore[arg-type]
            return client.until_closed()

        self.assertEqual(await on_thread(closed, "?room=lobby&api_key=ak_x:demo"), 4401)
        self.assertEqual(await on_thread(closed, "?room=lobby&visitor=e30"), 4401)

    def test_other_keys(self) -> Deferred[None]:
        """When the cluster's key is rotated, the new one is good within a report, and the old one is not for ever."""
        return self.run_async(self._other_keys())

    async def _other_keys(self) -> None:
        host = Host(self)
        worker = await self.served(host)
        key = ClusterKey(1, new_key())
        host.keyring.use(key)
        host.keyring.forget_others()

        def let_in() -> bool:
            client = host.connect("lobby")
            client.say("join")
            client.listen(0.3)
            client.drop()
            return any(each["type"] == "welcome" for each in client.received)

        deadline = time.monotonic() + 60
        while not await on_thread(let_in):
            self.assertLess(time.monotonic(), deadline, worker.journal)

    def test_drain(self) -> Deferred[None]:
        """SIGTERM tells its people where to go, waits for them, and ends with 0."""
        return self.run_async(self._drain())

    async def _drain(self) -> None:
        host = Host(self)
        worker = await self.served(host)
        client = await on_thread(host.joined, "lobby")
        worker.signal()
        draining = await on_thread(client.until, "server-draining")
        self.assertEqual(draining["reconnectUrl"], "ws://n2.example")
        await worker.notified("STOPPING=1")
        self.assertIsNone(worker.process.poll())
        await on_thread(client.say, "leave")
        self.assertEqual(await worker.ended(), 0)
        await worker.until(lambda: not host.workers.serves("demo"), "gone")

    def test_moved(self) -> Deferred[None]:
        """A role that moves to another node leaves everybody where they are until the unit is stopped."""
        return self.run_async(self._moved())

    async def _moved(self) -> None:
        host = Host(self)
        worker = await self.served(host)
        client = await on_thread(host.joined, "lobby")
        assert host.config is not None
        host.config, host.reconnect_url = evolve(host.config, blocks=Blocks()), "ws://n3.example"
        await host.workers.leave("demo")
        worker.signal()
        draining = await on_thread(client.until, "server-draining")
        self.assertEqual(draining["reconnectUrl"], "ws://n3.example")
        await on_thread(client.say, "leave")
        self.assertEqual(await worker.ended(), 0)

    def test_unwanted(self) -> Deferred[None]:
        """Where the namespace is not wanted any more, SIGTERM closes its rooms."""
        return self.run_async(self._unwanted())

    async def _unwanted(self) -> None:
        host = Host(self)
        worker = await self.served(host)
        client = await on_thread(host.joined, "lobby")
        host.config = None
        await host.workers.leave("demo")
        worker.signal()
        await on_thread(client.until, "room-closed")
        self.assertEqual(await worker.ended(), 0)

    def test_outlives_its_node(self) -> Deferred[None]:
        """A restart of the node changes nothing for who is in, and the new node knows all that the old one knew."""
        return self.run_async(self._outlives())

    async def _outlives(self) -> None:
        host = Host(self)
        worker = await self.served(host)
        first = await on_thread(host.joined, "lobby")
        self.addCleanup(first.drop)
        await host.stop()
        # Meanwhile a room that people are in takes more of them; a new one has to wait for the node.
        second = await on_thread(host.joined, "lobby")
        self.addCleanup(second.drop)
        await on_thread(first.until, "peer-joined")
        third = await on_thread(host.connect, "another")
        self.addCleanup(third.drop)
        await on_thread(third.say, "join")
        self.assertNotIn("welcome", await on_thread(_types, third))
        host.start()
        await worker.until(lambda: host.workers.live() == {("demo", "lobby"): 2}, "the rooms at the new node")
        self.assertTrue(host.workers.serves("demo"))
        fourth = await on_thread(host.joined, "another")
        self.addCleanup(fourth.drop)
        self.assertIsNone(first.code)

    def test_rooms_from_the_node(self) -> Deferred[None]:
        """Rooms are made and closed by the node; one that is another node's sends its people after it."""
        return self.run_async(self._rooms())

    async def _rooms(self) -> None:
        host = Host(self)
        worker = await self.served(host)
        host.workers.create("demo", "made", 5)
        await worker.until(lambda: host.workers.get("demo", "made") is not None, "the room")
        made = host.workers.get("demo", "made")
        assert made is not None
        self.assertEqual(made.max_participants, 5)
        client = await on_thread(host.joined, "lobby")
        host.workers.lose("demo", "lobby")
        self.assertEqual(await on_thread(client.until_closed), 1012)
        client = await on_thread(host.joined, "other")
        host.workers.close("demo", "other", "room-closed")
        await on_thread(client.until, "room-closed")

    def test_other_ports(self) -> Deferred[None]:
        """Where the namespace has got other ports, they are served instead."""
        return self.run_async(self._other_ports())

    async def _other_ports(self) -> None:
        host = Host(self)
        await self.served(host)
        other = Host(self)  # its ports are free
        assert host.config is not None and other.config is not None
        host.config, host.signaling = evolve(host.config, blocks=other.config.blocks), other.signaling
        await host.workers.refresh("demo")

        async def answers() -> bool:
            try:
                client = await on_thread(host.joined, "lobby")
            except OSError:
                return False
            client.drop()
            return True

        deadline = time.monotonic() + 60
        while not await answers():
            self.assertLess(time.monotonic(), deadline)

    def test_taken_port(self) -> Deferred[None]:
        """A port that somebody has ends it with status 1 and one line."""
        return self.run_async(self._taken())

    async def _taken(self) -> None:
        host = Host(self)
        await self.served(host)
        second = Unit.of(self, host, "orama.worker")
        self.assertEqual(await second.ended(), 1)
        self.assertIn("orama-worker: ", second.journal[-1])
        self.assertIn("Address already in use", second.journal[-1])


class LeaseTests(ProcessTestCase):
    def test_held(self) -> Deferred[None]:
        """It waits for its node; while it runs the namespace is served; its log lines are in its journal."""
        return self.run_async(self._held())

    async def _held(self) -> None:
        host = Host(self)
        await host.stop()
        lease = Unit.of(self, host, "orama.lease")
        await lease.said("waiting for the node")
        host.start()
        await lease.notified("READY=1")
        self.assertIsNotNone(host.tenants.get("demo"))
        lease.signal()
        self.assertEqual(await lease.ended(), 0)
        self.assertIsNone(host.tenants.get("demo"))
        self.assertIn("demo is relayed for no more", lease.journal[-1])

    def test_outlives_its_node(self) -> Deferred[None]:
        """A node that comes back has its lease again."""
        return self.run_async(self._outlives())

    async def _outlives(self) -> None:
        host = Host(self)
        lease = await self.leased(host)
        await host.stop()
        await lease.said("waiting for the node")
        host.start()
        await lease.until(lambda: host.leases.serves("demo"), "held again")
        self.assertIsNone(lease.process.poll())

    def test_stop_without_a_node(self) -> Deferred[None]:
        """SIGTERM ends it also when there is no node."""
        return self.run_async(self._without())

    async def _without(self) -> None:
        host = Host(self)
        lease = await self.leased(host)
        await host.stop()
        lease.signal()
        self.assertEqual(await lease.ended(), 0)

    def test_watchdog(self) -> Deferred[None]:
        """It gives signs of life, while it waits and while it serves."""
        return self.run_async(self._watched())

    async def _watched(self) -> None:
        host = Host(self)
        lease = Unit.of(self, host, "orama.lease", watchdog=0.4)
        await lease.notified("READY=1")
        begun = len(lease.told)
        await lease.until(lambda: lease.told[begun:].count("WATCHDOG=1") >= 3, "signs of life")

    def test_unwanted(self) -> Deferred[None]:
        """A namespace that is not relayed for here is not registered; the journal says why."""
        return self.run_async(self._unwanted())

    async def _unwanted(self) -> None:
        host = Host(self)
        host.config = None
        lease = Unit.of(self, host, "orama.lease")
        await lease.said("WebRTC is not enabled in this namespace")
        self.assertNotIn("READY=1", lease.told)
        lease.signal()
        self.assertEqual(await lease.ended(), 0)


class RunnerTests(ProcessTestCase):
    def test_roles(self) -> Deferred[None]:
        """The runner of a node brings both roles up as processes, and down again; nothing is left."""
        return self.run_async(self._roles())

    async def _roles(self) -> None:
        host = Host(self)
        units: dict[str, Unit] = {}

        def begin(name: str) -> None:
            module = "orama.worker" if "-sfu@" in name else "orama.lease"
            units[name] = Unit.of(self, host, module)
            host.systemctl.units[name].active = "active"

        def end(name: str) -> None:
            units[name].signal()

        host.systemctl.begin, host.systemctl.end = begin, end
        runner = host.units.runner
        for role in (TURN, SFU):
            await runner.start("demo", role)
        await until(lambda: all(runner.running("demo", role) for role in (TURN, SFU)), lambda: str(units))
        self.assertEqual(await runner.survey(), {("demo", SFU), ("demo", TURN)})
        host.config = None
        for role in (SFU, TURN):
            await runner.stop("demo", role)
        for unit in units.values():
            self.assertEqual(await unit.ended(), 0)
        await until(lambda: not any(runner.running("demo", role) for role in (TURN, SFU)), lambda: str(units))
        self.assertEqual(len(host.tenants), 0)


class NodeTests(ProcessTestCase):
    def test_node(self) -> Deferred[None]:
        """A node under twistd is ready when it has started, lives, is reloaded, and says that it stops."""
        return self.run_async(self._node())

    async def _node(self) -> None:
        directory = Path(mkdtemp(prefix="orama-"))
        self.addCleanup(rmtree, directory)
        command = [TWISTD, "-n", f"--rundir={directory}", "--pidfile=", "orama-webrtc", "--data-dir", str(directory)]
        ports = ["--turn-port", "0", "--turns-port", "0", "--http", "tcp:0:interface=127.0.0.1"]
        node = Unit(self, [*command, *ports], watchdog=1.0)
        await node.notified("READY=1")
        begun = len(node.told)
        await node.until(lambda: node.told[begun:].count("WATCHDOG=1") >= 2, "signs of life")
        self.assertIn("STATUS=ready", node.told)
        begun = len(node.told)
        node.signal(signal.SIGHUP)
        await node.until(lambda: "READY=1" in node.told[begun:], "the end of the reload")
        self.assertIn("RELOADING=1", node.told)
        node.signal(signal.SIGTERM)
        self.assertEqual(await node.ended(), 0)
        self.assertIn("STOPPING=1", node.told)


class _Caller(Caller):
    """A client that comes through another node."""

    def __init__(self, host: Host, room: str) -> None:
        super().__init__(None, room)  # type: ignore[arg-type]
        self._host = host

    def connect(self) -> Client:
        return self._host.connect(self._room)


class CallTests(ProcessTestCase):
    def test_call(self) -> Deferred[None]:
        """Media go from TURN in one process to the SFU in another and back; a lease that dies and comes again drops
        nothing, and what was relayed is in its journal when the namespace stops."""
        return Deferred.fromFuture(asyncio.ensure_future(self._call()))

    async def _call(self) -> None:
        loop = asyncio.get_running_loop()

        def wait(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
            return Deferred.fromCoroutine(coroutine).asFuture(loop)

        host = Host(self, drain_deadline=2.0)
        await wait(self.served(host))
        lease = await wait(self.leased(host))
        one, two = _Caller(host, "lobby"), _Caller(host, "lobby")
        try:
            for caller in (one, two):
                await caller.join()
                caller.connection.addTrack(Tone())
                await caller.publish()
            await one.until(lambda: sum(one.frames.values()) > 20)
            await two.until(lambda: sum(two.frames.values()) > 20)
            self.assertEqual(host.turn.allocations("demo"), 2)
            lease.process.kill()
            await wait(lease.ended())
            again = await wait(self.leased(host))
            heard = sum(one.frames.values())
            await one.until(lambda: sum(one.frames.values()) > heard + 20)
            self.assertEqual(host.turn.allocations("demo"), 2)
            again.signal()
            await wait(again.ended())
            begun = [line for line in lease.journal if "begins on port" in line]
            ended = [line for line in again.journal if "ended (namespace_removed)" in line]
            self.assertEqual((len(begun), len(ended)), (2, 2), (lease.journal, again.journal))
        finally:
            for caller in (one, two):
                await caller.close()


def _types(client: Client) -> list[str]:
    client.listen(0.5)
    return [each["type"] for each in client.received]
