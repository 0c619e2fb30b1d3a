"""Contract, section 3, row by row."""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from http.client import HTTPConnection
from ipaddress import ip_address
from urllib.parse import quote

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from tests.contract import signalling
from tests.contract.commands import OTHER, key, run, temporary
from tests.contract.rest import Answer, ask
from tests.contract.stage import INTERNAL, apart, end, shared, started, strict, toml
from tests.node import NodeProcess

CREDENTIALS = "/v1/webrtc/turn/credentials"
ROOMS = "/v1/webrtc/rooms"
SIGNAL = "/v1/webrtc/signal"
NAMESPACE = "/v1/namespace/webrtc"
ORIGIN = "https://app.example"
SAFE = {
    "Permissions-Policy": "camera=(self), microphone=(self)",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class RestTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = shared()

    def ask(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Answer:
        answer = ask(self.node, method, path, body, headers)
        for name, value in SAFE.items():
            self.assertEqual(answer.headers[name], value, (method, path))
        return answer

    def refused(self, answer: Answer, status: int, code: str) -> Answer:
        """An error as all of them are."""
        self.assertEqual((answer.status, answer.code), (status, code), answer.content)
        self.assertEqual(set(answer.json), {"error", "code"})
        self.assertEqual(answer.headers["Content-Type"], "application/json")
        self.assertNotIn("Traceback", answer.json["error"])
        return answer

    def member(self) -> dict[str, str]:
        """The headers of a member of ``default``."""
        return {"X-API-Key": key(self.node)}

    def node_with(self, *options: str, **tables: str) -> NodeProcess:
        """A node of the test's own."""
        node = started(*options, config=toml(**tables))
        self.addCleanup(end, node)
        return node


class CredentialsTests(RestTestCase):
    def test_answer(self) -> None:
        """uris in their order, a user name of expiry and namespace, a password, and the ttl of 600 s."""
        before = int(time.time())
        answer = self.ask("POST", CREDENTIALS, headers=self.member())
        self.assertEqual((answer.status, answer.headers["Content-Type"]), (200, "application/json"))
        self.assertEqual(set(answer.json), {"uris", "username", "password", "ttl"})
        udp, tcp, tls = answer.json["uris"]
        port = re.fullmatch(r"turn:127\.0\.0\.1:(\d+)\?transport=udp", udp)
        assert port is not None, udp
        self.assertEqual(tcp, f"turn:127.0.0.1:{port[1]}?transport=tcp")
        self.assertRegex(tls, r"^turns:127\.0\.0\.1:\d+$")
        expiry, _, namespace = answer.json["username"].partition(":")
        self.assertEqual((namespace, answer.json["ttl"]), ("default", 600))
        self.assertTrue(before + 600 <= int(expiry) <= time.time() + 600)
        self.assertEqual(answer.headers["Cache-Control"], "no-store")

    def test_base_domain(self) -> None:
        """With a base domain the host is turn.ns-{namespace}.{domain}, on the ports that the node has."""
        node = apart()
        self.assertEqual(
            [re.sub(r":\d+", ":PORT", uri) for uri in node.credentials()["uris"]],
            [
                "turn:turn.ns-default.orama.example:PORT?transport=udp",
                "turn:turn.ns-default.orama.example:PORT?transport=tcp",
                "turns:turn.ns-default.orama.example:PORT",
            ],
        )

    def test_self_signed_names(self) -> None:
        """Without a certificate of one's own, TURN over TLS serves one with the public IP and the namespace's name."""
        port = int(apart().credentials()["uris"][2].rpartition(":")[2])
        served = x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port)).encode())
        names = served.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertIn(ip_address("127.0.0.1"), names.get_values_for_type(x509.IPAddress))
        self.assertIn("turn.ns-default.orama.example", names.get_values_for_type(x509.DNSName))

    def test_seed_form(self) -> None:
        """The seed's own call: POST with a key and no body at all."""
        connection = HTTPConnection(self.node.authority)
        self.addCleanup(connection.close)
        connection.putrequest("POST", CREDENTIALS)
        connection.putheader("X-API-Key", self.node.key)
        connection.putheader("Content-Length", "0")
        connection.endheaders()
        self.assertEqual(connection.getresponse().status, 200)


