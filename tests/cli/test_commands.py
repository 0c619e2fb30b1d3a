"""The command line against a real control socket, with a real store behind it."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jwt
from twisted.internet import reactor as _reactor
from twisted.internet.utils import getProcessOutputAndValue

import orama
from orama.cluster.enablement import Enablement, Progress
from orama.cluster.keyring import Keyring
from orama.cluster.namespaces import Namespaces
from orama.cluster.nodes import NodeRecord, NodeRegistry
from orama.cluster.placement import Role
from orama.cluster.ports import PortBlocks
from orama.cluster.rotation import Rotation
from orama.cluster.turn_access import TurnAccess
from orama.errors import NotFound, OramaError, StartError, Unavailable
from orama.rest.control import ControlCalls, control_site, listen_control
from orama.rest.tokens import Tokens, new_key
from orama.settings import Settings
from orama.store.database import Database
from orama.store.directory import DataDirectory
from orama.store.sealing import Seal
from orama.store.sealing import new_key as new_node_key
from orama.turn.credentials import password
from tests.cli.commands import CommandCase

reactor: Any = _reactor

#: For a Python of its own, which finds what we are testing where we found it.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(orama.__file__).parent.parent)}


class AtOnce:
    """Nodes that do at once what is wanted of them.

    :ivar failing: why they cannot, when they cannot.
    """

    def __init__(self) -> None:
        self.failing: OramaError | None = None
        self.changes: list[tuple[str, bool]] = []
        self.stopped: Callable[[str], Awaitable[None]]

    async def up(self, namespace: str, roles: Collection[Role], progress: Progress) -> None:
        progress("up", "waiting", "SFU and TURN on node")
        if self.failing is not None:
            raise self.failing
        progress("up", "done", "SFU and TURN run on node")
        self.changes.append((namespace, True))

    async def down(self, namespace: str, roles: Collection[Role], progress: Progress) -> None:
        await self.stopped(namespace)
        progress("down", "done", "SFU and TURN have stopped on node")
        self.changes.append((namespace, False))


class ControlTestCase(CommandCase):
    """A store, its namespaces and their control socket."""

    async def setUp(self) -> None:
        await super().setUp()
        settings = Settings(data_dir=self.dir)
        data = DataDirectory(self.dir)
        data.prepare()
        self.addCleanup(data.release)
        database = Database(data.database_url, reactor)
        await database.start()
        self.addCleanup(database.stop)
        ports = PortBlocks(database, settings, "node", "127.0.0.1", reactor, lambda kind, port: True)
        registry = NodeRegistry(database, "node", reactor, settings.cluster.heartbeat)
        await registry.join(NodeRecord("node", "127.0.0.1", 6002, "127.0.0.1", "127.0.0.1", "", 3478, 5349, "1"))
        self.nodes, seal = AtOnce(), Seal([new_node_key()])
        enablement = Enablement(database, seal, registry, ports, settings, reactor, self.nodes, self.ready)
        self.nodes.stopped = enablement.stopped
        self.namespaces = Namespaces(database, data, seal, registry, enablement, settings, reactor)
        await self.namespaces.start()
        self.nodes.changes.clear()
        self.tokens = Tokens(settings.auth, new_key(), reactor)
        self.site = control_site(
            reactor,
            settings,
            self.namespaces,
            self.tokens,
            TurnAccess(settings, self.namespaces, reactor),
            observed=self.observed,
            calls=ControlCalls(
                self.listed, self.drained, self.removed, self.reported, Keyring.keep(self.dir / "key"), self.rotated
            ),
        )
        port = listen_control(reactor, self.dir, self.site)
        self.addCleanup(port.stopListening)

    async def ready(self, progress: Progress) -> None:
        """All that WebRTC needs is there."""

    async def observed(self, namespace: str) -> Iterable[Mapping[str, Any]]:
        return [
            {
                "node_id": "node",
                "state": "active",
                "roles": ["sfu", "turn"],
                "sfu_up": True,
                "turn_up": False,
                "rooms": 1,
                "participants": 2,
                "error": "port 3478 is in use",
            }
        ]

    async def listed(self) -> Iterable[Mapping[str, Any]]:
        node = {"node_id": "node", "status": "ready", "public_ip": "127.0.0.1", "internal_ip": "127.0.0.1"}
        return [{**node, "version": "1"}]

    async def drained(self, node_id: str, draining: bool) -> Mapping[str, Any]:
        raise NotFound("node_not_found", "there is no such node")

    async def removed(self, node_id: str, force: bool) -> None:
        raise NotFound("node_not_found", "there is no such node")

    async def reported(self) -> Mapping[str, Any]:
        return {"nodes": []}

    async def rotated(self) -> Rotation:
        raise NotFound("node_not_found", "there is no other node")


class NamespaceTests(ControlTestCase):
    async def test_create_list_delete(self) -> None:
        """A namespace is made with WebRTC in it, listed, and deleted; the running parts are told."""
        made = await self.data("namespace", "create", "alpha")
        self.assertEqual(set(made), {"name", "created_at", "webrtc"})
        self.assertEqual((made["name"], made["webrtc"]), ("alpha", True))
        listed = await self.data("namespace", "list")
        self.assertEqual([each["name"] for each in listed["namespaces"]], ["alpha", "default"])
        self.assertEqual(await self.data("namespace", "delete", "alpha"), {"name": "alpha", "deleted": True})
        listed = await self.data("namespace", "list")
        self.assertEqual([each["name"] for each in listed["namespaces"]], ["default"])
        self.assertEqual(self.nodes.changes, [("alpha", True), ("alpha", False)])

    async def test_tables(self) -> None:
        """Without ``--json`` there are tables."""
        made = await self.good("namespace", "create", "alpha")
        self.assertRegex(made, r"name +alpha")
        listed = await self.good("namespace", "list")
        self.assertRegex(listed.splitlines()[0], r"name +webrtc +created at")
        self.assertRegex(listed, r"alpha +yes +20\d\d-")
        self.assertEqual(await self.good("namespace", "delete", "alpha"), "namespace alpha is deleted\n")

    async def test_refusals(self) -> None:
        """What the node refuses is one line that says why."""
        self.assertIn("1 to 63", await self.bad("namespace", "create", "No Good"))
        await self.good("namespace", "create", "alpha")
        self.assertIn("there is a namespace", await self.bad("namespace", "create", "alpha"))
        self.assertIn("no such namespace", await self.bad("namespace", "delete", "beta"))

    async def test_keys(self) -> None:
        """A key works at once, with its role, and is shown whole."""
        for role in ("owner", "member"):
            made = await self.data("namespace", "key", "create", "--namespace", "default", "--role", role)
            self.assertEqual(set(made), {"namespace", "role", "api_key"})
            self.assertEqual(await self.namespaces.role_of(made["api_key"]), ("default", role))
        table = await self.good("namespace", "key", "create", "--namespace", "default", "--role", "owner")
        self.assertRegex(table, r"api key +ak_\w{44}:default\n")
        self.assertIn(
            "no such namespace", await self.bad("namespace", "key", "create", "--namespace", "beta", "--role", "owner")
        )

    async def test_enable_and_disable(self) -> None:
        """WebRTC is switched on and off, and doing it twice fails."""
        about = ("webrtc", "--namespace", "default")
        self.assertEqual(
            await self.data("namespace", "disable", *about),
            {"status": "ok", "namespace": "default", "message": "WebRTC is disabled"},
        )
        self.assertIn("not enabled", await self.bad("namespace", "disable", *about))
        enabled = await self.good("namespace", "enable", *about)
        self.assertEqual(enabled.splitlines()[-1], "WebRTC is enabled in default")
        self.assertIn("enabled", await self.bad("namespace", "enable", *about))
        self.assertEqual(self.nodes.changes, [("default", False), ("default", True)])
        self.assertIn("no such namespace", await self.bad("namespace", "enable", "webrtc", "--namespace", "bèta"))

    async def test_steps(self) -> None:
        """Each step is a line before the answer; with JSON there is the answer alone."""
        about = ("webrtc", "--namespace", "default")
        lines = (await self.good("namespace", "disable", *about)).splitlines()
        self.assertEqual(lines[-2:], ["done     SFU and TURN have stopped on node", "WebRTC is disabled in default"])
        lines = (await self.good("namespace", "enable", *about)).splitlines()
        self.assertEqual(lines[-3:-1], ["waiting  SFU and TURN on node", "done     SFU and TURN run on node"])
        self.assertEqual(set(await self.data("namespace", "disable", *about)), {"status", "namespace", "message"})

    async def test_failing_step(self) -> None:
        """What fails on the way is the reason and nothing else, and is taken back."""
        about = ("webrtc", "--namespace", "default")
        await self.good("namespace", "disable", *about)
        self.nodes.failing = Unavailable("port_in_use", "port 20000 is in use on node")
        self.assertEqual(await self.bad("namespace", "enable", *about), "orama: port 20000 is in use on node\n")
        self.assertFalse((await self.namespaces.status("default")).enabled)

    async def test_status(self) -> None:
        """What is wanted and what runs on each node, and never the secret."""
        status = await self.data("namespace", "webrtc-status", "--namespace", "default")
        self.assertEqual(status["namespace"], "default")
        self.assertTrue(status["desired"]["enabled"])
        self.assertEqual(status["observed"]["nodes"], list(await self.observed("default")))
        table = await self.good("namespace", "webrtc-status", "--namespace", "default")
        self.assertRegex(table, r"enabled +yes")
        self.assertRegex(table, r"sfu nodes up +1 of 1")
        self.assertRegex(table, r"turn nodes up +0 of 1")
        self.assertRegex(table, r"node +active +sfu, turn +yes +no +1 +2 +port 3478 is in use")
        secret = (await self.namespaces.config("default")).turn_secret
        self.assertNotIn(secret, json.dumps(status) + table)


class TokenTests(ControlTestCase):
    async def test_defaults(self) -> None:
        """A member's token for every room, for an hour."""
        made = await self.data("token", "issue", "--namespace", "default", "--user", "ann")
        self.assertEqual(set(made), {"token", "namespace", "user_id", "role", "rooms", "permissions", "expires_at"})
        claims = self.tokens.verify(made["token"])
        self.assertEqual((claims.sub, claims.namespace, claims.role, claims.rooms), ("ann", "default", "member", None))
        self.assertLess(abs(claims.expires - reactor.seconds() - 3600), 60)

    async def test_every_option(self) -> None:
        """Role, rooms, permissions and ttl are claims of the token."""
        rights = ("--permission", "subscribe", "--permission", "data", "--role", "owner")
        rooms = ("--room", "a", "--room", "b")
        issue = ("token", "issue", "--namespace", "default", "--user", "ann")
        made = await self.data(*issue, *rights, *rooms, "--ttl", "60")
        claims = self.tokens.verify(made["token"])
        self.assertEqual(claims.role, "owner")
        self.assertEqual(claims.rooms, {"a", "b"})
        self.assertEqual(claims.permissions, {"subscribe", "data"})
        self.assertEqual((made["rooms"], made["permissions"]), (["a", "b"], ["subscribe", "data"]))
        self.assertLess(abs(claims.expires - reactor.seconds() - 60), 10)

    async def test_a_token_is_one_piece(self) -> None:
        """The table does not break or cut the token, however narrow the terminal."""
        table = await self.good("token", "issue", "--namespace", "default", "--user", "u" * 200)
        token = next(line.split()[-1] for line in table.splitlines() if line.startswith("token"))
        self.assertEqual(jwt.decode(token, options={"verify_signature": False})["sub"], "u" * 200)

    async def test_refusals(self) -> None:
        """A life that is too long, a room that cannot be, a namespace that is not there: one line each."""
        issue = ("token", "issue", "--user", "ann", "--namespace")
        self.assertIn("86400", await self.bad(*issue, "default", "--ttl", "86401"))
        self.assertIn("rooms", await self.bad(*issue, "default", "--room", "a b"))
        self.assertIn("no such namespace", await self.bad(*issue, "beta"))


