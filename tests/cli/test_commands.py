"""The command line against a real control socket, with a real store behind it."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jwt
from click.testing import CliRunner, Result
from twisted.internet import reactor as _reactor
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.filepath import FilePath
from twisted.trial.unittest import TestCase

import orama
from orama.cli.main import main
from orama.cluster.namespaces import Namespaces
from orama.cluster.ports import PortBlocks
from orama.cluster.turn_access import TurnAccess
from orama.errors import StartError, Unavailable
from orama.rest.control import control_site, listen_control
from orama.rest.tokens import Tokens, new_key
from orama.settings import Settings
from orama.store.database import Database
from orama.store.directory import DataDirectory
from orama.store.sealing import Seal
from orama.store.sealing import new_key as new_node_key
from orama.turn.credentials import password

reactor: Any = _reactor

#: For a Python of its own, which finds what we are testing where we found it.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(orama.__file__).parent.parent)}


class ControlTestCase(TestCase):
    """A store, its namespaces and their control socket."""

    timeout = 60

    async def setUp(self) -> None:
        # Unix socket addresses are short, trial's directories are not.
        self.dir = Path(mkdtemp(prefix="orama-cli-"))
        self.addCleanup(FilePath(str(self.dir)).remove)
        settings = Settings(data_dir=self.dir)
        data = DataDirectory(self.dir)
        data.prepare()
        self.addCleanup(data.release)
        database = Database(data.database_url, reactor)
        await database.start()
        self.addCleanup(database.stop)
        ports = PortBlocks(database, settings, "node", "127.0.0.1", reactor, lambda kind, port: True)
        self.namespaces = Namespaces(database, data, Seal(new_node_key()), ports, settings, reactor)
        await self.namespaces.start()
        self.changes: list[tuple[str, bool]] = []
        self.namespaces.changed.append(lambda name, config: self.changes.append((name, config is not None)))
        self.tokens = Tokens(settings.auth, new_key(), reactor)
        self.site = control_site(
            reactor,
            settings,
            self.namespaces,
            self.tokens,
            TurnAccess(settings, self.namespaces, reactor),
            observed=lambda namespace: [{"node_id": "node", "sfu_up": True, "turn_up": False}],
            nodes=lambda: [
                {
                    "node_id": "node",
                    "status": "ready",
                    "public_ip": "127.0.0.1",
                    "internal_ip": "127.0.0.1",
                    "version": "1",
                }
            ],
        )
        port = listen_control(reactor, self.dir, self.site)
        self.addCleanup(port.stopListening)

    async def run_it(self, *arguments: str, data_dir: Path | None = None) -> Result:
        """Run the command in a thread, as the node needs this one."""
        where = ["--data-dir", str(data_dir or self.dir)]
        result: Result = await deferToThread(CliRunner().invoke, main, [*arguments, *where])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    async def good(self, *arguments: str) -> str:
        result = await self.run_it(*arguments)
        self.assertEqual((result.exit_code, result.stderr), (0, ""))
        return result.stdout

    async def data(self, *arguments: str) -> Any:
        return json.loads(await self.good(*arguments, "--json"))

    async def bad(self, *arguments: str, data_dir: Path | None = None) -> str:
        """One line on stderr, nothing on stdout, exit code 1."""
        result = await self.run_it(*arguments, data_dir=data_dir)
        self.assertEqual((result.exit_code, result.stdout), (1, ""))
        self.assertEqual(result.stderr.count("\n"), 1)
        self.assertTrue(result.stderr.startswith("orama: "))
        return result.stderr


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
        self.assertEqual(self.changes, [("alpha", True), ("alpha", False)])

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
        self.assertIn("enabled", await self.bad("namespace", "enable", *about))
        self.assertEqual(
            await self.data("namespace", "disable", *about),
            {"status": "ok", "namespace": "default", "message": "WebRTC is disabled"},
        )
        self.assertIn("not enabled", await self.bad("namespace", "disable", *about))
        self.assertEqual(await self.good("namespace", "enable", *about), "WebRTC is enabled in default\n")
        self.assertEqual(self.changes, [("default", False), ("default", True)])
        self.assertIn("no such namespace", await self.bad("namespace", "enable", "webrtc", "--namespace", "bèta"))

    async def test_status(self) -> None:
        """What is wanted and what runs, and never the secret."""
        status = await self.data("namespace", "webrtc-status", "--namespace", "default")
        self.assertEqual(status["namespace"], "default")
        self.assertTrue(status["desired"]["enabled"])
        self.assertEqual(status["observed"], {"nodes": [{"node_id": "node", "sfu_up": True, "turn_up": False}]})
        table = await self.good("namespace", "webrtc-status", "--namespace", "default")
        self.assertRegex(table, r"enabled +yes")
        self.assertRegex(table, r"node +yes +no")
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

        def fail(name: str, config: object) -> None:
            raise Unavailable("port_in_use", "port 20000 is in use")

        self.namespaces.changed.append(fail)
        line = await self.bad("namespace", "create", "alpha")
        self.assertEqual(line, "orama: port 20000 is in use\n")
        self.assertEqual([each.name for each in await self.namespaces.list()], ["default"])
        self.flushLoggedErrors(Unavailable)

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
