"""A namespace on three nodes: what enabling it leaves, calls over any two gateways, and two tenants side by side."""

from __future__ import annotations

import json
import time

from twisted.names import dns

from tests.lab import addresses, names, servers
from tests.lab.machine import until
from tests.lab.node import until_true
from tests.lab.servers import RQLITE_PORT
from tests.lab.stage import NAMESPACE, ClusterTestCase, enable, key, key_of, lacking

#: Seconds for which a call goes on while something happens to somebody else.
_WHILE = 3.0


class EnabledTests(ClusterTestCase):
    def test_everything(self) -> None:
        """SFU runs on three nodes and TURN on two, whichever node one asks; the public names are those of the two."""
        for number in self.nodes:
            up = self.up(ask=number)
            self.assertEqual(sorted(up), list(addresses.NODES))
            self.assertTrue(all(sfu for sfu, _ in up.values()), up)
            self.assertEqual(sum(turn for _, turn in up.values()), 2, up)
            relays = [addresses.public(each) for each in self.relaying()]
            self.assertEqual(self.resolve(ask=number), relays)

    def test_zone(self) -> None:
        """Every node answers for the zone with the same authority, and says what is not there."""
        for number in addresses.NODES:
            server = addresses.public(number)
            answer = names.ask(self.lab.clients[0], server, addresses.DOMAIN, dns.SOA)
            self.assertTrue(answer.auth)
            nameservers = names.ask(self.lab.clients[0], server, addresses.DOMAIN, dns.NS)
            self.assertEqual(len(nameservers.answers), len(addresses.NODES))
            nothing = names.ask(self.lab.clients[0], server, f"turn.ns-nobody.{addresses.DOMAIN}")
            self.assertEqual((nothing.rCode, [each.type for each in nothing.authority]), (dns.ENAME, [dns.SOA]))
            elsewhere = names.ask(self.lab.clients[0], server, "example.org")
            self.assertEqual(elsewhere.rCode, dns.EREFUSED)

    def test_firewall(self) -> None:
        """The ports of TURN are open on the two nodes that relay and not on the third; no relay and no SFU is."""
        self.require("UFW")
        for number, node in self.nodes.items():
            rules = node.machine.run("ufw", "show", "added")
            ours = [line for line in rules.splitlines() if "orama" in line]
            # The namespace of the first start has TURN nodes of its own.
            if number in {*self.relaying(), *self.relaying("default")}:
                self.assertEqual(len(ours), 3, rules)
                self.assertTrue(
                    all(any(port in line for line in ours) for port in ("3478/udp", "3478/tcp", "5349/tcp"))
                )
            else:
                self.assertEqual(ours, [])

    def test_operators_view(self) -> None:
        """The report has every node and both services, and the inspector finds nothing that fails."""
        began = time.monotonic()
        self.assertEqual(self.inspect(), [])
        self.report.milliseconds("Operators", "orama inspector --env", time.monotonic() - began)
        found = self.nodes[1].orama("monitor", "report", *self.environment())
        for node in self.nodes.values():
            self.assertIn(node.node_id, found)

    def test_put_back(self) -> None:
        """A firewall rule and a DNS record that somebody took away are back by themselves."""
        number = self.relaying()[0]
        if "UFW" not in lacking():
            machine = self.nodes[number].machine
            began = time.monotonic()
            machine.run("ufw", "delete", "allow", "3478/udp")
            self.assertNotIn("3478/udp", _open_to_all(machine.run("ufw", "show", "added")))
            until(lambda: "3478/udp" in _open_to_all(machine.run("ufw", "show", "added")), "the rule", 60.0, 0.2)
            self.report.milliseconds("Repair", "a deleted firewall rule is back", time.monotonic() - began)
        if "RQLite" not in lacking():
            began = time.monotonic()
            statement = ["DELETE FROM dns_records WHERE type = 'A' AND namespace = ?", NAMESPACE]
            own = addresses.mesh(1)
            status, body = servers.fetch(self.lab.hosts[0], own, RQLITE_PORT, "/db/execute", [statement])
            self.assertEqual(status, 200, body)
            self.assertGreaterEqual(json.loads(body)["results"][0].get("rows_affected", 0), 2, body)
            relays = [addresses.public(each) for each in self.relaying()]
            until(lambda: self.resolve() == relays, "the record", 60.0, 0.2)
            self.report.milliseconds("Repair", "deleted DNS records are served again", time.monotonic() - began)


