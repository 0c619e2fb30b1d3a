"""What becomes of a cluster when a node, the database or Olric goes, as somebody sees it who was in a room."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

from twisted.trial.unittest import SkipTest

from tests.contract import turn
from tests.contract.cluster import (
    CREDENTIALS,
    DISABLE,
    ENABLE,
    HEARTBEAT,
    ROOMS,
    SLACK,
    STATUS,
    ClusterTestCase,
    Node,
    mode,
    until,
)
from tests.contract.signalling import Client, connect, join
from tests.contract.test_cluster_commands import CommandsTestCase
from tests.rqlite import RqliteServer


class KilledTests(CommandsTestCase):
    """``kill -9`` of a node that has a room, the SFU and TURN."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.cluster.settle)
        self.key = self.cluster.key

    def join(self, node: Node, room: str, **fields: Any) -> Client:
        client = join(node, room, self.key, **fields)
        self.addCleanup(client.close)
        return client

    def test_room(self) -> None:
        """Whoever came by another gateway is sent away, and the next who joins gets the room elsewhere, within 5 s."""
        owner, *others = self.nodes
        room = "killed"
        here, through = self.join(owner, room), self.join(others[0], room)
        here.until("peer-joined")
        self.assertIs(self.cluster.owner(room, self.key), owner)
        began = time.monotonic()
        owner.kill()
        self.assertEqual((here.until_closed(), through.until_closed()), (1006, 1012))
        again = [self.join(node, room, userId=node.public) for node in others]
        took = time.monotonic() - began
        self.assertEqual(again[0].until("peer-joined")["userId"], others[1].public)
        self.assertLess(took, 5.0 + SLACK)
        print(f"the room is elsewhere {took:.2f} s after its node was killed")
        rooms = others[0].ask("GET", ROOMS, self.key).json["rooms"]
        (heir,) = (each["node_id"] for each in rooms if each["room_id"] == room)
        self.assertIn(heir, [node.node_id for node in others])

    def test_names_and_checks(self) -> None:
        """Its names go within two heartbeats, the inspector fails, nothing can be enabled; then its roles move.

        Back again it does what it did before, without anybody's help, and its names are there again.
        """
        node = next(each for each in self.cluster.turns(self.key) if each is not self.nodes[0])
        others = [each for each in self.nodes if each is not node]
        _, idle = self.namespace(enabled=False)
        environments = str(self.cluster.environment())
        node.kill()
        began = time.monotonic()
        for name in ("turn.ns-default", "ns-default"):
            for each in others:
                until(f"{name} is without it", lambda: node.public not in each.names(name), 2 * HEARTBEAT + SLACK)  # noqa: B023
        took = time.monotonic() - began
        print(f"its names are gone {took:.2f} s after it was killed")
        # The record goes at the end of the second heartbeat at most.
        self.assertLess(took, 2 * HEARTBEAT + SLACK)
        answer = others[0].ask("POST", ENABLE, idle)
        self.assertEqual((answer.status, answer.code), (412, "not_enough_nodes"))
        done = others[0].orama("inspector", "--env", "devnet", "--environments", environments, "--json")
        self.assertEqual(done.returncode, 1)
        wrong = {each["id"] for each in json.loads(done.stdout)["findings"] if each["status"] == "fail"}
        self.assertLessEqual({"ns.default.sfu_coverage", "ns.default.sfu_up", "ns.default.turn_up"}, wrong)
        self.assertEqual(sum(each.endswith(".reachable") for each in wrong), 1)
        done = others[0].orama("monitor", "report", "--env", "devnet", "--environments", environments, "--json")
        self.assertEqual(done.returncode, 0)
        self.assertEqual(sorted(each["reachable"] for each in json.loads(done.stdout)["nodes"]), [False, True, True])
        until("TURN is on two nodes", lambda: self.relaying(others) == {each.public for each in others})
        node.launch()
        until("it is ready", lambda: not node.ready)
        until("it serves again", lambda: self.cluster.serving(self.key) == (3, 2))
        for each in self.nodes:
            until("DNS has it again", lambda: node.public in each.names("ns-default"))  # noqa: B023
            until("two nodes relay", lambda: len(each.names("turn.ns-default")) == 2)  # noqa: B023

    def relaying(self, nodes: list[Node]) -> set[str]:
        return set(nodes[0].names("turn.ns-default"))

    def test_removed(self) -> None:
        """A dead node is removed, and forgotten everywhere; started again it is a node like another."""
        node, others = self.nodes[2], self.nodes[:2]
        node_id = node.node_id
        node.kill()
        until("it is dead", lambda: not self.listed(node_id)["alive"])
        self.assertEqual(others[1].told("node", "remove", node_id, "--force")["removed"], True)
        for table, column in (("nodes", "id"), ("webrtc_roles", "node_id"), ("webrtc_port_allocations", "node_id")):
            self.assertEqual(self.cluster.rows(f"SELECT 1 FROM {table} WHERE {column} = '{node_id}'"), [], table)
        until("two are wanted", lambda: self.cluster.status(self.key)["desired"]["sfu_node_count"] == 2)
        node.launch()
        until("it serves", lambda: self.cluster.serving(self.key) == (3, 2))

    def listed(self, node_id: str) -> Any:
        return next(each for each in self.nodes[0].listed() if each["node_id"] == node_id)