class RoomsTests(RestTestCase):
    def test_life(self) -> None:
        """Created with 201, listed with its fields, refused a second time, deleted with 204, and then gone."""
        made = self.ask("POST", ROOMS, {"room_id": "life", "max_participants": 3})
        self.assertEqual(made.status, 201)
        self.assertEqual(set(made.json), {"room_id", "participants", "max_participants", "node_id", "created_at"})
        self.assertEqual((made.json["participants"], made.json["max_participants"]), (0, 3))
        self.assertRegex(made.json["created_at"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
        self.refused(self.ask("POST", ROOMS, {"room_id": "life"}), 409, "room_exists")
        listed = self.ask("GET", ROOMS, headers=self.member())
        self.assertEqual(set(listed.json), {"rooms"})
        self.assertIn(made.json, listed.json["rooms"])
        gone = self.ask("DELETE", f"{ROOMS}?room_id=life")
        self.assertEqual((gone.status, gone.content), (204, b""))
        self.refused(self.ask("DELETE", f"{ROOMS}?room_id=life"), 404, "room_not_found")

    def test_participants(self) -> None:
        """Joining makes a room and is counted."""
        client = signalling.join(self.node, "counted")
        self.addCleanup(client.close)
        [room] = [each for each in self.ask("GET", ROOMS).json["rooms"] if each["room_id"] == "counted"]
        self.assertEqual((room["participants"], room["max_participants"]), (1, 100))

    def test_delete_sends_everybody_away(self) -> None:
        """Everyone in a deleted room gets ``room-closed``, and the socket closes."""
        client = signalling.join(self.node, "closing")
        self.assertEqual(self.ask("DELETE", f"{ROOMS}?room_id=closing").status, 204)
        self.assertEqual(set(client.until("room-closed")), {"type", "reason"})
        self.assertEqual(client.until_closed(), 1000)

    def test_limit(self) -> None:
        """``max_participants`` holds: one more is ``room_full``, and fatal."""
        self.ask("POST", ROOMS, {"room_id": "small", "max_participants": 1})
        self.addCleanup(signalling.join(self.node, "small").close)
        client = signalling.connect(self.node, "small")
        client.say("join")
        error = client.until("error")
        self.assertEqual((error["code"], error["fatal"]), ("room_full", True))
        self.assertGreaterEqual(client.until_closed(), 1000)

    def test_owners_only(self) -> None:
        """A member may list rooms and neither make nor close one."""
        headers = self.member()
        self.assertEqual(self.ask("GET", ROOMS, headers=headers).status, 200)
        self.refused(self.ask("POST", ROOMS, {"room_id": "r"}, headers), 403, "forbidden")
        self.refused(self.ask("DELETE", f"{ROOMS}?room_id=r", headers=headers), 403, "forbidden")

    def test_room_ids(self) -> None:
        """1 to 128 of A-Z a-z 0-9 _ . : -"""
        for room_id in ("a", "A.b_c:d-9", "x" * 128):
            self.assertEqual(self.ask("POST", ROOMS, {"room_id": room_id}).status, 201)
            self.assertEqual(self.ask("DELETE", f"{ROOMS}?room_id={quote(room_id)}").status, 204)
        wrong: object
        for wrong in ("", "x" * 129, "a b", "a/b", "ä", "a\n", None, 7, ["a"], {}):
            self.assertEqual(self.ask("POST", ROOMS, {"room_id": wrong}).status, 400, wrong)
        self.assertEqual(self.ask("POST", ROOMS, {}).status, 400)
        self.assertEqual(self.ask("DELETE", ROOMS).status, 400)
        self.assertEqual(self.ask("DELETE", f"{ROOMS}?room_id=a%20b").status, 400)

    def test_limits_of_the_limit(self) -> None:
        """``max_participants`` is a positive whole number."""
        wrong: object
        for wrong in (0, -1, 1.5, "3", True, [], 10**9):
            self.assertEqual(self.ask("POST", ROOMS, {"room_id": "w", "max_participants": wrong}).status, 400, wrong)

    def test_bodies(self) -> None:
        """What is no JSON object is 400; what is too long is 413."""
        for body in (b"", b"{", b"[]", b"7", b'"r"', b"\xff\xfe", b'{"room_id": NaN}', b"[" * 30_000):
            answer = self.ask("POST", ROOMS, body)
            self.assertEqual(answer.status, 400, body[:20])
            self.assertEqual(set(answer.json), {"error", "code"})
        self.refused(self.ask("POST", ROOMS, b" " * 70_000), 413, "body_too_large")

    def test_other_tenant(self) -> None:
        """The same room id in two namespaces is two rooms; neither sees the other's."""
        owner = {"X-API-Key": key(self.node, OTHER, "owner")}
        self.assertEqual(self.ask("POST", ROOMS, {"room_id": "ours"}).status, 201)
        self.assertEqual(self.ask("GET", ROOMS, headers=owner).json, {"rooms": []})
        self.refused(self.ask("DELETE", f"{ROOMS}?room_id=ours", headers=owner), 404, "room_not_found")
        self.assertEqual(self.ask("POST", ROOMS, {"room_id": "ours"}, owner).status, 201)

    def test_empty_room_goes(self) -> None:
        """An empty room goes after its time, whether it was created or joined."""
        node = apart()
        ask(node, "POST", ROOMS, {"room_id": "created"})
        client = signalling.join(node, "joined")
        client.say("leave")
        client.until_closed()
        deadline = time.monotonic() + 60
        while ask(node, "GET", ROOMS).json["rooms"]:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.1)


class SignalTests(RestTestCase):
    def test_upgrade(self) -> None:
        """101 for who may come in, with the safe headers."""
        client = signalling.connect(self.node, "up")
        self.addCleanup(client.close)
        self.assertEqual(client.socket.status, 101)
        headers = client.socket.headers or {}
        self.assertEqual(headers["permissions-policy"], SAFE["Permissions-Policy"])
        self.assertNotIn("autobahn", str(headers).lower())

    def test_without_upgrade(self) -> None:
        """Anything else is an error in JSON that says which: 426, 401, 405."""
        self.refused(self.ask("GET", f"{SIGNAL}?room=r"), 426, "upgrade_required")
        self.refused(self.ask("GET", f"{SIGNAL}?room=r", headers={}), 401, "missing_credentials")
        answer = self.refused(self.ask("POST", f"{SIGNAL}?room=r"), 405, "method_not_allowed")
        self.assertEqual(answer.headers["Allow"], "GET")

    def test_origin(self) -> None:
        """A page of an origin that is not configured is closed with 4403; ours and the configured ones come in."""
        for origin, wanted in (
            (ORIGIN, 0),
            (f"http://{self.node.authority}", 0),
            ("https://evil.example", 4403),
            ("null", 4403),
            (f"{ORIGIN}.evil.example", 4403),
        ):
            client = signalling.connect(self.node, "origins", headers={"Origin": origin})
            self.addCleanup(client.close)
            if wanted:
                self.assertEqual(client.until_closed(), wanted, origin)
            else:
                client.say("join")
                client.until("welcome")

    def test_broken_handshakes(self) -> None:
        """A handshake that is none gets 400 or 426 and no socket."""
        good = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "X-API-Key": self.node.key,
        }
        for name, value, status in (
            ("Sec-WebSocket-Version", "8", 426),
            ("Sec-WebSocket-Key", "short", 400),
            ("Upgrade", "h2c", 426),
            ("Connection", "keep-alive", 400),
        ):
            self.assertEqual(self.ask("GET", f"{SIGNAL}?room=r", headers={**good, name: value}).status, status, name)