class TurnTests(ControlTestCase):
    async def test_secret_makes_the_credentials(self) -> None:
        """The password of the credentials is what the secret gives for their username."""
        secret = (await self.good("turn", "secret", "--namespace", "default")).strip()
        made = await self.data("turn", "credentials", "--namespace", "default", "--user", "ann")
        self.assertEqual(set(made), {"uris", "username", "password", "ttl"})
        self.assertEqual(made["password"], password(secret, made["username"]))
        self.assertTrue(made["username"].endswith(":default:ann"))
        self.assertEqual(made["ttl"], 600)
        self.assertEqual(len(made["uris"]), 3)
        self.assertEqual(
            await self.data("turn", "secret", "--namespace", "default"), {"namespace": "default", "secret": secret}
        )

    async def test_table(self) -> None:
        """Each URI has its line."""
        table = await self.good("turn", "credentials", "--namespace", "default")
        self.assertEqual(table.count("turn:"), 2)
        self.assertEqual(table.count("turns:"), 1)

    async def test_without_webrtc(self) -> None:
        """There are no credentials where there is no WebRTC."""
        await self.good("namespace", "disable", "webrtc", "--namespace", "default")
        self.assertIn("not enabled", await self.bad("turn", "credentials", "--namespace", "default"))
        self.assertIn("not enabled", await self.bad("turn", "secret", "--namespace", "default"))
        self.assertIn("no such namespace", await self.bad("turn", "secret", "--namespace", "beta"))