class DatabaseTests(ClusterTestCase):
    """The database stops answering."""

    def setUp(self) -> None:
        super().setUp()
        if self.cluster.database is None:
            raise SkipTest("there is no rqlited: etc/lab/build makes it")
        self.database: RqliteServer = self.cluster.database
        self.key = self.cluster.key
        self.addCleanup(self.cluster.settle)
        self.addCleanup(self.back)

    def back(self) -> None:
        if self.database.process is None or self.database.process.poll() is not None:
            self.database.start()
            self.database.wait_ready()

    def test_while_joined(self) -> None:
        """Calls and their signalling go on, relays too; new joins get an exact answer, and all is well afterwards."""
        near, far = self.nodes[0], self.nodes[1]
        one, two = join(near, "away", self.key, userId="one"), join(far, "away", self.key, userId="two")
        for client in (one, two):
            self.addCleanup(client.close)
        one.until("peer-joined")
        relaying = self.cluster.turns(self.key)[0]
        given = self.credentials(self.key)
        relay = relaying.turn(given)
        self.addCleanup(relay.release)
        self.assertEqual(relay.allocate().code, 0)
        self.database.kill()
        for node in self.nodes:
            until("/ready says why", lambda: "database" in node.ready)  # noqa: B023
            self.assertEqual(node.ask("GET", "/health").status, 200)
        for client in (one, two):
            self.assertEqual(client.settled().count("error"), 0)
            self.assertIsNone(client.code)
        self.assertEqual(relay.request(turn.REFRESH).code, 0)
        another = relaying.turn(given)
        self.addCleanup(another.release)
        self.assertEqual(another.allocate().code, 0)
        for node in self.nodes:
            for method, path in (
                ("GET", ROOMS),
                ("POST", CREDENTIALS),
                ("GET", STATUS),
                ("POST", ENABLE),
                ("POST", DISABLE),
            ):
                answer = node.ask(method, path, self.key)
                self.assertIn(answer.status, (200, 503) if method == "GET" or path == CREDENTIALS else (503,), path)
                if answer.status == 503:
                    self.assertEqual(answer.code, "store_unavailable", path)
            self.assertEqual(self.turned_away(node), 1013)
            self.assertEqual(sorted(node.names("turn.ns-default")), sorted(n.public for n in self.cluster_turns(given)))
        self.assertIsNone(one.code or two.code)
        self.back()
        for node in self.nodes:
            until("it is ready again", lambda: not node.ready)  # noqa: B023
        three = join(self.nodes[2], "away", self.key, userId="three")
        self.addCleanup(three.close)
        self.assertEqual({peer["userId"] for peer in three.received[0]["peers"]}, {"one", "two"})
        self.assertEqual([client.until("peer-joined")["userId"] for client in (one, two)], ["three", "three"])

    def turned_away(self, node: Node) -> int:
        """The closing code for somebody who would join."""
        late = connect(node, "late", self.key)
        closed = late.until_closed()
        self.assertNotIn("welcome", [message["type"] for message in late.received])
        return closed

    def cluster_turns(self, given: Any) -> list[Node]:
        """The nodes that take these credentials."""
        found = []
        for node in self.nodes:
            client = node.turn(given)
            if client.allocate().code == 0:
                found.append(node)
            client.release()
        return found

    def test_started_without(self) -> None:
        """A node that is started meanwhile says what it waits for, in its log and on /ready; SIGTERM ends it with 0.

        It comes up by itself when the database does, with what it served before.
        """
        node = self.nodes[2]
        before = node.state()
        self.assertTrue(before["has_sfu"])
        self.database.kill()
        node.kill()
        node.launch()
        until("it waits", lambda: "waiting" in self.asked(node))
        self.assertIn("waiting: ", node.log)
        self.assertIn("default", node.log.rpartition("waiting: ")[2])
        self.assertEqual(node.ask("GET", "/health").status, 200)
        answer = node.ask("GET", ROOMS, self.key)
        self.assertEqual((answer.status, answer.code), (503, "not_ready"))
        self.assertEqual(node.stop(), 0)
        node.launch()
        until("it waits", lambda: "waiting" in self.asked(node))
        self.back()
        until("it is ready", lambda: not node.ready)
        until("it serves", lambda: self.cluster.serving(self.key) == (3, 2))
        self.assertEqual(node.state()["namespaces"]["default"]["has_sfu"], True)

    def asked(self, node: Node) -> str:
        """Why a node that has only begun cannot take people, by whatever says so on its internal address."""
        ready = node.ready
        if ready and "refused" not in ready:
            return ready
        try:
            return str(node.ask("GET", ROOMS, self.key).json.get("error", ""))
        except OSError:
            return ""


