"""Contract, sections 2, 3, 5 and 6, asked of three nodes: turning WebRTC on and off, and what is then there."""

from __future__ import annotations

import re
import struct
from concurrent.futures import ThreadPoolExecutor

from tests.contract import sdp, turn
from tests.contract.cluster import (
    BASE,
    CREDENTIALS,
    DISABLE,
    ENABLE,
    INTERNAL,
    NAMESPACES,
    ROOMS,
    STATUS,
    TURN,
    ClusterTestCase,
    until,
)
from tests.contract.rest import ask
from tests.contract.signalling import connect, join


class EnablementTests(ClusterTestCase):
    def leftovers(self, name: str) -> list[str]:
        """The tables in which the namespace still has something that it should not have when it is off."""
        tables = "webrtc_port_allocations", "webrtc_roles", "webrtc_rooms", "dns_records"
        found = [table for table in tables if self.cluster.rows(f"SELECT 1 FROM {table} WHERE namespace = '{name}'")]
        secrets = "turn_secret_encrypted IS NOT NULL OR turn_secret_previous_encrypted IS NOT NULL"
        statement = f"SELECT 1 FROM namespace_webrtc_config WHERE namespace = '{name}' AND ({secrets})"
        return found + (["a TURN secret"] if self.cluster.rows(statement) else [])

    def test_both_ways(self) -> None:
        """Off: its calls are 404. On: SFU on three, TURN on two, seen alike from each node. Off again: nothing is left.

        Of two who turn it on at once through two nodes, one gets 200 and one 409.
        """
        name, key = self.namespace(enabled=False)
        for node in self.nodes:
            answer = node.ask("POST", CREDENTIALS, key)
            self.assertEqual((answer.status, answer.code), (404, "webrtc_not_enabled"))
            self.assertEqual(node.ask("GET", STATUS, key).json["enabled"], False)
        answer = self.nodes[2].ask("POST", DISABLE, key)
        self.assertEqual((answer.status, answer.code), (409, "not_enabled"))
        with ThreadPoolExecutor() as threads:
            both = list(threads.map(lambda node: node.ask("POST", ENABLE, key), self.nodes[:2]))
        self.assertEqual(sorted(answer.status for answer in both), [200, 409])
        refused, done = sorted(both, key=lambda answer: -answer.status)
        self.assertEqual(refused.code, "already_enabled")
        self.assertEqual(done.json.keys(), {"status", "namespace", "message"})
        self.assertEqual(done.json["namespace"], name)
        seen = [node.ask("GET", STATUS, key).json for node in self.nodes]
        for each in seen:
            self.assertTrue(each["enabled"])
            self.assertEqual((each["desired"]["sfu_node_count"], each["desired"]["turn_node_count"]), (3, 2))
            self.assertEqual(sum(node["sfu_up"] for node in each["observed"]["nodes"]), 3)
        relaying = {node.public for node in self.cluster.turns(key)}
        self.assertEqual(len(relaying), 2)
        for node in self.nodes:
            until("DNS has the TURN nodes", lambda node=node: set(node.names(f"turn.ns-{name}")) == relaying)  # type: ignore[misc]
        ports = [node.state()["namespaces"][name]["sfu_signaling_port"] for node in self.nodes]
        answer = self.nodes[2].ask("POST", DISABLE, key)
        self.assertEqual((answer.status, answer.json["namespace"]), (200, name))
        self.assertEqual(self.cluster.serving(key), (0, 0))
        self.assertEqual(self.leftovers(name), [])
        for node, port in zip(self.nodes, ports, strict=True):
            self.assertNotIn((node.internal, port), set(node.listening("tcp")))
            self.assertNotIn(name, node.state()["namespaces"])
            until("DNS has forgotten it", lambda node=node: node.resolve(f"turn.ns-{name}") is None)  # type: ignore[misc]

    def test_deleted_while_enabled(self) -> None:
        """A namespace that is deleted while WebRTC is on in it leaves nothing in the database and on no node."""
        name, key = self.namespace()
        self.assertEqual(self.nodes[1].orama("namespace", "delete", name).returncode, 0)
        self.assertEqual(self.leftovers(name), [])
        for table, column in (
            ("namespaces", "name"),
            ("api_keys", "namespace"),
            ("namespace_webrtc_config", "namespace"),
        ):
            self.assertEqual(self.cluster.rows(f"SELECT 1 FROM {table} WHERE {column} = '{name}'"), [], table)
        for node in self.nodes:
            self.assertEqual(node.ask("POST", CREDENTIALS, key).status, 401)
            until("it is served no more", lambda node=node: name not in node.state()["namespaces"])  # type: ignore[misc]

    def test_people_are_told(self) -> None:
        """Disabling ends the rooms with ``room-closed`` and the relays; another namespace does not notice."""
        _, key = self.namespace()
        mine = [join(node, "told", key) for node in self.nodes]
        others = [join(node, "undisturbed", self.cluster.key) for node in self.nodes]
        for client in mine + others:
            self.addCleanup(client.close)
        relaying = self.cluster.turns(key)[0]
        relay = relaying.turn(self.credentials(key))
        self.addCleanup(relay.socket.close)
        self.assertEqual(relay.allocate().code, 0)
        neighbour = self.cluster.turns(self.cluster.key)[0].turn(self.credentials(self.cluster.key))
        self.addCleanup(neighbour.release)
        self.assertEqual(neighbour.allocate().code, 0)
        self.assertEqual(self.nodes[2].ask("POST", DISABLE, key).status, 200)
        for client in mine:
            self.assertEqual(client.until("room-closed")["type"], "room-closed")
            self.assertEqual(client.until_closed(), 1000)
        self.assertNotEqual(relay.request(turn.REFRESH).code, 0)
        late = connect(self.nodes[0], "told", key)
        self.assertEqual(late.until_closed(), 4404)
        self.assertEqual(neighbour.request(turn.REFRESH).code, 0)
        for client in others:
            self.assertLessEqual(set(client.settled()), {"welcome", "turn-credentials", "peer-joined"})

    def test_full(self) -> None:
        """Namespaces that are turned on at once from three nodes get blocks of their own, or 507 and nothing."""
        made = [self.namespace(enabled=False) for _ in range(NAMESPACES)]
        with ThreadPoolExecutor() as threads:
            nodes = [self.nodes[number % 3] for number in range(NAMESPACES)]
            answers = list(threads.map(lambda node, each: node.ask("POST", ENABLE, each[1]), nodes, made))
        taken = len(self.cluster.rows("SELECT DISTINCT namespace FROM webrtc_port_allocations"))
        self.assertEqual(taken, NAMESPACES)
        refused = [each for each, answer in zip(made, answers, strict=True) if answer.status != 200]
        self.assertGreater(len(refused), 0)
        for (name, key), answer in zip(made, answers, strict=True):
            if answer.status != 200:
                self.assertEqual((answer.status, answer.code), (507, "no_free_ports"))
                self.assertEqual(self.leftovers(name), [])
                self.assertEqual(self.nodes[0].ask("POST", CREDENTIALS, key).status, 404)
        blocks = self.cluster.rows("SELECT host, kind, first_port, last_port FROM webrtc_port_allocations")
        for host, kind, first, last in blocks:
            others = [each for each in blocks if each[:2] == [host, kind] and each != [host, kind, first, last]]
            self.assertTrue(all(last < other[2] or other[3] < first for other in others), blocks)
        self.assertEqual(len({tuple(each) for each in blocks}), len(blocks))
        sizes = {kind: last - first + 1 for _, kind, first, last in blocks}
        self.assertEqual(sorted(sizes.values()), [1, 500, 800])

    def test_who_may(self) -> None:
        """401 without a good key, 403 for a member, 405 with Allow for another method: on every node."""
        member = self.new_key("default", "member")
        for node in self.nodes:
            for path in (ENABLE, DISABLE):
                for key in ("", "ak_nobody:default"):
                    answer = node.ask("POST", path, key)
                    self.assertEqual(answer.status, 401)
                    self.assertIn("WWW-Authenticate", answer.headers)
                answer = node.ask("POST", path, member)
                self.assertEqual((answer.status, answer.code), (403, "forbidden"))
                answer = node.ask("GET", path, member)
                self.assertEqual((answer.status, answer.headers["Allow"]), (405, "POST, OPTIONS"))
            self.assertEqual(node.ask("GET", STATUS).status, 401)
            self.assertEqual(node.ask("GET", STATUS, member).status, 200)

    def test_placement(self) -> None:
        """TURN is on nodes of which none has less free capacity than the one without, by the written score.

        It is the share that is free: memory counts 0.35, processor 0.35, streams 0.2, namespaces 0.1. What nodes say of
        themselves changes between the placing and our looking, by little.
        """
        _, key = self.namespace()
        relaying = {node.node_id for node in self.cluster.turns(key)}
        scores = {}
        for each in self.nodes[0].told("node", "list")["nodes"]:
            free = [
                each["memory_free_mb"] / each["memory_mb"],
                1 - each["load"] / each["cpus"],
                1 - each["streams"] / (2000 * each["cpus"]),
                1 - (each["namespaces"] - 1) / 20,
            ]
            shares = zip((0.35, 0.35, 0.2, 0.1), free, strict=True)
            scores[each["node_id"]] = sum(weight * min(1, max(0, share)) for weight, share in shares)
        (left,) = scores.keys() - relaying
        self.assertGreater(min(scores[node_id] for node_id in relaying), scores[left] - 0.05)