class NamespaceTests(RestTestCase):
    def test_off_and_on(self) -> None:
        """Disable and enable, each refused the second time; in between everything says ``webrtc_not_enabled``."""
        owner = temporary(self, self.node, "switched")
        client = signalling.Client(self.node, f"?room=r&api_key={owner['X-API-Key']}")
        client.say("join")
        client.until("turn-credentials")
        answer = self.ask("POST", f"{NAMESPACE}/disable", headers=owner)
        self.assertEqual((answer.status, set(answer.json)), (200, {"status", "namespace", "message"}))
        self.assertEqual(answer.json["namespace"], "switched")
        client.until("room-closed")
        client.until_closed()
        self.refused(self.ask("POST", f"{NAMESPACE}/disable", headers=owner), 409, "not_enabled")
        for method, path, body in (
            ("POST", CREDENTIALS, None),
            ("GET", ROOMS, None),
            ("POST", ROOMS, {"room_id": "r"}),
            ("DELETE", f"{ROOMS}?room_id=r", None),
            ("GET", f"{SIGNAL}?room=r", None),
        ):
            self.refused(self.ask(method, path, body, owner), 404, "webrtc_not_enabled")
        late = signalling.Client(self.node, f"?room=r&api_key={owner['X-API-Key']}")
        self.assertEqual(late.until_closed(), 4404)
        status = self.ask("GET", f"{NAMESPACE}/status", headers=owner)
        self.assertEqual((status.status, status.json["desired"]["enabled"]), (200, False))
        answer = self.ask("POST", f"{NAMESPACE}/enable", headers=owner)
        self.assertEqual((answer.status, set(answer.json)), (200, {"status", "namespace", "message"}))
        self.refused(self.ask("POST", f"{NAMESPACE}/enable", headers=owner), 409, "already_enabled")
        self.assertEqual(self.ask("POST", CREDENTIALS, headers=owner).status, 200)

    def test_owners_only(self) -> None:
        """A member may look at the status and change nothing."""
        headers = self.member()
        for what in ("enable", "disable"):
            self.refused(self.ask("POST", f"{NAMESPACE}/{what}", headers=headers), 403, "forbidden")
        self.assertEqual(self.ask("GET", f"{NAMESPACE}/status", headers=headers).status, 200)

    def test_status(self) -> None:
        """What is wanted and what is seen, and never the secret."""
        status = self.ask("GET", f"{NAMESPACE}/status", headers=self.member())
        self.assertEqual(status.json["namespace"], "default")
        self.assertTrue(status.json["desired"]["enabled"])
        [node] = status.json["observed"]["nodes"]
        self.assertEqual((node["sfu_up"], node["turn_up"]), (True, True))
        self.assertNotIn("secret", status.content.decode())

    def test_no_ports(self) -> None:
        """507 ``no_free_ports`` when no block is left; the namespace is then as it was."""
        node = self.node_with(turn="relay_ports = [61000, 61099]")
        done = run(node, "namespace", "create", "second")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertEqual(done.stderr.count("\n"), 1)
        self.assertEqual(
            json.loads(run(node, "namespace", "list", "--json").stdout)["namespaces"][0]["name"], "default"
        )
        self.assertEqual(ask(node, "POST", f"{NAMESPACE}/disable").status, 200)
        self.assertEqual(run(node, "namespace", "create", "second").returncode, 0)
        answer = ask(node, "POST", f"{NAMESPACE}/enable")
        self.refused(answer, 507, "no_free_ports")
        self.assertFalse(ask(node, "GET", f"{NAMESPACE}/status").json["desired"]["enabled"])