class CallTests(ClusterTestCase):
    def test_any_gateways(self) -> None:
        """Wherever two people come in, they meet in one room and hear each other; every gateway tells of that room."""
        for first, second in ((1, 2), (2, 3), (3, 3)):
            room = f"{self.room}-{first}-{second}"
            began = time.monotonic()
            ada, bert = self.phone(1, first, room=room), self.phone(2, second, room=room)
            heard = [each.until_hearing(since=began) for each in (ada, bert)]
            took = max(each.frames[0] for each in heard) - began
            self.report.milliseconds("Calls", f"gateways {first} and {second}: from dialling to hearing", took)
            owners = set()
            for node in self.nodes.values():
                until_true(
                    "two people", 60.0, lambda node=node, room=room: node.rooms(key())[room]["participants"] == 2
                )
                owners.add(node.rooms(key())[room]["node_id"])
            self.assertEqual(len(owners), 1)
            for each in (ada, bert):
                each.hang_up()

    def test_both_relays(self) -> None:
        """Calls spread over both TURN nodes: their relays are on either internal address, and both carry sound."""
        expected = {addresses.mesh(number) for number in self.relaying()}
        before = {number: self.nodes[number].metric("orama_turn_bytes_total") for number in self.relaying()}
        used: set[str] = set()
        people = 0
        while not expected <= used:
            # Each draws its relay: that so many have drawn the same happens once in 500,000 times.
            self.assertLess(people, 20, f"twenty calls went over {used}")
            began = time.monotonic()
            pair = [self.phone(client, client, room=f"{self.room}-{people}") for client in (1, 2)]
            people += len(pair)
            for each in pair:
                used.update(each.until_hearing(since=began).relays)
            for each in pair:
                each.hang_up()
        self.assertEqual(used, expected)
        self.report.count("Calls", "people until both TURN nodes were in use", people, "people")
        for number, bytes_before in before.items():
            self.assertGreater(self.nodes[number].metric("orama_turn_bytes_total"), bytes_before)


class NeighbourTests(ClusterTestCase):
    def test_disable(self) -> None:
        """Two namespaces on the same hosts are in calls; one is disabled, and the other loses not one packet."""
        enable(self.lab, "other")
        secret = key_of(self.nodes[1], "other")
        began = time.monotonic()
        ours = [self.phone(1, 1), self.phone(2, 2)]
        theirs = [self.phone(client, client + 1, namespace="other", secret=secret) for client in (1, 2)]
        for each in (*ours, *theirs):
            each.until_hearing(since=began)
        before, since = [each.report() for each in ours], time.monotonic()
        self.nodes[2].orama("namespace", "disable", "webrtc", "--namespace", "other")
        took = time.monotonic() - since
        until(lambda: time.monotonic() - since > took + _WHILE, "some time", 60.0)
        after = [each.report() for each in ours]
        self.report.milliseconds("Neighbours", "orama namespace disable webrtc, with people in it", took)
        for old, new in zip(before, after, strict=True):
            received, lost = new.received - old.received, new.lost - old.lost
            self.report.count("Neighbours", "packets that the other namespace received meanwhile", received, "packets")
            self.report.count("Neighbours", "packets that it lost", lost, "packets")
            silence = new.longest_silence(since)
            self.report.milliseconds("Neighbours", "longest silence in it", silence)
            self.assertEqual(lost, 0)
            self.assertLess(silence, 0.5)
            self.assertGreater(received, 50 * _WHILE * 0.9)
            self.assertEqual(new.happened(since), [])
        for each in theirs:
            self.assertTrue(each.report().happened(since))
        self._nothing_left("other")

    def _nothing_left(self, namespace: str) -> None:
        self.assertEqual(
            names.ask(self.lab.clients[0], addresses.public(1), f"turn.ns-{namespace}.{addresses.DOMAIN}").rCode,
            dns.ENAME,
        )
        self.assertEqual(len(self.resolve()), 2)
        if "UFW" not in lacking():
            rules = self.nodes[self.relaying()[0]].machine.run("ufw", "show", "added")
            self.assertIn("3478/udp", _open_to_all(rules))
        if "RQLite" not in lacking():
            tables = ("webrtc_port_allocations", "webrtc_roles", "webrtc_rooms", "dns_records")
            own = addresses.mesh(1)
            asked = [[f"SELECT COUNT(*) FROM {table} WHERE namespace = ?", namespace] for table in tables]
            _, body = servers.fetch(self.lab.hosts[0], own, RQLITE_PORT, "/db/query?level=strong", asked)
            counts = [result["values"] for result in json.loads(body)["results"]]
            self.assertEqual(counts, [[[0]]] * len(tables), tables)
        for node in self.nodes.values():
            self.assertNotIn(namespace, (node.data / "cluster_state.json").read_text())


def _open_to_all(rules: str) -> str:
    return "\n".join(line for line in rules.splitlines() if "allow" in line)