class TurnTests(ClusterTestCase):
    def test_credentials(self) -> None:
        """Every node gives out the same: the three URIs in order, name and password as the contract has them."""
        key = self.cluster.key
        secret = self.nodes[1].told("turn", "secret", "--namespace", "default")["secret"]
        host = f"turn.ns-default.{BASE}"
        wanted = [f"turn:{host}:3478?transport=udp", f"turn:{host}:3478?transport=tcp", f"turns:{host}:5349"]
        for node in self.nodes:
            given = self.credentials(key, node)
            self.assertEqual(given.keys(), {"uris", "username", "password", "ttl"})
            self.assertEqual(given["uris"][:3], wanted)
            self.assertTrue(all(re.fullmatch(r"turns?:[\d.]+:\d+(\?transport=\w+)?", uri) for uri in given["uris"][3:]))
            self.assertEqual(given["ttl"], 600)
            self.assertRegex(given["username"], r"\A\d+:default\Z")
            self.assertEqual(given["password"], turn.password(secret, given["username"]))

    def test_either_node(self) -> None:
        """Both TURN nodes take the credentials of any node, over UDP, TCP and TLS; the third node does not."""
        key = self.cluster.key
        relaying = self.cluster.turns(key)
        self.assertEqual(len(relaying), 2)
        for giver in self.nodes:
            given = self.credentials(key, giver)
            for node in self.nodes:
                for transport in ("udp", "tcp", "tls") if giver is self.nodes[0] else ("udp",):
                    client = node.turn(given, transport)
                    self.addCleanup(client.release)
                    answer = client.allocate()
                    self.assertEqual(answer.code, 0 if node in relaying else 401, (node.public, transport))
                    if node in relaying:
                        ip, port = answer.address(turn.XOR_RELAYED_ADDRESS)
                        state = node.state()["namespaces"]["default"]
                        self.assertEqual(ip, node.internal)
                        self.assertTrue(state["turn_relay_port_start"] <= port <= state["turn_relay_port_end"])

    def test_relays_reach_their_own(self) -> None:
        """A relay of either TURN node reaches its namespace's SFU on all three nodes, and gets its answers."""
        key = self.cluster.key
        answers = {}
        for number, node in enumerate(self.nodes):
            client = connect(node, f"reach{number}", key)
            self.addCleanup(client.close)
            client.say("offer", sdp=sdp.offer("audio"))
            answers[node] = client.until("answer")["sdp"]
            self.assertEqual(sdp.media_address(answers[node])[0], node.internal)
        for relaying in self.cluster.turns(key):
            relay = relaying.turn(self.credentials(key))
            self.addCleanup(relay.release)
            self.assertEqual(relay.allocate().code, 0)
            for number, (node, answer) in enumerate(answers.items()):
                channel = 0x4000 + number
                self.assertEqual(relay.bind(sdp.media_address(answer), channel), 0, node.internal)
                request = self.check(answer)
                relay.channel_data(request, channel)
                raw = relay.relayed()
                self.assertIsNotNone(raw, f"{relaying.internal} has no answer of {node.internal}")
                assert raw is not None
                self.assertEqual(turn.parse(raw).kind, turn.BINDING | turn.SUCCESS)

    def check(self, answer: str) -> bytes:
        """A connectivity check of the peer that got that *answer*."""
        attributes = [
            (turn.USERNAME, f"{sdp.value(answer, 'ice-ufrag')}:{sdp.UFRAG}".encode()),
            (turn.PRIORITY, struct.pack("!I", 1)),
            (turn.ICE_CONTROLLING, bytes(8)),
            (turn.USE_CANDIDATE, b""),
        ]
        pwd = sdp.value(answer, "ice-pwd").encode()
        return turn.build(turn.BINDING, attributes=attributes, key=pwd, fingerprint=True)

    def test_relays_reach_nothing_else(self) -> None:
        """A relay does not reach another namespace's SFU on any node, nor what else is on the mesh or on loopback."""
        _, key = self.namespace()
        given = self.credentials(key)
        strange = [
            (node.internal, node.state()["namespaces"]["default"]["sfu_media_port_start"]) for node in self.nodes
        ]
        strange += [(node.internal, port) for node in self.nodes for port in (INTERNAL, 30000)]
        strange += [(self.nodes[0].public, TURN), ("127.0.0.1", 4001), ("169.254.169.254", 80)]
        for node in self.cluster.turns(key):
            relay = node.turn(given)
            self.addCleanup(relay.release)
            self.assertEqual(relay.allocate().code, 0)
            for number, address in enumerate(strange):
                self.assertEqual(relay.bind(address, 0x4000 + number), 403, address)
            for ip in (self.nodes[0].public, "127.0.0.1", "169.254.169.254", "10.0.0.1"):
                self.assertEqual(relay.permit(ip), 403, ip)


