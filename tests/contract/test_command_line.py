"""Contract, section 7: every command against a running node, as a table and as JSON, with its exit code."""

from __future__ import annotations

import json
import time

import jwt
from twisted.trial.unittest import SynchronousTestCase

from tests.contract import turn
from tests.contract.commands import data, orama, run, temporary
from tests.contract.rest import ask
from tests.contract.stage import directory, end, shared, started, toml
from tests.ports import free_port

ROOMS = "/v1/webrtc/rooms"


class CommandTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = shared()

    def table(self, *arguments: str) -> str:
        done = run(self.node, *arguments)
        self.assertEqual((done.returncode, done.stderr), (0, ""), arguments)
        self.assertFalse(done.stdout.lstrip().startswith("{"))
        return done.stdout

    def refused(self, *arguments: str) -> str:
        """Exit code 1, the reason in one line on stderr, nothing on stdout."""
        done = run(self.node, *arguments)
        self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (1, "", 1), arguments)
        return done.stderr

    def test_namespaces(self) -> None:
        """create, list and delete; a namespace works at once and its keys are worth nothing once it is gone."""
        self.addCleanup(run, self.node, "namespace", "delete", "alpha")
        made = data(self.node, "namespace", "create", "alpha")
        self.assertLessEqual({"name", "created_at"}, set(made))
        key = data(self.node, "namespace", "key", "create", "--namespace", "alpha", "--role", "owner")
        self.assertEqual((key["namespace"], key["role"]), ("alpha", "owner"))
        self.assertRegex(key["api_key"], r"^ak_\S+:alpha$")
        headers = {"X-API-Key": key["api_key"]}
        self.assertEqual(ask(self.node, "POST", ROOMS, {"room_id": "r"}, headers).status, 201)
        listed = data(self.node, "namespace", "list")["namespaces"]
        self.assertIn("alpha", [each["name"] for each in listed])
        self.assertIn("alpha", self.table("namespace", "list"))
        self.refused("namespace", "create", "alpha")
        self.table("namespace", "delete", "alpha")
        self.assertEqual(ask(self.node, "GET", ROOMS, headers=headers).status, 401)
        self.refused("namespace", "delete", "alpha")
        self.refused("namespace", "create", "Not A Name")

    def test_webrtc(self) -> None:
        """enable, disable and webrtc-status."""
        temporary(self, self.node, "beta")
        off = data(self.node, "namespace", "disable", "webrtc", "--namespace", "beta")
        self.assertEqual(set(off), {"status", "namespace", "message"})
        self.assertFalse(data(self.node, "namespace", "webrtc-status", "--namespace", "beta")["desired"]["enabled"])
        self.refused("namespace", "disable", "webrtc", "--namespace", "beta")
        self.assertIn("beta", self.table("namespace", "enable", "webrtc", "--namespace", "beta"))
        self.refused("namespace", "enable", "webrtc", "--namespace", "beta")
        status = data(self.node, "namespace", "webrtc-status", "--namespace", "beta")
        self.assertTrue(status["desired"]["enabled"])
        self.assertEqual([(each["sfu_up"], each["turn_up"]) for each in status["observed"]["nodes"]], [(True, True)])
        self.assertNotIn("secret", json.dumps(status))
        self.assertIn("beta", self.table("namespace", "webrtc-status", "--namespace", "beta"))
        self.refused("namespace", "webrtc-status", "--namespace", "nobody")

    def test_tokens(self) -> None:
        """A token with the claims that were asked for, which the node takes."""
        arguments = ("token", "issue", "--namespace", "default", "--user", "ann")
        made = data(self.node, *arguments, "--role", "owner", "--room", "a", "--room", "b", "--ttl", "60")
        claims = jwt.decode(made["token"], options={"verify_signature": False})
        self.assertEqual((claims["sub"], claims["namespace"], claims["role"]), ("ann", "default", "owner"))
        self.assertEqual(claims["rooms"], ["a", "b"])
        self.assertTrue(50 < claims["exp"] - time.time() <= 60, claims)
        headers = {"Authorization": f"Bearer {made['token']}"}
        self.assertEqual(ask(self.node, "GET", ROOMS, headers=headers).status, 200)
        self.assertIn("ann", self.table(*arguments))
        self.refused("token", "issue", "--namespace", "nobody", "--user", "ann")

    def test_turn(self) -> None:
        """Credentials that make an allocation, and the secret that makes credentials."""
        made = data(self.node, "turn", "credentials", "--namespace", "default")
        self.assertEqual(set(made), {"uris", "username", "password", "ttl"})
        client = turn.of(made)
        self.addCleanup(client.release)
        self.assertEqual(client.allocate().code, 0)
        self.assertIn(made["username"].partition(":")[2], self.table("turn", "credentials", "--namespace", "default"))
        secret = self.table("turn", "secret", "--namespace", "default").strip()
        self.assertEqual(data(self.node, "turn", "secret", "--namespace", "default")["secret"], secret)
        self.assertEqual(turn.password(secret, made["username"]), made["password"])
        self.refused("turn", "credentials", "--namespace", "nobody")
        self.refused("turn", "secret", "--namespace", "nobody")

    def test_nodes(self) -> None:
        """This node is in the list."""
        [node] = data(self.node, "node", "list")["nodes"]
        self.assertEqual(node["public_ip"], "127.0.0.1")
        self.assertIn(node["node_id"], self.table("node", "list"))
        for action in ("drain", "activate", "remove"):
            self.refused("node", action, "nobody")

    def test_monitor(self) -> None:
        """What runs for each namespace on each node."""
        [node] = data(self.node, "monitor", "report")["nodes"]
        found = {each["namespace"]: each for each in node["namespaces"]}
        self.assertEqual((found["default"]["sfu_up"], found["default"]["turn_up"]), (True, True))
        table = self.table("monitor", "report")
        self.assertRegex(table.splitlines()[0], "sfu up +turn up +rooms +participants +allocations")
        self.assertIn(node["node_id"], table)

    def test_inspector(self) -> None:
        """The checks of the contract, all of which a node that is well passes."""
        [node] = data(self.node, "node", "list")["nodes"]
        findings = data(self.node, "inspector", "--namespace", "default")["findings"]
        found = {each["id"]: each for each in findings}
        for check in ("sfu_up", "turn_up", "sfu_coverage", "turn_coverage", "secret", "ports"):
            self.assertEqual(found[f"ns.default.{check}"]["status"], "pass", check)
        self.assertEqual(found["ns.default.sfu_up"]["node"], node["node_id"])
        self.assertEqual(found["ns.default.certificate"]["status"], "warn")
        self.assertIn("self-signed", found["ns.default.certificate"]["message"])
        self.assertIn("ns.default.sfu_up", self.table("inspector"))
        self.refused("inspector", "--namespace", "nobody")

    def test_environment(self) -> None:
        """The nodes of an environment are asked from anywhere that has the key; what is down fails."""
        port = free_port()
        node = started(config=toml(cluster=f"port = {port}"))
        self.addCleanup(end, node)
        file = node.directory / "environments.toml"
        file.write_text(f'[devnet]\nnodes = ["127.0.0.1:{port}"]\nkey = "{node.data}/cluster.key"\n')
        options = ("--env", "devnet", "--environments", str(file))
        [shown] = data(node, "monitor", "report", *options)["nodes"]
        self.assertEqual([each["sfu_up"] for each in shown["namespaces"]], [True])
        self.assertEqual(data(node, "inspector", *options)["counts"]["fail"], 0)
        node.process.kill()
        node.process.wait()
        for command in (("monitor", "report"), ("inspector",)):
            done = run(node, *command, *options, "--json")
            self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1))
            self.assertIn("connection refused", done.stdout)
        self.assertEqual(run(node, "inspector", "--env", "prod", *options[2:]).returncode, 1)

    def test_wrong_usage(self) -> None:
        """Exit code 2, with the reason on stderr and nothing on stdout."""
        for arguments in (
            ("nonsense",),
            ("namespace", "create"),
            ("namespace", "key", "create", "--namespace", "default"),
            ("namespace", "key", "create", "--namespace", "default", "--role", "king"),
            ("namespace", "enable", "telephony", "--namespace", "default"),
            ("token", "issue", "--namespace", "default"),
            ("turn", "secret"),
            ("node", "drain"),
            ("monitor", "nonsense"),
            ("inspector", "--env"),
        ):
            done = run(self.node, *arguments)
            self.assertEqual((done.returncode, done.stdout), (2, ""), arguments)
            self.assertTrue(done.stderr)

    def test_no_node(self) -> None:
        """Where no node runs: exit code 1 and one line."""
        done = orama(directory(), "namespace", "list")
        self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (1, "", 1))

    def test_secret_nowhere_else(self) -> None:
        """The secret is asked for over the control socket alone."""
        for path in ("/v1/control/turn/secret?namespace=default", "/v1/control/namespaces", "/v1/turn/secret"):
            self.assertEqual(ask(self.node, "GET", path).status, 404)
