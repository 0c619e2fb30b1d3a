"""Contract, section 7, of a cluster: what the commands say of it from any node and from a machine beside it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.contract import turn
from tests.contract.cluster import CREDENTIALS, ROOMS, ClusterTestCase, until


class CommandsTestCase(ClusterTestCase):
    def run_with(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command about ``devnet``, of somebody who has the cluster key and no node."""
        environments = str(self.cluster.environment())
        return self.nodes[0].orama(*arguments, "--env", "devnet", "--environments", environments)

    def inspected(self, *arguments: str) -> tuple[int, dict[tuple[str, str], str]]:
        """Exit code and findings of the inspector: (id, node) → status."""
        done = self.run_with("inspector", "--json", *arguments)
        answer = json.loads(done.stdout)
        self.assertEqual(answer.keys(), {"environment", "checked_at", "counts", "findings"})
        self.assertEqual(answer["environment"], "devnet")
        return done.returncode, {(each["id"], each["node"] or ""): each["status"] for each in answer["findings"]}

    def reported(self) -> list[dict[str, Any]]:
        done = self.run_with("monitor", "report", "--json")
        self.assertEqual(done.returncode, 0, done)
        nodes: list[dict[str, Any]] = json.loads(done.stdout)["nodes"]
        return nodes


class NamespaceTests(CommandsTestCase):
    def test_enable_and_disable(self) -> None:
        """``enable`` and ``disable`` work from any node, show their steps, and come back when it is so on all."""
        name, key = self.namespace(enabled=False)
        first, second, third = self.nodes
        done = first.orama("namespace", "webrtc-status", "--namespace", name)
        self.assertEqual(done.returncode, 0)
        self.assertRegex(done.stdout, r"(?m)^enabled +no *$")
        done = second.orama("namespace", "enable", "webrtc", "--namespace", name)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done)
        self.assertGreater(len(done.stdout.splitlines()), 3)
        self.assertEqual(self.cluster.serving(key), (3, 2))
        again = third.orama("namespace", "enable", "webrtc", "--namespace", name)
        self.assertEqual((again.returncode, again.stdout), (1, ""))
        self.assertIn("enabled", again.stderr)
        seen = [node.told("namespace", "webrtc-status", "--namespace", name) for node in (first, third)]
        for each in seen:
            self.assertTrue(each["enabled"])
            self.assertEqual(sum(node["sfu_up"] for node in each["observed"]["nodes"]), 3)
            self.assertEqual(sum(node["turn_up"] for node in each["observed"]["nodes"]), 2)
        answer = third.told("namespace", "disable", "webrtc", "--namespace", name)
        self.assertEqual(answer.keys(), {"status", "namespace", "message"})
        self.assertEqual(self.cluster.serving(key), (0, 0))
        done = first.orama("namespace", "disable", "webrtc", "--namespace", name)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertNotIn("Traceback", done.stderr)

    def test_wrong_usage(self) -> None:
        """2 for what is no command or lacks its namespace, 1 with one line for a namespace that is not there."""
        node = self.nodes[1]
        for arguments in (
            ("namespace", "enable", "webrtc"),
            ("namespace", "enable", "video", "--namespace", "default"),
        ):
            self.assertEqual(node.orama(*arguments).returncode, 2, arguments)
        for command in ("enable", "disable"):
            done = node.orama("namespace", command, "webrtc", "--namespace", "nobodys")
            self.assertEqual((done.returncode, done.stdout, len(done.stderr.splitlines())), (1, "", 1), done)

    def test_same_everywhere(self) -> None:
        """What is made by the command of one node is there on all: namespaces, keys, secrets, credentials."""
        name, key = self.namespace(enabled=False)
        for node in self.nodes:
            self.assertIn(name, [each["name"] for each in node.told("namespace", "list")["namespaces"]])
            self.assertEqual(node.ask("POST", CREDENTIALS, key).code, "webrtc_not_enabled")
        secrets = {node.told("turn", "secret", "--namespace", "default")["secret"] for node in self.nodes}
        self.assertEqual(len(secrets), 1)
        given = self.nodes[2].told("turn", "credentials", "--namespace", "default")
        self.assertEqual(given["uris"], self.credentials(self.cluster.key)["uris"])
        self.assertEqual(given["password"], turn.password(secrets.pop(), given["username"]))


class NodeTests(CommandsTestCase):
    def test_list(self) -> None:
        """``orama node list`` says the same on each node: addresses, state, capacity."""
        for node in self.nodes[:2]:
            listed = node.told("node", "list")["nodes"]
            self.assertEqual({each["node_id"] for each in listed}, {node.node_id for node in self.nodes})
            for each in listed:
                self.assertEqual(
                    each.keys(),
                    {"node_id", "status", "state", "alive", "public_ip", "internal_ip", "version", "cpus", "load",
                     "memory_mb", "memory_free_mb", "namespaces", "streams"},
                )  # fmt: skip
                there = self.cluster.by_id(each["node_id"])
                self.assertEqual((each["public_ip"], each["internal_ip"]), (there.public, there.internal))
                self.assertEqual((each["status"], each["state"], each["alive"]), ("ready", "active", True))
        table = self.nodes[2].orama("node", "list").stdout
        self.assertTrue(all(node.node_id in table and node.public in table for node in self.nodes), table)

    def test_refused(self) -> None:
        """Unknown nodes, and the removal of one that is alive, are refused with 1 and one line."""
        for arguments in (
            ("remove", self.nodes[1].node_id),
            ("drain", "nobody"),
            ("activate", "nobody"),
            ("remove", "x"),
        ):
            done = self.nodes[0].orama("node", *arguments)
            self.assertEqual((done.returncode, done.stdout, len(done.stderr.splitlines())), (1, "", 1), done)


