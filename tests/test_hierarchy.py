"""A whole node in this process: what it leaves behind, and namespaces that come and go while it runs."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import treq
from attrs import evolve
from click.testing import CliRunner
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.server import Site

from orama.cli.main import main
from orama.cluster.nodes import DRAINING
from orama.errors import Conflict, StartError
from orama.hierarchy import Node
from orama.settings import Settings, SfuSettings, TurnSettings, WebhookSettings
from orama.wire import stun
from orama.wire.stun import Class, Method
from tests.signaling.wire import Page, open_page
from tests.turn.plain_client import Client
from tests.webhooks.receiver import SECRET, Receiver


class NodeTestCase(TestCase):
    timeout = 240

    def setUp(self) -> None:
        self.directory = Path(mkdtemp(prefix="orama-"))
        self.addCleanup(rmtree, self.directory)
        self.pool = HTTPConnectionPool(reactor, persistent=False)

    def settings(self, **changes: Any) -> Settings:
        return evolve(
            Settings(),
            data_dir=self.directory / "data",
            http=("tcp:0:interface=127.0.0.1",),
            turn_port=0,
            turns_port=0,
            **changes,
        )

    async def running(self, **changes: Any) -> Node:
        node = Node(reactor, self.settings(**changes))
        self.addCleanup(lambda: Deferred.fromCoroutine(node.stop()))
        await node.start()
        return node

    async def get(self, node: Node, path: str, key: str | None = None, port: int | None = None) -> tuple[int, Any]:
        url = f"http://127.0.0.1:{port or node.http[0].getHost().port}{path}"
        headers = {} if key is None else {"X-API-Key": key}
        answer = await treq.get(url, headers=headers, agent=Agent(reactor, pool=self.pool), timeout=20)
        body = await answer.content()
        return answer.code, json.loads(body) if body.startswith(b"{") else body

    async def page(self, node: Node) -> Page:
        """A client of the room ``r``, on its socket."""
        page = await open_page(node.http[0].getHost().port, f"?room=r&api_key={self.key()}")
        await page.until_open()
        return page

    def key(self) -> str:
        return (self.directory / "data" / "default.api-key").read_text().strip()


class LifeTests(NodeTestCase):
    async def test_nothing_left_behind(self) -> None:
        """A node that has been used and stopped leaves no delayed call, descriptor, thread, socket file or lock."""
        await deferLater(reactor, 0)  # trial's reactor runs from here on, with descriptors of its own
        files, threads = _descriptors(), _threads()
        node = Node(reactor, self.settings())
        await node.start()
        self.assertEqual((await self.get(node, "/ready"))[0], 200)
        page = await self.page(node)
        page.say("join")
        await page.until("turn-credentials")
        await node.stop()
        await page.until_closed()
        self.assertEqual(page.code, 1001)
        # Trial's own timeout is one, too.
        self.assertEqual([str(call) for call in reactor.getDelayedCalls() if "TestCase._run" not in str(call)], [])
        self.assertEqual(_threads() - threads, set())
        self.assertEqual(_descriptors() - files, set())
        self.assertFalse((self.directory / "data" / "control.sock").exists())

    async def test_again(self) -> None:
        """What was stopped can be started again, by another object, with the same ports and data."""
        first = await self.running()
        port, key = first.http[0].getHost().port, self.key()
        signaling = first.served.signaling_port("default")
        await first.stop()
        again = Node(reactor, evolve(self.settings(), http=(f"tcp:{port}:interface=127.0.0.1",)))
        self.addCleanup(lambda: Deferred.fromCoroutine(again.stop()))
        await again.start()
        self.assertEqual((await self.get(again, "/v1/webrtc/rooms", key))[0], 200)
        self.assertEqual(again.served.signaling_port("default"), signaling)

    async def test_port_taken_meanwhile(self) -> None:
        """When somebody took the signalling port while the node was away, the namespace moves to another one."""
        first = await self.running()
        taken = first.served.signaling_port("default")
        await first.stop()
        squatter = reactor.listenTCP(taken, Factory(), interface="127.0.0.1")
        self.addCleanup(squatter.stopListening)
        again = await self.running()
        moved = again.served.signaling_port("default")
        self.assertNotEqual(moved, taken)
        self.assertEqual((await self.get(again, "/v1/webrtc/signal", self.key(), moved))[0], 426)

    async def test_failed_start(self) -> None:
        """A start that fails at its last step takes back all the steps before it."""
        first = await self.running()
        port = first.http[0].getHost().port
        files, threads = _descriptors(), _threads()
        settings = evolve(self.settings(), data_dir=self.directory / "other", http=(f"tcp:{port}:interface=127.0.0.1",))
        second = Node(reactor, settings)
        with self.assertRaises(StartError) as caught:
            await second.start()
        self.assertIn("Address already in use", caught.exception.message)
        self.assertEqual(_descriptors() - files, set())
        self.assertEqual(_threads() - threads, set())

    async def test_stop_twice(self) -> None:
        """Stopping what is stopped, or was never started, does nothing."""
        node = Node(reactor, self.settings())
        await node.stop()
        await node.start()
        await node.stop()
        await node.stop()
        self.assertEqual(node.unready, "the node is stopping")


class NamespaceTests(NodeTestCase):
    async def test_created_while_running(self) -> None:
        """A namespace that is created works at once: credentials, signalling port, rooms; deleted, it is gone."""
        node = await self.running()
        await node.namespaces.create("other")
        key = (await node.namespaces.create_key("other", "owner")).text
        grant = await node.access.issue("other")
        self.assertIn(":other", grant.username)
        tenant, default = node.tenants.get("other"), node.tenants.get("default")
        assert tenant is not None and default is not None
        self.assertEqual(len({tenant.relay_ports, default.relay_ports}), 2)
        self.assertEqual(len({tenant.sfu_media, default.sfu_media}), 2)
        port = node.served.signaling_port("other")
        self.assertEqual((await self.get(node, "/v1/webrtc/signal", key, port))[0], 426)
        self.assertEqual((await self.get(node, "/v1/webrtc/rooms", key))[0], 200)
        await node.namespaces.delete("other")
        self.assertIsNone(node.tenants.get("other"))
        self.assertIsNone(node.served.signaling_port("other"))
        self.assertEqual((await self.get(node, "/v1/webrtc/rooms", key))[0], 401)

    async def test_own_signalling_port(self) -> None:
        """The signalling port of a namespace is for that namespace alone, and serves nothing but signalling."""
        node = await self.running()
        await node.namespaces.create("other")
        port = node.served.signaling_port("other")
        self.assertEqual((await self.get(node, "/v1/webrtc/signal", self.key(), port))[0], 404)
        self.assertEqual((await self.get(node, "/v1/webrtc/rooms", self.key(), port))[0], 404)

    async def test_disable(self) -> None:
        """Disabling sends the room away with ``room-closed`` and frees the ports; enabling serves again."""
        node = await self.running()
        page = await self.page(node)
        page.say("join")
        await page.until("welcome")
        await node.namespaces.disable("default")
        await page.until("room-closed")
        await page.until_closed()
        self.assertFalse(node.served.serves("default"))
        self.assertEqual((await self.get(node, "/v1/webrtc/rooms", self.key()))[0], 404)
        with self.assertRaises(Conflict):
            await node.namespaces.disable("default")
        await node.namespaces.enable("default")
        self.assertEqual((await self.get(node, "/v1/webrtc/rooms", self.key()))[0], 200)
        self.assertTrue(node.served.serves("default"))

    async def test_observed(self) -> None:
        """The status shows what runs, not what is wanted."""
        node = await self.running()
        status, body = await self.get(node, "/v1/namespace/webrtc/status", self.key())
        [seen] = body["observed"]["nodes"]
        self.assertEqual((status, seen["sfu_up"], seen["turn_up"]), (200, True, True))
        await node.namespaces.disable("default")
        [seen] = (await self.get(node, "/v1/namespace/webrtc/status", self.key()))[1]["observed"]["nodes"]
        self.assertEqual((seen["sfu_up"], seen["turn_up"]), (False, False))


class EmptyRoomTests(NodeTestCase):
    async def released(self, node: Node) -> None:
        """Come back when a release that has begun is done: this one, which changes nothing, waits for it."""
        await node.directory.release("default", "r", unless=lambda: True)

    async def test_goes(self) -> None:
        """A room that nobody is in goes after its time, for REST too."""
        node = await self.running(sfu=SfuSettings(empty_room_timeout=0.05))
        gone: Deferred[None] = Deferred()
        forget = node.rooms.on_empty

        def emptied(namespace: str, room_id: str) -> None:
            forget(namespace, room_id)
            gone.callback(None)

        node.rooms.on_empty = emptied
        page = await self.page(node)
        page.say("join")
        await page.until("turn-credentials")
        self.assertEqual(len((await self.get(node, "/v1/webrtc/rooms", self.key()))[1]["rooms"]), 1)
        page.say("leave")
        await gone
        await self.released(node)
        self.assertEqual(await self.get(node, "/v1/webrtc/rooms", self.key()), (200, {"rooms": []}))

    async def test_joined_in_that_moment(self) -> None:
        """A room that somebody has joined again keeps its claim."""
        node = await self.running()
        page = await self.page(node)
        page.say("join")
        await page.until("turn-credentials")
        node.rooms.on_empty("default", "r")
        await self.released(node)
        [room] = (await self.get(node, "/v1/webrtc/rooms", self.key()))[1]["rooms"]
        self.assertEqual((room["room_id"], room["participants"]), ("r", 1))


class DrainTests(NodeTestCase):
    async def joined(self, node: Node) -> Page:
        page = await self.page(node)
        page.say("join")
        await page.until("turn-credentials")
        return page

    async def test_last_one_leaves(self) -> None:
        """A draining node tells its peers, is not ready, and is done as soon as the last of them has left."""
        node = await self.running()
        page = await self.joined(node)
        drained = Deferred.fromCoroutine(node.drain())
        notice = await page.until("server-draining")
        self.assertGreater(notice["deadlineMs"], 20_000)
        self.assertEqual(await self.get(node, "/ready"), (503, {"error": "the node is draining", "code": "not_ready"}))
        self.assertEqual((await self.get(node, "/health"))[0], 200)
        self.assertFalse(drained.called)
        page.say("leave")
        await drained

    async def test_room_taken_over(self) -> None:
        """Whose room another node takes over is sent there (1012); but the people of a node that is to be emptied hear
        of that first, and are put out by nothing else."""
        node = await self.running()
        page = await self.joined(node)
        me = node.registry.nodes[0]
        node.registry.nodes = (evolve(me, state=DRAINING),)
        node.lose_room("default", "r")
        drained = Deferred.fromCoroutine(node.drain())
        await page.until("server-draining")
        node.signaling.undrain()
        await drained
        node.registry.nodes = (me,)
        node.lose_room("default", "r")
        await page.until_closed()
        self.assertEqual(page.code, 1012)

    async def test_nobody_there(self) -> None:
        """With nobody there it is done at once."""
        node = await self.running()
        await node.drain()
        self.assertEqual(node.unready, "the node is draining")


class WorkersTests(NodeTestCase):
    """Of a node that serves TURN by several processes."""

    async def test_sfu_from_every_worker(self) -> None:
        """The SFU of the node takes what comes from the namespace's relays, whichever process has them."""
        node = await self.running(turn=TurnSettings(workers=3))
        (tenant,) = node.tenants
        clients = [Client(node.turn.udp_port, tenant.secrets[0], namespace="default") for _ in range(30)]
        for client in clients:
            self.addCleanup(client.close)
        media = node.rooms._held("default").port.address

        def send(client: Client) -> tuple[int, int]:
            codes = client.allocate(), client.signed(Method.CREATE_PERMISSION, (stun.XOR_PEER_ADDRESS, media))
            sent = [(stun.XOR_PEER_ADDRESS, media), (stun.DATA, b"\x80nobody knows me")]
            client.socket.send(stun.build(Method.SEND, Class.INDICATION, b"t" * 12, sent))
            return codes

        for client in clients:
            self.assertEqual(await deferToThread(send, client), (0, 0))
        name, figures = "orama_sfu_dropped_packets_total", dict[str, float]()
        while sum(figures.values()) < len(clients):
            await deferLater(reactor, 0)
            found = [each for each in node.rooms.samples() if each[0] == name]
            figures = {labels["reason"]: value for _, labels, value in found if value}
        self.assertEqual(figures, {"unknown_source": len(clients)})

    async def test_nothing_left_behind(self) -> None:
        """A node that has been stopped leaves no process, descriptor or delayed call."""
        await deferLater(reactor, 0)
        files = _descriptors()
        node = Node(reactor, self.settings(turn=TurnSettings(workers=2)))
        await node.start()
        (worker,) = node.turn.workers
        pid = worker.pid
        assert pid is not None
        self.assertEqual((await self.get(node, "/ready"))[0], 200)
        self.assertIn(b"orama_turn_workers 2.0", (await self.get(node, "/metrics"))[1])
        await node.stop()
        self.assertRaises(ProcessLookupError, os.kill, pid, 0)
        self.assertEqual([str(call) for call in reactor.getDelayedCalls() if "TestCase._run" not in str(call)], [])
        self.assertEqual(_descriptors() - files, set())