class ListenerTests(ClusterTestCase):
    """What answers where."""

    PATHS = (
        "report",
        "reconcile",
        "rooms/close",
        "rooms/stats",
        "drain",
        "keys",
        "acme/present",
        "acme/cleanup",
        "nothing",
    )

    def test_no_internal_address_in_public(self) -> None:
        """On the public listener, and on the signalling ports, there is nothing at internal addresses, whoever asks."""
        node = self.nodes[0]
        for path in (f"/v1/internal/{path}" for path in self.PATHS):
            for method in ("GET", "POST"):
                headers = node.signed(method, path, b"{}" if method == "POST" else b"")
                asked = node.ask(method, path, self.cluster.key, {} if method == "POST" else None)
                signed = ask(node, method, path, {} if method == "POST" else None, headers)
                self.assertEqual([asked.status, signed.status], [404, 404], path)
                self.assertEqual(asked.code, "not_found")
        for path in ("/ready", "/metrics", "/v1/control/nodes"):
            self.assertEqual(node.ask("GET", path, self.cluster.key).status, 404, path)
        self.assertEqual(node.ask("GET", "/health").status, 200)
        for path in ("/health", "/ready", "/metrics"):
            self.assertEqual(node.inside("GET", path).status, 200, path)
        for path in ("/v1/webrtc/rooms", CREDENTIALS, STATUS, "/v1/control/nodes"):
            self.assertEqual(node.inside("GET", path, {"X-API-Key": self.cluster.key}).status, 404, path)

    def test_signatures(self) -> None:
        """On the internal address 401 is the answer to who has not signed just that, just now, for the first time."""
        node, other = self.nodes[:2]
        report = "/v1/internal/report"
        good = node.signed("GET", report)
        wrong = {
            "bad_signature": [
                {},
                {"X-API-Key": self.cluster.key},
                node.signed("GET", report, key="A" * 43 + "="),
                node.signed("GET", f"{report}?x=1"),
                node.signed("POST", report),
                node.signed("GET", report, b"{}"),
                {**good, "X-Orama-Node": "somebody"},
            ],
            "stale_request": [node.signed("GET", report, age=60), node.signed("GET", report, age=-60)],
        }
        for code, requests in wrong.items():
            for headers in requests:
                answer = node.inside("GET", report, headers)
                self.assertEqual((answer.status, answer.code), (401, code), headers)
                self.assertIn("WWW-Authenticate", answer.headers)
        self.assertEqual(node.inside("GET", report, good).status, 200)
        again = node.inside("GET", report, good)
        self.assertEqual((again.status, again.code), (401, "replayed_request"))
        for path in (f"/v1/internal/{path}" for path in self.PATHS[1:-1]):
            method, body = ("GET", None) if path.endswith("/stats") else ("POST", {})
            self.assertEqual(node.inside(method, path, body=body).status, 401, path)
        drain, body = f"/v1/internal/drain?to={other.node_id}", b'{"draining": true}'
        answer = node.inside("POST", drain, node.signed("POST", drain, body), {"draining": True})
        self.assertEqual((answer.status, answer.code), (409, "wrong_node"))

    def test_ports(self) -> None:
        """TURN, HTTP and DNS are on the public address; media, signalling and node-to-node HTTP on the internal one."""
        for node in self.nodes:
            public = {port for ip, port in node.listening("tcp") if ip == node.public}
            self.assertEqual(public, {6001, 3478, 5349, 5353})
            inside = {(ip, port) for ip, port in node.listening("tcp") if ip != node.public}
            self.assertEqual({ip for ip, _ in inside}, {node.internal})
            ports = {entry["sfu_signaling_port"] for entry in node.state()["namespaces"].values()}
            self.assertEqual({port for _, port in inside}, {INTERNAL, *ports})
            self.assertTrue(all(30000 <= port <= 30099 for port in ports))
            datagrams = set(node.listening("udp"))
            self.assertLessEqual({(node.public, 3478), (node.public, 5353)}, datagrams)
            for ip, port in datagrams - {(node.public, 3478), (node.public, 5353)}:
                self.assertEqual(ip, node.internal)
                self.assertTrue(20000 <= port <= 29999 or 49152 <= port <= 65535, port)

    def test_signalling_between_nodes(self) -> None:
        """What answers on a signalling port knows its own namespace only, and nothing but signalling."""
        _, key = self.namespace(enabled=False)
        for node in self.nodes:
            host = f"{node.internal}:{node.state()['namespaces']['default']['sfu_signaling_port']}"
            for path in (ROOMS, STATUS, "/health", "/ready", "/v1/internal/report"):
                self.assertEqual(node.ask("GET", path, self.cluster.key, host=host).status, 404, path)
            stranger = connect(node, "r", key, host=host)
            self.assertEqual(stranger.until_closed(), 4404)
