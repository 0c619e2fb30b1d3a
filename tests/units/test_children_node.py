"""A whole node with ``cluster.runner = "processes"``: the SFU of each namespace is a child of it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests.contract.commands import run
from tests.contract.stage import toml
from tests.interop.caller import Caller, Tone
from tests.node import NodeProcess
from tests.ports import free_port
from tests.units.manager import until
from tests.webhooks.receiver import SECRET, ReceiverThread


def children(node: NodeProcess) -> dict[int, str]:
    """The processes of the node, by number: the namespace that each is the SFU of."""
    found = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children").read_text().split()
    return {int(each): namespace for each in found if (namespace := _namespace(int(each)))}


def _namespace(process: int) -> str:
    try:
        words = Path(f"/proc/{process}/cmdline").read_text().split("\0")
    except OSError:
        return ""
    return words[words.index("--namespace") + 1] if "orama.worker" in words else ""


def media_process(node: NodeProcess, caller: Caller) -> int:
    """The process that has the socket of the SFU to which *caller* sends."""
    [(ip, port)] = set(re.findall(r"a=candidate:\S+ 1 udp \d+ (\S+) (\d+) typ host", caller.told("answer")[-1]["sdp"]))
    local = f"{socket.inet_aton(ip)[::-1].hex().upper()}:{int(port):04X}"
    sockets = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    [inode] = [fields[9] for fields in sockets if fields[1] == local]
    [found] = [each for each in children(node) if f"socket:[{inode}]" in _descriptors(each)]
    return found


def _descriptors(process: int) -> list[str]:
    return [os.readlink(each) for each in Path(f"/proc/{process}/fd").iterdir()]


def gone(process: int) -> bool:
    """Whether it has ended; who has nobody to wait for it may still be listed."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