class NodeTests(ControlTestCase):
    async def test_list(self) -> None:
        """The nodes, and how they are."""
        listed = await self.data("node", "list")
        self.assertEqual(set(listed["nodes"][0]), {"node_id", "status", "public_ip", "internal_ip", "version"})
        self.assertRegex(await self.good("node", "list"), r"node +ready +127\.0\.0\.1")


class ExitTests(ControlTestCase):
    """0 done, 1 failed, 2 wrong usage."""

    async def test_wrong_usage(self) -> None:
        """What cannot be understood is 2, before the node is asked."""
        for arguments in (
            ("namespace", "create"),
            ("namespace", "key", "create", "--namespace", "default", "--role", "king"),
            ("namespace", "enable", "email", "--namespace", "default"),
            ("namespace", "webrtc-status"),
            ("token", "issue", "--namespace", "default"),
            ("token", "issue", "--namespace", "default", "--user", "u", "--ttl", "0"),
            ("token", "issue", "--namespace", "default", "--user", "u", "--permission", "fly"),
            ("turn", "nonsense"),
            ("nonsense",),
        ):
            result = await self.run_it(*arguments)
            self.assertEqual((result.exit_code, result.stdout), (2, ""), arguments)
            self.assertIn("Error", result.stderr)

    async def test_no_node(self) -> None:
        """Nobody answers: the line says where nobody is, and how to start one."""
        empty = self.dir / "empty"
        line = await self.bad("namespace", "list", data_dir=empty)
        self.assertEqual(
            line,
            f"orama: no node is running with data directory {empty}; "
            f"start one with: twistd -n orama-webrtc --data-dir {empty}\n",
        )

    async def test_dead_socket(self) -> None:
        """A socket that a dead node has left is no node."""
        empty = self.dir / "dead"
        empty.mkdir()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(empty / "control.sock"))
        self.assertIn("no node is running", await self.bad("node", "list", data_dir=empty))

    async def test_node_that_cannot(self) -> None:
        """A failure of the node is 1 with its text; nothing of a traceback."""

        self.nodes.failing = Unavailable("port_in_use", "port 20000 is in use")
        line = await self.bad("namespace", "create", "alpha")
        self.assertEqual(line, "orama: port 20000 is in use\n")
        self.assertEqual([each.name for each in await self.namespaces.list()], ["default"])

    async def test_program(self) -> None:
        """The installed program does the same, quickly enough to be used in a loop."""
        arguments = ("-m", "orama.cli.main", "namespace", "list", "--json", "--data-dir", str(self.dir))
        out, err, code = await getProcessOutputAndValue(sys.executable, arguments, env=ENVIRONMENT)
        self.assertEqual((err, code), (b"", 0))
        self.assertEqual(json.loads(out)["namespaces"][0]["name"], "default")

    async def test_nothing_heavy_is_imported(self) -> None:
        """Starting does not load Twisted, SQLAlchemy or a table renderer."""
        program = (
            "import sys, orama.cli.main; print([m for m in ('twisted', 'sqlalchemy', 'rich') if m in sys.modules])"
        )
        out, _, code = await getProcessOutputAndValue(sys.executable, ("-c", program), env=ENVIRONMENT)
        self.assertEqual((out, code), (b"[]\n", 0))


class SocketTests(ControlTestCase):
    async def test_mode(self) -> None:
        """Only the user that runs the node can open it."""
        status = (self.dir / "control.sock").stat()
        self.assertTrue(stat.S_ISSOCK(status.st_mode))
        self.assertEqual(stat.S_IMODE(status.st_mode), 0o600)

    async def test_left_behind(self) -> None:
        """The socket of a node that died is in nobody's way."""
        with socket.socket(socket.AF_UNIX) as dead:
            (self.dir / "again").mkdir()
            dead.bind(str(self.dir / "again" / "control.sock"))
        port = listen_control(reactor, self.dir / "again", self.site)
        result = await self.run_it("node", "list", data_dir=self.dir / "again")
        self.assertEqual(result.exit_code, 0)
        await port.stopListening()
        self.assertFalse((self.dir / "again" / "control.sock").exists())

    def test_cannot_be_bound(self) -> None:
        """A directory that takes no socket is one line, which names it."""
        for directory in (self.dir / ("x" * 120), self.dir / "missing"):
            with self.assertRaises(StartError) as caught:
                listen_control(reactor, directory, self.site)
            self.assertIn(str(directory / "control.sock"), caught.exception.message)
            self.assertNotIn("\n", caught.exception.message)