class ColdTests(ClusterTestCase):
    def test_all_at_once(self) -> None:
        """All three killed at once and started again: everything is up again by itself, rooms anew, state as it was."""
        self.addCleanup(self.cluster.settle)
        before = {node: node.state()["namespaces"] for node in self.nodes}
        for node in self.nodes:
            node.process.send_signal(signal.SIGKILL)
        for node in self.nodes:
            node.process.wait()
            node.launch()
        self.cluster.settle()
        for node in self.nodes:
            self.assertEqual({name: entry["has_sfu"] for name, entry in node.state()["namespaces"].items()},
                             {name: entry["has_sfu"] for name, entry in before[node].items()})  # fmt: skip
        client = join(self.nodes[1], "cold", self.cluster.key)
        self.addCleanup(client.close)
        self.assertEqual(client.received[0]["peers"], [])


class OlricTests(ClusterTestCase):
    def test_died(self) -> None:
        """When Olric dies after the start, enabling is 412 with its name and what is wrong; calls do not mind."""
        olric = self.cluster.olric
        if olric is None:
            raise SkipTest("there is no olric-server: etc/lab/build makes it")
        _, key = self.namespace(enabled=False)
        self.addCleanup(lambda: None if olric.process.poll() is None else olric.start())
        olric.kill()
        for node in self.nodes:
            answer = node.ask("POST", ENABLE, key)
            self.assertEqual((answer.status, answer.code), (412, "cluster_not_ready"))
            self.assertRegex(answer.json["error"], "(?i)olric")
            self.assertEqual(node.ready, "")
            self.assertEqual(node.ask("POST", CREDENTIALS, self.cluster.key).status, 200)
        olric.start()
        self.assertEqual(self.nodes[0].ask("POST", ENABLE, key).status, 200)


class SecretTests(ClusterTestCase):
    def test_nowhere(self) -> None:
        """No secret is in a log, a state file, a status, a metric or a report; files with secrets are 0600."""
        name, key = self.namespace()
        secret = self.nodes[0].told("turn", "secret", "--namespace", name)["secret"]
        given = self.credentials(key)
        said = []
        for node in self.nodes:
            node.ask("POST", ENABLE, key)
            node.inside("POST", "/v1/internal/acme/present", {"Authorization": "Basic b3JhbWE6d3Jvbmc="}, {})
            client = connect(node, "secrets", key)
            client.say("join")
            client.until("turn-credentials")
            client.close()
            said += [node.log, node.errors, json.dumps(node.state()), json.dumps(node.report())]
            said += [node.ask("GET", STATUS, key).content.decode(), node.inside("GET", "/metrics").content.decode()]
            for path in node.data.iterdir():
                if not path.is_dir():
                    self.assertEqual(mode(path), 0o600, path)
            self.assertEqual(mode(node.data), 0o700)
        hidden = [secret, key, self.cluster.key, given["password"]]
        hidden += [
            (node.data / file).read_text().strip() for node in self.nodes for file in ("cluster.key", "acme.password")
        ]
        hidden += [key.partition(":")[0], *(text.split()[0] for text in hidden[4:])]
        for text in said:
            for each in hidden:
                self.assertNotIn(each, text)
        self.assertEqual({bool(text) for text in said[::6]}, {True})
        state = self.nodes[0].state()
        self.assertLessEqual({"has_sfu", "has_turn", "namespaces"}, state.keys())