class ChildrenTests(TestCase):
    timeout = 400

    def started(self, workers: int = 1) -> NodeProcess:
        """A node whose SFU of ``default`` serves, in so many processes."""
        # Its internal address is its own, since every node of a machine has the same ranges of ports.
        internal = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        tables = {"cluster": 'runner = "processes"\nheartbeat = 0.5', "signaling": "drain_deadline = 1.0"}
        self.receiver = ReceiverThread()
        self.addCleanup(self.receiver.close)
        tables["sfu"] = f"workers = {workers}"
        tables["webhooks"] = f'url = "{self.receiver.url}"\nsecret = "{SECRET}"'
        options = "--turn-port", str(free_port()), "--internal-ip", internal, "--http", f"tcp:0:interface={internal}"
        directory = Path(mkdtemp(prefix="orama-"))  # a socket's path has room for 107 bytes
        self.addCleanup(rmtree, directory, ignore_errors=True)
        node = NodeProcess(directory, *options, config=toml(**tables))
        self.addCleanup(node.stop)
        node.start()
        self.assertTrue((node.data / "default.api-key").exists(), "ready, and nobody can have a key")
        until(lambda: self.serves(node, workers), lambda: (self.status(node), node.said(), node.errors))
        return node

    def status(self, node: NodeProcess, namespace: str = "default") -> dict[str, Any]:
        code, body = node.request("GET", "/v1/namespace/webrtc/status")
        self.assertEqual(code, 200, body)
        return dict(json.loads(body)["observed"]["nodes"][0])

    def serves(self, node: NodeProcess, workers: int = 1) -> bool:
        seen = self.status(node)
        return bool(seen["sfu_up"] and seen["turn_up"]) and self.figure(node, "orama_sfu_processes") == workers

    def figure(self, node: NodeProcess, name: str) -> float:
        """Of ``default``, as ``/metrics`` has it: one line."""
        text = node.request("GET", "/metrics")[1].decode()
        [value] = re.findall(rf'^{name}\{{namespace="default"\}} (\S+)$', text, re.M) or ["0"]
        return float(value)

    async def meet(self, *callers: Caller) -> None:
        """Everybody hears everybody."""
        for caller in callers:
            await caller.join()
            caller.connection.addTrack(Tone())
            await caller.publish()
        for caller in callers:
            await caller.until(lambda caller=caller: sum(caller.frames.values()) > 20)

    def test_call(self) -> Deferred[None]:
        """Each namespace has a process; a call goes through it; when it dies its people are sent back in (1012), other
        namespaces hear nothing of it, and it comes again; it ends with its namespace. An application hears of all
        this."""
        return Deferred.fromFuture(asyncio.ensure_future(self._call()))

    async def _call(self) -> None:
        node = await asyncio.to_thread(self.started)
        done = await asyncio.to_thread(run, node, "namespace", "create", "other")
        self.assertEqual(done.returncode, 0, done)
        await asyncio.to_thread(until, lambda: len(children(node)) == 2, lambda: children(node))
        self.assertEqual(sorted(children(node).values()), ["default", "other"])
        before = {namespace: process for process, namespace in children(node).items()}
        callers = Caller(node, "lobby"), Caller(node, "lobby")
        try:
            await self.meet(*callers)
            os.kill(before["default"], signal.SIGKILL)
            for caller in callers:
                await caller.until(lambda caller=caller: caller.client.code is not None)
                self.assertEqual(caller.client.code, 1012)
        finally:
            for caller in callers:
                await caller.close()
        await asyncio.to_thread(until, lambda: len(children(node)) == 2, node.said)
        await asyncio.to_thread(until, lambda: self.serves(node), node.said)
        after = {namespace: process for process, namespace in children(node).items()}
        self.assertNotEqual(after["default"], before["default"])
        self.assertEqual(after["other"], before["other"])
        self.assertTrue(any("the SFU of default was ended by signal 9" in line for line in node.said()))
        again = Caller(node, "lobby"), Caller(node, "lobby")
        try:
            await self.meet(*again)
        finally:
            for caller in again:
                await caller.close()
        done = await asyncio.to_thread(run, node, "namespace", "disable", "webrtc", "--namespace", "other")
        self.assertEqual(done.returncode, 0, done)
        await asyncio.to_thread(until, lambda: list(children(node).values()) == ["default"], node.said)
        self.assertEqual(await asyncio.to_thread(node.stop), 0)
        self.assertTrue(gone(after["default"]))
        told = [(each["event"], each["namespace"]) for each in self.receiver.taken]
        self.assertEqual((told.count(("participant_joined", "default")), told[-1]), (4, ("room_finished", "default")))
        self.assertNotIn("Traceback", node.errors + "\n".join(node.output))

    def test_rooms_apart(self) -> Deferred[None]:
        """Rooms of one namespace are in several processes, which the outside sees as one. When one is killed its people
        meet again in another at once; those of other rooms hear nothing of it, and it comes again."""
        return Deferred.fromFuture(asyncio.ensure_future(self._rooms_apart()))

    async def _rooms_apart(self) -> None:
        node = await asyncio.to_thread(self.started, 2)
        rooms = {room: (Caller(node, room), Caller(node, room)) for room in ("one", "two")}
        again = Caller(node, "one"), Caller(node, "one")
        try:
            for callers in rooms.values():
                await self.meet(*callers)
            places = {room: {media_process(node, caller) for caller in callers} for room, callers in rooms.items()}
            [one], [two] = places["one"], places["two"]
            self.assertEqual({one, two}, set(children(node)))
            await asyncio.to_thread(until, lambda: self.figure(node, "orama_sfu_peers") == 4, node.said)
            _, body = await asyncio.to_thread(node.request, "GET", "/v1/webrtc/rooms")
            found = {room["room_id"]: room["participants"] for room in json.loads(body)["rooms"]}
            self.assertEqual(found, {"one": 2, "two": 2})
            for room in rooms:
                _, body = await asyncio.to_thread(node.request, "GET", f"/v1/webrtc/rooms?room_id={room}&stats=1")
                self.assertEqual(len(json.loads(body)["rooms"][0]["stats"]["peers"]), 2, body)
            os.kill(one, signal.SIGKILL)
            for caller in rooms["one"]:
                await caller.until(lambda caller=caller: caller.client.code is not None)
                self.assertEqual(caller.client.code, 1012)
            await self.meet(*again)
            heard = [sum(caller.frames.values()) for caller in rooms["two"]]
            self.assertEqual({media_process(node, caller) for caller in again}, {two})
            for caller, before in zip(rooms["two"], heard, strict=True):
                await caller.until(lambda caller=caller, before=before: sum(caller.frames.values()) > before + 20)
                self.assertIsNone(caller.client.code)
            await asyncio.to_thread(until, lambda: self.serves(node, 2), node.said)
            code, _ = await asyncio.to_thread(node.request, "DELETE", "/v1/webrtc/rooms?room_id=two")
            self.assertEqual(code, 204)
            for caller in rooms["two"]:
                await caller.until(lambda caller=caller: bool(caller.told("room-closed")))
        finally:
            for caller in (*rooms["one"], *rooms["two"], *again):
                if hasattr(caller, "connection"):
                    await caller.close()
        self.assertEqual(await asyncio.to_thread(node.stop), 0)
        self.assertEqual(list(node.data.glob("sfu-*.sock")), [])
        self.assertNotIn("Traceback", node.errors + "\n".join(node.output))

    def test_node_killed(self) -> None:
        """A node that is killed leaves no process behind."""
        node = self.started()
        [process] = children(node)
        node.process.kill()
        node.wait()
        until(lambda: gone(process), lambda: process)