class WebhookTests(NodeTestCase):
    async def test_told(self) -> None:
        """Who is configured hears of rooms and people, and what ends with the node before it has stopped."""
        receiver = Receiver()
        listening: Any = reactor.listenTCP(0, Site(receiver), interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        webhooks = WebhookSettings(f"http://127.0.0.1:{listening.getHost().port}/", SECRET)
        node = await self.running(webhooks=webhooks)
        page = await self.page(node)
        page.say("join", userId="somebody")
        await page.until("turn-credentials")
        await receiver.until(lambda: len(receiver.taken) == 2)
        self.assertEqual(
            [(each["event"], each["room_id"], each["node_id"]) for each in receiver.taken],
            [("room_started", "r", node.node_id), ("participant_joined", "r", node.node_id)],
        )
        self.assertIn(b'orama_webhooks_sent_total{namespace="default"} 2.0', (await self.get(node, "/metrics"))[1])
        command = ["webhook", "test", "--namespace", "default", "--json", "--data-dir", str(self.directory / "data")]
        done = await deferToThread(CliRunner().invoke, main, command)
        self.assertEqual((done.exit_code, receiver.taken[2]["event"]), (0, "test"))
        self.assertEqual(json.loads(done.stdout)["id"], receiver.taken[2]["id"])
        await node.stop()
        self.assertEqual([each["event"] for each in receiver.taken[3:]], ["participant_left", "room_finished"])


class MetricsTests(NodeTestCase):
    async def test_series(self) -> None:
        """/metrics has the figures of every part, and no label but those that cannot grow with users."""
        node = await self.running()
        page = await self.page(node)
        page.say("join", userId="somebody")
        await page.until("turn-credentials")
        status, body = await self.get(node, "/metrics")
        text = body.decode()
        self.assertEqual(status, 200)
        for name in (
            "orama_turn_allocations",
            "orama_turn_bytes_total",
            "orama_turn_packets_total",
            "orama_sfu_rooms",
            "orama_sfu_peers",
            "orama_sfu_forwarded_packets_total",
            "orama_sfu_retransmitted_packets_total",
            "orama_signaling_joined",
            "orama_join_seconds_bucket",
            "orama_sfu_first_frame_seconds_bucket",
            "orama_sfu_transit_seconds_bucket",
            "orama_sfu_subscriptions",
            "orama_sfu_bitrate",
            "orama_sfu_estimates",
            "orama_sfu_layer_switches_total",
            "orama_event_loop_lag_seconds_bucket",
        ):
            self.assertRegex(text, rf"(?m)^{name}[{{ ]")
        labels = {part.split("=")[0] for line in text.splitlines() if "{" in line for part in _labels(line)}
        known = {"namespace", "direction", "reason", "le", "code", "kind", "transport", "method", "proto", "outcome"}
        known |= {"state"}
        self.assertLessEqual(labels, known)
        self.assertNotIn("somebody", text)
        self.assertIn('orama_sfu_peers{namespace="default"} 1.0', text)


def _labels(line: str) -> list[str]:
    return line.partition("{")[2].rpartition("}")[0].split(",")


def _threads() -> set[str]:
    """The threads of this process, but for the reactor's own, which resolve names for the clients here."""
    return {thread.name for thread in threading.enumerate() if "twisted.internet.reactor" not in thread.name}


def _descriptors() -> set[str]:
    """What this process has open, but for what trial and the reactor come and go with."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if not target.startswith("/proc/"):
            found.add(target)
    return found
