"""``orama monitor report`` and ``orama inspector`` from the command to the exit code."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from twisted.internet import reactor as _reactor

from orama.cluster.keyring import Keyring
from orama.rest.control import listen_control
from orama.rest.control_nodes import ReportResource
from orama.rest.json_resource import JsonResource
from orama.rest.origins import Origins
from orama.rest.site import Site
from orama.settings import Settings
from tests.cli.clusters import report, served
from tests.cli.commands import CommandCase
from tests.cli.test_asking import NodeServer

reactor: Any = _reactor


def alone(**changes: Any) -> dict[str, Any]:
    """What a node reports that is a cluster by itself, has an SFU, and no TURN that anybody could look at."""
    wanted = {"roles": ["sfu"], "sfu_wanted": 1, "turn_wanted": 0, "turn_up": False, "secret": None}
    return report("n1", served("n1", **{**wanted, **changes}), now=time.time())


class CommandTestCase(CommandCase):
    async def setUp(self) -> None:
        await super().setUp()
        self.nodes: list[Mapping[str, Any]] = []
        root = inner = JsonResource(Origins(()))
        for name in (b"v1", b"control"):
            child = JsonResource(Origins(()))
            inner.putChild(name, child)
            inner = child
        inner.putChild(b"report", ReportResource(self.reported))
        port = listen_control(reactor, self.dir, Site(root, Settings(), reactor))
        self.addCleanup(port.stopListening)

    async def reported(self) -> Mapping[str, Any]:
        return {"nodes": self.nodes}

    def tell(self, value: dict[str, Any] | None, node: str = "n1", error: str | None = None) -> None:
        self.nodes.append({"node_id": node, "internal_ip": "10.0.0.1", "report": value, "error": error})

    def environment(self, *nodes: str) -> tuple[str, ...]:
        """Options for an environment with *nodes*, whose key is :attr:`keyring`."""
        self.keyring = Keyring.keep(self.dir / "cluster.key")
        file = self.dir / "environments.toml"
        file.write_text(f'[devnet]\nnodes = {json.dumps(nodes)}\nkey = "cluster.key"\n')
        return "--env", "devnet", "--environments", str(file)

    async def failing(self, *arguments: str) -> tuple[str, str]:
        """stdout and stderr of a command that answers, and whose answer is bad: 1, and one line on stderr."""
        result = await self.run_it(*arguments)
        self.assertEqual((result.exit_code, result.stderr.count("\n")), (1, 1), result.output)
        return result.stdout, result.stderr


class MonitorTests(CommandTestCase):
    async def test_table(self) -> None:
        """A line for each namespace of each node, and one for a node that says nothing."""
        self.tell(report("n1", served("n1"), served("n1", "beta", sfu_up=False, error="port in use")))
        self.tell(None, "n2", "connection refused")
        shown = await self.good("monitor", "report")
        self.assertRegex(shown.splitlines()[0], r"sfu up +turn up +rooms +participants +allocations")
        self.assertRegex(shown, r"n1 +ready +alpha +sfu, turn +yes +yes +1 +2 +4 +–")
        self.assertRegex(shown, r"n1 +ready +beta +sfu, turn +no +yes +1 +2 +4 +port in use")
        self.assertRegex(shown, r"n2 +unreachable .*connection refused")

    async def test_json(self) -> None:
        """Every node has the same keys, whether it answers or not."""
        self.tell(report("n1"))
        self.tell(None, "n2", "connection refused")
        shown = await self.data("monitor", "report")
        self.assertIsNone(shown["environment"])
        first, second = shown["nodes"]
        self.assertEqual(set(first), set(second))
        self.assertEqual(
            (first["reachable"], second["reachable"], second["error"]), (True, False, "connection refused")
        )
        [alpha] = first["namespaces"]
        self.assertEqual((alpha["namespace"], alpha["sfu_up"], alpha["turn_up"]), ("alpha", True, True))
        self.assertEqual(second["namespaces"], [])

    async def test_environment(self) -> None:
        """The nodes of an environment are asked by signed requests, at once, without a node on this host."""
        gone = socket.create_server(("127.0.0.1", 0))
        address = f"127.0.0.1:{gone.getsockname()[1]}"
        gone.close()
        self.environment("127.0.0.1:1")
        node = NodeServer(self, self.keyring, alone())
        options = self.environment(str(node.address), address)
        result = await self.run_it("monitor", "report", "--json", *options, data_dir=self.dir / "nowhere")
        self.assertEqual((result.exit_code, result.stderr), (0, ""))
        shown = json.loads(result.stdout)
        self.assertEqual(shown["environment"], "devnet")
        self.assertEqual([each["node_id"] for each in shown["nodes"]], ["n1", address])
        self.assertEqual(shown["nodes"][1]["error"], "connection refused")

    async def test_nobody(self) -> None:
        """When no node answers the table is shown, and the command fails."""
        self.tell(None, "n1", "connection refused")
        out, err = await self.failing("monitor", "report")
        self.assertRegex(out, "n1 +unreachable")
        self.assertEqual(err, "orama: none of the 1 nodes answers\n")

    async def test_no_environment(self) -> None:
        """An environment that is not there is one line; no node is asked."""
        options = self.environment("127.0.0.1:1")
        self.assertIn("there is: devnet", await self.bad("monitor", "report", "--env", "prod", *options[2:]))
        missing = str(self.dir / "missing.toml")
        self.assertIn(missing, await self.bad("inspector", "--env", "prod", "--environments", missing))


class InspectorTests(CommandTestCase):
    async def test_well(self) -> None:
        """Where everything is well it exits with 0 and has passed something."""
        self.tell(alone())
        shown = await self.data("inspector")
        self.assertEqual(set(shown), {"environment", "checked_at", "counts", "findings"})
        self.assertEqual((shown["counts"]["fail"], shown["counts"]["warn"]), (0, 0), shown)
        self.assertEqual(shown["counts"]["pass"], len(shown["findings"]))
        keys = {"id", "status", "severity", "namespace", "node", "message", "hint"}
        for finding in shown["findings"]:
            self.assertEqual(set(finding), keys)
        found = {finding["id"]: finding for finding in shown["findings"]}
        self.assertEqual((found["ns.alpha.sfu_up"]["node"], found["ns.alpha.sfu_up"]["namespace"]), ("n1", "alpha"))
        self.assertIn("ns.alpha.sfu_coverage", found)
        table = await self.good("inspector")
        self.assertRegex(table, r"pass +ns.alpha.sfu_up +n1 +the SFU runs")
        self.assertRegex(table, r"\n\d+ passed, 0 with a warning, 0 failed\n$")

    async def test_down(self) -> None:
        """A service that is down is 1, with all findings on stdout, a hint, and one line on stderr."""
        self.tell(alone(sfu_up=False, error="port 30000 is in use"))
        out, err = await self.failing("inspector")
        self.assertRegex(out, r"fail +ns.alpha.sfu_up +n1 +the SFU does not run: port 30000 is in use")
        self.assertIn("orama-namespace-sfu@alpha", out)
        self.assertRegex(err, r"^orama: 2 of \d+ checks failed\n$")
        out, _ = await self.failing("inspector", "--json")
        self.assertEqual(json.loads(out)["counts"]["fail"], 2)

    async def test_unreachable(self) -> None:
        """A node that does not answer is 1."""
        self.tell(alone())
        self.tell(None, "n2", "connection refused")
        out, _ = await self.failing("inspector")
        self.assertRegex(out, r"fail +node.n2.reachable .*connection refused")

    async def test_looked_at(self) -> None:
        """TURN that is said to be up and does not answer at its public address is 1."""
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            turn, turns = one.getsockname()[1], other.getsockname()[1]
        value = alone(roles=["turn"], sfu_wanted=0, sfu_up=False, turn_wanted=1, turn_up=True, secret="0123abcd")
        value["node"]["public_ip"] = "127.0.0.1"
        value["dns"] = {"listening": False, "zone": "", "error": None}
        value["listeners"] = [
            {"name": name, "proto": proto, "port": port}
            for name, proto, port in (("turn", "udp", turn), ("turn", "tcp", turn), ("turns", "tcp", turns))
        ]
        self.tell(value)
        out, _ = await self.failing("inspector", "--json")
        failed = {each["id"]: each["message"] for each in json.loads(out)["findings"] if each["status"] == "fail"}
        self.assertEqual(set(failed), {"ns.alpha.certificate", "ns.alpha.ports"})
        self.assertEqual(failed["ns.alpha.ports"].count("connection refused"), 3)

    async def test_chosen(self) -> None:
        """Checks are chosen by namespace and by id; choosing nothing is a failure, not a success."""
        value = alone()
        value["namespaces"].append({**value["namespaces"][0], "namespace": "beta", "sfu_up": False})
        self.tell(value)
        self.assertEqual((await self.data("inspector", "--namespace", "alpha"))["counts"]["fail"], 0)
        await self.failing("inspector", "--namespace", "beta")
        only = await self.data("inspector", "--only", "ns.alpha.*", "--only", "node.n1.clock")
        self.assertEqual({each["id"].partition(".")[0] for each in only["findings"]}, {"ns", "node"})
        self.assertIn("no such check", await self.bad("inspector", "--only", "ns.gamma.*"))
        self.assertIn("gamma", await self.bad("inspector", "--namespace", "gamma"))

    async def test_environment(self) -> None:
        """An environment is inspected as the cluster of this host is."""
        self.environment("127.0.0.1:1")
        node = NodeServer(self, self.keyring, alone())
        shown = await self.data("inspector", *self.environment(str(node.address)))
        self.assertEqual((shown["environment"], shown["counts"]["fail"]), ("devnet", 0))
        out, _ = await self.failing("inspector", "--json", *self.environment(str(node.address), "127.0.0.1:1"))
        self.assertEqual(
            {each["id"] for each in json.loads(out)["findings"] if each["status"] == "fail"},
            {"node.127.0.0.1:1.reachable"},
        )