class OpenTests(RestTestCase):
    def test_internal(self) -> None:
        """Readiness and metrics exist on the internal address alone; liveness is everywhere."""
        node = apart()
        ports = [line for line in _listening() if line[0] == INTERNAL]
        inside = ""
        for host, port in ports:
            try:
                if ask(node, "GET", "/ready", headers={}, host=f"{host}:{port}").status == 200:
                    inside = f"{host}:{port}"
            except OSError:
                continue
        self.assertTrue(inside)
        for path in ("/ready", "/metrics"):
            self.assertEqual(ask(node, "GET", path, headers={}).status, 404)
            self.assertEqual(ask(node, "GET", path, headers={}, host=inside).status, 200)
            forwarded = ask(node, "GET", path, headers={"X-Forwarded-For": "192.0.2.1"}, host=inside)
            self.assertEqual(forwarded.status, 404)
        for host in ("", inside):
            health = ask(node, "GET", "/health", headers={}, host=host)
            self.assertEqual((health.status, health.json["status"]), (200, "ok"))

    def test_metrics(self) -> None:
        """The text format of Prometheus, with what issue asks to see, and no label for a user."""
        answer = self.ask("GET", "/metrics", headers={})
        self.assertTrue(answer.headers["Content-Type"].startswith("text/plain; version=0.0.4"))
        names = set(re.findall(r"(?m)^# TYPE (\S+) ", answer.content.decode()))
        for part in ("allocations", "bytes", "packets", "rooms", "peers", "forwarded", "retransmitted", "dropped"):
            self.assertTrue([name for name in names if part in name], part)
        self.assertTrue([name for name in names if "join" in name and "seconds" in name], names)
        self.assertTrue([name for name in names if "lag" in name], names)

    def test_description(self) -> None:
        """/v1/openapi.json describes every address of the contract, for anyone."""
        answer = self.ask("GET", "/v1/openapi.json", headers={})
        self.assertEqual(answer.status, 200)
        self.assertTrue(answer.json["openapi"].startswith("3."))
        described = {(method.upper(), path) for path, item in answer.json["paths"].items() for method in item}
        for row in (
            ("POST", CREDENTIALS),
            ("GET", ROOMS),
            ("POST", ROOMS),
            ("DELETE", ROOMS),
            ("POST", f"{NAMESPACE}/enable"),
            ("POST", f"{NAMESPACE}/disable"),
            ("GET", f"{NAMESPACE}/status"),
            ("GET", "/health"),
            ("GET", "/ready"),
            ("GET", "/metrics"),
        ):
            self.assertIn(row, described)
        # A WebSocket is no operation that OpenAPI knows: its address is described without one.
        self.assertIn(SIGNAL, answer.json["paths"])


