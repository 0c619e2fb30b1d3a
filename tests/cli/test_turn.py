"""``orama turn sessions`` and ``disconnect``, against a TURN server in memory behind a real control socket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

from attrs import evolve
from twisted.internet.threads import deferToThread

from orama.errors import NotFound
from orama.rest.control import listen_control
from orama.rest.control_turn import turn_resources
from orama.rest.json_resource import JsonResource
from orama.rest.origins import Origins
from orama.rest.site import Site
from orama.settings import Settings
from orama.turn.sessions import Selection, Session, text
from tests.cli.commands import CommandCase
from tests.cli.test_commands import ENVIRONMENT, reactor
from tests.turn.world import MYAPP, PEER, Client, World, code


class TurnOfWorld:
    """The TURN server of a :class:`World`, as a control socket has it."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def sessions(self, selection: Selection) -> list[Session]:
        return list(self.world.server.sessions(selection))

    async def disconnect(self, selection: Selection) -> int:
        return self.world.server.disconnect(selection)


class TurnTests(CommandCase):
    async def setUp(self) -> None:
        await super().setUp()
        self.turn = TurnOfWorld(World(allocations_per_namespace=10000, unauthenticated_rate=0))
        self.turn.world.tenants.put(evolve(MYAPP, relay_ports=(51600, 55599)))
        root = inner = JsonResource(Origins(()))
        for name in (b"v1", b"control", b"turn"):
            child = JsonResource(Origins(()))
            inner.putChild(name, child)
            inner = child
        for name, resource in turn_resources(self.turn, self.require, reactor).items():
            inner.putChild(name, resource)
        port = listen_control(reactor, self.dir, Site(root, Settings(), reactor))
        self.addCleanup(port.stopListening)

    async def require(self, namespace: str) -> None:
        if self.turn.world.tenants.get(namespace) is None:
            raise NotFound("namespace_not_found", f"there is no namespace {namespace}")

    def allocated(self, port: int, user: str = "", **who: Any) -> Client:
        client = self.turn.world.client(port=port, user=user, **who)
        self.assertEqual(code(client.allocate()), 0)
        return client

    async def test_sessions(self) -> None:
        """Sessions are shown with all that they are, in JSON and in a table; of one namespace when it is named."""
        ann = self.allocated(1, "ann")
        ann.bind(0x4000, PEER)
        ann.data(0x4000, b"12345")
        self.allocated(2, "bob", namespace="other")
        answer = await self.data("turn", "sessions")
        self.assertEqual([each["client"] for each in answer["sessions"]], ["203.0.113.9:1", "203.0.113.9:2"])
        answer = await self.data("turn", "sessions", "--namespace", "myapp")
        [session] = answer["sessions"]
        expected = {
            "namespace": "myapp",
            "user": "ann",
            "transport": "udp",
            "relays": [text(ann.relay)],
            "expires_in": 600.0,
            "permissions": 1,
            "channels": 1,
            "bytes_up": 5,
            "packets_up": 1,
            "bytes_down": 0,
            "packets_down": 0,
        }
        self.assertEqual({name: session[name] for name in expected}, expected)
        table = await self.good("turn", "sessions")
        for part in ("ann", "203.0.113.9:1", text(ann.relay), "udp", "2 sessions"):
            self.assertIn(part, table)

    async def test_nobody(self) -> None:
        """A server without sessions is shown as such; a namespace that is not there is a failure."""
        self.assertEqual((await self.data("turn", "sessions"))["sessions"], [])
        self.assertIn("0 sessions", await self.good("turn", "sessions"))
        self.assertIn("nowhere", await self.bad("turn", "sessions", "--namespace", "nowhere"))
        self.assertIn("nowhere", await self.bad("turn", "disconnect", "--namespace", "nowhere"))

    async def test_many(self) -> None:
        """Thousands of sessions come through, each once."""
        for number in range(3000):
            self.allocated(number + 1)
        answer = await self.data("turn", "sessions")
        self.assertEqual(len({session["id"] for session in answer["sessions"]}), 3000)

    async def test_terminal(self) -> None:
        """A name that would drive the terminal is spelled out, in the table and in JSON."""
        self.allocated(1, "\x1b[2J\x9b31m\u202e")
        for arguments in (("turn", "sessions"), ("turn", "sessions", "--json")):
            out = await self.good(*arguments)
            self.assertTrue(out.replace("\n", "").isprintable(), out)
            self.assertIn("x1b[2J" if "--json" not in arguments else "u001b[2J", out)

    async def test_disconnect(self) -> None:
        """Sessions are ended by id, by user, by port, or all of a namespace; whoever was not meant goes on."""
        clients = [
            self.allocated(port, user) for port, user in ((1, "ann"), (2, "ann"), (3, "bob"), (4, "bob"), (5, ""))
        ]
        other = self.allocated(6, "ann", namespace="other")
        [first] = [
            each["id"] for each in (await self.data("turn", "sessions"))["sessions"] if each["client"][-1] == "1"
        ]

        def here() -> list[int]:
            return [client.address[1] for client in (*clients, other) if code(client.refresh()) == 0]

        where = ("turn", "disconnect", "--namespace", "myapp")
        self.assertEqual(await self.data("turn", "disconnect", "--id", first), {"disconnected": 1})
        self.assertEqual(here(), [2, 3, 4, 5, 6])
        self.assertEqual(await self.data(*where, "--user", "ann"), {"disconnected": 1})
        self.assertEqual(here(), [3, 4, 5, 6])
        port = str(clients[2].relay[1])
        await self.bad(*where, "--user", "ann", "--port", port)
        self.assertEqual(await self.data(*where, "--port", port), {"disconnected": 1})
        self.assertEqual(here(), [4, 5, 6])
        self.assertIn("2 sessions", await self.good(*where))
        self.assertEqual(here(), [6])
        self.assertIn("no such session", await self.bad("turn", "disconnect", "--id", first))

    async def test_usage(self) -> None:
        """A disconnect that does not say whom, or says it twice, is not understood."""
        for arguments in ((), ("--id", "a", "--namespace", "b"), ("--id", "a", "--user", "b"), ("--user", "b")):
            result = await self.run_it("turn", "disconnect", *arguments)
            self.assertEqual(result.exit_code, 2, arguments)
        self.assertEqual(len(self.turn.world.server), 0)

    async def test_watch(self) -> None:
        """A watch shows what is there now and what comes, a line a look, until it is interrupted: then it is done."""
        self.allocated(1, "ann")
        watch = await deferToThread(started, "turn", "sessions", "--watch", "--json", "--data-dir", str(self.dir))
        assert watch.stdout is not None
        first = json.loads(await deferToThread(watch.stdout.readline))
        self.allocated(2, "bob")
        second = json.loads(await deferToThread(watch.stdout.readline))
        self.assertEqual([len(look["sessions"]) for look in (first, second)], [1, 2])
        os.kill(watch.pid, signal.SIGINT)
        _, stderr = await deferToThread(watch.communicate)
        self.assertEqual((watch.returncode, stderr), (0, b""))


def started(*arguments: str) -> subprocess.Popen[bytes]:
    """The command line in a process of its own."""
    return subprocess.Popen(
        (sys.executable, "-m", "orama.cli.main", *arguments),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Whoever runs tests in the background may ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