class ReportTests(CommandsTestCase):
    def test_report(self) -> None:
        """``monitor report --env`` asks every node and has ``sfu_up`` and ``turn_up`` for each namespace of each."""
        nodes = self.reported()
        self.assertEqual({each["node_id"] for each in nodes}, {node.node_id for node in self.nodes})
        seen = []
        for each in nodes:
            self.assertEqual((each["reachable"], each["error"], each["ready"]), (True, None, ""), each)
            (mine,) = [entry for entry in each["namespaces"] if entry["namespace"] == "default"]
            seen.append((mine["sfu_up"], mine["turn_up"]))
        self.assertEqual(sorted(seen), [(True, False), (True, True), (True, True)])
        table = self.run_with("monitor", "report")
        self.assertEqual(table.returncode, 0)
        self.assertIn("default", table.stdout)

    def test_inspector(self) -> None:
        """``inspector --env`` passes on a whole cluster, with the checks of the contract for each node."""
        code, findings = self.inspected("--namespace", "default")
        self.assertEqual({key: status for key, status in findings.items() if status == "fail"}, {})
        self.assertEqual(code, 0)
        for check in ("sfu_coverage", "turn_coverage", "secret", "agreement"):
            self.assertEqual(findings[f"ns.default.{check}", ""], "pass", check)
        turns = {node.node_id for node in self.cluster.turns(self.cluster.key)}
        self.assertEqual({node for check, node in findings if check == "ns.default.turn_up"}, turns)
        self.assertEqual(
            {node for check, node in findings if check == "ns.default.sfu_up"}, {node.node_id for node in self.nodes}
        )
        code, findings = self.inspected("--only", "ns.default.*_coverage")
        self.assertEqual(
            (code, {check for check, _ in findings}), (0, {"ns.default.sfu_coverage", "ns.default.turn_coverage"})
        )

    def test_wrong_environment(self) -> None:
        """1 for an environment that is not there, a key that others can read, and a key that is not the cluster's."""
        environments = self.cluster.environment()
        node = self.nodes[0]
        arguments = ("--environments", str(environments))
        missing = node.orama("inspector", "--env", "mainnet", *arguments)
        self.assertEqual(missing.returncode, 1)
        self.assertIn("mainnet", missing.stderr)
        copied = self.cluster.home / "operator.key"
        copied.chmod(0o644)
        done = node.orama("monitor", "report", "--env", "devnet", *arguments)
        self.assertEqual(done.returncode, 1)
        self.cluster.environment("A" * 43 + "=")
        done = node.orama("monitor", "report", "--env", "devnet", *arguments)
        self.assertEqual(done.returncode, 1, done)
        self.assertNotIn("AAAA", done.stdout + done.stderr)
        done = node.orama("inspector", "--env", "devnet", *arguments)
        self.assertEqual(done.returncode, 1, done)


class RotationTests(CommandsTestCase):
    def test_cluster_key(self) -> None:
        """Another cluster key: the same on all nodes, the old one is good for nothing, and nothing else has changed."""
        first, second, third = self.nodes
        before, old = (
            first.told("cluster", "key", "show-fingerprint")["current"],
            (first.data / "cluster.key").read_text(),
        )
        secret = first.told("turn", "secret", "--namespace", "default")["secret"]
        answer = second.told("cluster", "key", "rotate")
        self.assertNotEqual(answer["current"], before)
        for node in self.nodes:
            shown = node.told("cluster", "key", "show-fingerprint")
            self.assertEqual((shown["current"], len(shown["keys"])), (answer["current"], 1))
            path = "/v1/internal/report"
            self.assertEqual(node.inside("GET", path, node.signed("GET", path, key=old)).code, "bad_signature")
            self.assertEqual(node.inside("GET", path, node.signed("GET", path)).status, 200)
        self.assertEqual(third.told("turn", "secret", "--namespace", "default")["secret"], secret)
        self.assertEqual(self.cluster.serving(self.cluster.key), (3, 2))
        self.assertEqual(first.ask("GET", ROOMS, self.cluster.key).status, 200)

    def test_turn_secret(self) -> None:
        """Another TURN secret: new credentials of all nodes are made with it, those of the one before stay good."""
        _, key = self.namespace()
        name = key.rpartition(":")[2]
        old = self.credentials(key)
        secret = self.nodes[0].told("turn", "secret", "--namespace", name)["secret"]
        self.assertEqual(self.nodes[1].told("turn", "secret", "rotate", "--namespace", name)["namespace"], name)
        fresh = self.nodes[2].told("turn", "secret", "--namespace", name)["secret"]
        self.assertNotEqual(fresh, secret)
        for giver in self.nodes:
            given = self.credentials(key, giver)
            self.assertEqual(given["password"], turn.password(fresh, given["username"]))
        for node in self.cluster.turns(key):
            until(f"{node.public} takes the new secret", lambda node=node: self.accepted(node, self.credentials(key)))  # type: ignore[misc]
            self.assertTrue(self.accepted(node, old))
            self.assertFalse(self.accepted(node, {**old, "password": turn.password("wrong", old["username"])}))

    def accepted(self, node: Any, credentials: Any) -> bool:
        client = node.turn(credentials)
        try:
            return bool(client.allocate().code == 0)
        finally:
            client.release()
