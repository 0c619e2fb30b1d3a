"""A whole node with ``cluster.runner = "processes"``: the SFU of each namespace is a child of it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
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


def gone(process: int) -> bool:
    """Whether it has ended; who has nobody to wait for it may still be listed."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


class ChildrenTests(TestCase):
    timeout = 90

    def started(self) -> NodeProcess:
        """A node whose SFU of ``default`` serves."""
        # Its internal address is its own, since every node of a machine has the same ranges of ports.
        internal = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        tables = {"cluster": 'runner = "processes"\nheartbeat = 0.5', "signaling": "drain_deadline = 1.0"}
        self.receiver = ReceiverThread()
        self.addCleanup(self.receiver.close)
        tables["webhooks"] = f'url = "{self.receiver.url}"\nsecret = "{SECRET}"'
        options = "--turn-port", str(free_port()), "--internal-ip", internal
        directory = Path(mkdtemp(prefix="orama-"))  # a socket's path has room for 107 bytes
        self.addCleanup(rmtree, directory, ignore_errors=True)
        node = NodeProcess(directory, *options, config=toml(**tables))
        self.addCleanup(node.stop)
        node.start()
        node.wait_for("the owner key of default is in")
        until(lambda: self.serves(node), lambda: (self.status(node), node.said(), node.errors))
        return node

    def status(self, node: NodeProcess, namespace: str = "default") -> dict[str, Any]:
        code, body = node.request("GET", "/v1/namespace/webrtc/status")
        self.assertEqual(code, 200, body)
        return dict(json.loads(body)["observed"]["nodes"][0])

    def serves(self, node: NodeProcess) -> bool:
        seen = self.status(node)
        return bool(seen["sfu_up"] and seen["turn_up"])

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

    def test_node_killed(self) -> None:
        """A node that is killed leaves no process behind."""
        node = self.started()
        [process] = children(node)
        node.process.kill()
        node.wait()
        until(lambda: gone(process), lambda: process)