class MethodTests(RestTestCase):
    def test_wrong_method(self) -> None:
        """405 with ``Allow``, everywhere."""
        for path, wrong, allowed in (
            (CREDENTIALS, "GET", {"POST"}),
            (ROOMS, "PUT", {"GET", "POST", "DELETE"}),
            (f"{NAMESPACE}/enable", "GET", {"POST"}),
            (f"{NAMESPACE}/disable", "DELETE", {"POST"}),
            (f"{NAMESPACE}/status", "POST", {"GET"}),
            ("/health", "POST", {"GET"}),
            ("/ready", "POST", {"GET"}),
            ("/metrics", "DELETE", {"GET"}),
            ("/v1/openapi.json", "PATCH", {"GET"}),
        ):
            answer = self.refused(self.ask(wrong, path), 405, "method_not_allowed")
            said = {each.strip() for each in answer.headers["Allow"].split(",")}
            self.assertEqual(said - {"HEAD", "OPTIONS"}, allowed, path)

    def test_nothing_there(self) -> None:
        """404 in JSON."""
        for path in ("/v1", "/v1/", "/v1/webrtc/nothing", "/v2/webrtc/rooms", "/%00", "/..%2f..%2fetc/passwd", "//"):
            self.refused(self.ask("GET", path), 404, "not_found")

    def test_no_http(self) -> None:
        """What is no HTTP is answered with 400 or hung up on, and others are served."""
        host, _, port = self.node.authority.rpartition(":")
        for junk in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET\r\n\r\n",
            b"\0" * 100,
            b"GET / HTTP/9.9\r\n\r\n",
        ):
            with socket.create_connection((host, int(port)), 5) as raw:
                raw.sendall(junk + b"\r\n\r\n")
                raw.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda raw=raw: raw.recv(4096), b""))  # type: ignore[misc]
            self.assertTrue(not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), answer[:80])
            self.assertNotIn(b"Traceback", answer)
        self.assertEqual(self.ask("GET", "/health").status, 200)


class CorsTests(RestTestCase):
    def test_configured_origin(self) -> None:
        """A configured origin may read answers, errors too; another may not."""
        for path, headers in ((ROOMS, {"X-API-Key": self.node.key}), (ROOMS, {})):
            answer = self.ask("GET", path, headers={**headers, "Origin": ORIGIN})
            self.assertEqual(answer.headers["Access-Control-Allow-Origin"], ORIGIN)
            self.assertIn("Origin", answer.headers["Vary"])
            answer = self.ask("GET", path, headers={**headers, "Origin": "https://evil.example"})
            self.assertIsNone(answer.headers["Access-Control-Allow-Origin"])

    def test_preflight(self) -> None:
        """A preflight names methods and the headers that carry credentials."""
        asked = {
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "DELETE",
            "Access-Control-Request-Headers": "authorization,content-type,x-api-key",
        }
        answer = self.ask("OPTIONS", ROOMS, headers=asked)
        self.assertEqual((answer.status, answer.headers["Access-Control-Allow-Origin"]), (204, ORIGIN))
        self.assertIn("DELETE", answer.headers["Access-Control-Allow-Methods"])
        named = answer.headers["Access-Control-Allow-Headers"].lower()
        for name in ("authorization", "content-type", "x-api-key"):
            self.assertIn(name, named)
        answer = self.ask("OPTIONS", ROOMS, headers={**asked, "Origin": "https://evil.example"})
        self.assertIsNone(answer.headers["Access-Control-Allow-Origin"])


class RateTests(RestTestCase):
    def test_too_fast(self) -> None:
        """429 with ``Retry-After`` above the configured rate; another address is served."""
        node = strict()
        answers = [ask(node, "GET", "/v1/openapi.json", headers={}, source="127.0.0.3") for _ in range(60)]
        self.assertEqual([answer.status for answer in answers[:50]], [200] * 50)
        refused = self.refused(next(answer for answer in answers if answer.status != 200), 429, "rate_limited")
        self.assertGreaterEqual(int(refused.headers["Retry-After"]), 1)
        self.assertEqual(ask(node, "GET", "/v1/openapi.json", headers={}, source="127.0.0.4").status, 200)


def _listening() -> list[tuple[str, int]]:
    """TCP listeners on this machine's IPv4."""
    found = []
    with open("/proc/net/tcp") as table:
        for line in table.readlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                ip, _, port = fields[1].partition(":")
                found.append((socket.inet_ntoa(bytes.fromhex(ip)[::-1]), int(port, 16)))
    return found
