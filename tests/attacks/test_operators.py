"""What strangers put where operators look or work: names in logs, metrics and tables, and the doors that are theirs."""

from __future__ import annotations

import json
import re
import socket
import stat
import time
from collections.abc import Iterator

import click
from twisted.trial.unittest import SynchronousTestCase

from orama.cli.main import main
from tests.attacks.stage import NAUGHTY_REQUESTS, AttackTestCase, address, narrow, opened, probe
from tests.contract import turn
from tests.contract.commands import run, secret
from tests.contract.rest import ask
from tests.node import NodeProcess

#: What SQL, shells and templates would take for more than text.
QUOTES = (
    "' OR '1'='1", "default'--", '"; DROP TABLE namespaces; --', "default\\", "%27", "${jndi:ldap://x}", "{{7*7}}",
    "../../etc/passwd", "a`id`", "$(id)", "default' UNION SELECT secret FROM namespace_webrtc_config --",
)  # fmt: skip
#: What printf, terminals and parsers of logs would take for more than text.
FORMATS = (
    "%s%n%x", "{user}{log_failure}", "{0.__class__}", "line\nfeed", "carriage\r\nreturn 2026-01-01T00:00:00 [-] FAKE",
    "null\0byte", "\x1b]0;title\x07\x1b[31mred", "\u2028line\u2029", "\x85next", "💩" * 20, "\u202egnp.exe", "x" * 480,
)  # fmt: skip
_METRIC = re.compile(r'[a-z_:]+(\{([a-z_]+="[^"\n]*",?)*\})? [-+0-9.eEinfNa]+')
_TEXT_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[")


class QuoteTests(AttackTestCase):
    """CVE-2018-4056 (SQL in coturn's web login), GHSA-v8hj-2xx7-xmp5 and bfacd816 (4.12.0): text is text."""

    def attacked(self) -> NodeProcess:
        return opened()

    def test_user_names(self) -> None:
        """CVE-2018-4056: quotes in a user name and in a realm name nobody: 401; in the user's part they are a user."""
        client = self.client().known()
        expiry, realm = int(time.time()) + 60, client.realm
        for text in QUOTES:
            client.username = f"{expiry}:{text}"
            self.assertEqual(client.forged(turn.ALLOCATE, [(turn.REQUESTED_TRANSPORT, turn.UDP)]), 401, text)
            client.realm = text.encode()
            self.assertIn(client.forged(turn.ALLOCATE, [(turn.REQUESTED_TRANSPORT, turn.UDP)]), (400, 401), text)
            client.realm = realm
            user = self.client(username=f"{expiry}:default:{text}")
            self.assertEqual(user.allocate().code, 0, text)
            user.release()
        client.nonce = b""

    def test_keys_and_rooms(self) -> None:
        """GHSA-v8hj-2xx7-xmp5: quotes in API keys, tokens, rooms and bodies are 401, 400 or 404, and change nothing."""
        rooms = "/v1/webrtc/rooms"
        for text in QUOTES:
            plain = text.encode().decode("latin-1")
            for headers in ({"X-API-Key": f"ak_x:{plain}"}, {"Authorization": f"Bearer {plain}"}):
                self.assertEqual(ask(self.node, "GET", rooms, headers=headers).status, 401, text)
            self.assertEqual(ask(self.node, "POST", rooms, {"room_id": text}).status, 400, text)
            quoted = "".join(f"%{byte:02X}" for byte in text.encode())
            self.assertIn(ask(self.node, "DELETE", f"{rooms}?room_id={quoted}").status, (400, 404), text)
        self.assertEqual(ask(self.node, "GET", rooms).json, {"rooms": []})

    def test_namespaces(self) -> None:
        """bfacd816 (4.12.0), the operator's side: a namespace's name is a DNS label; what is none is refused."""
        for text in QUOTES[:3]:
            done = run(self.node, "namespace", "create", text)
            self.assertEqual((done.returncode, done.stdout), (1, ""), text)
        listed = json.loads(run(self.node, "namespace", "list", "--json").stdout)
        self.assertLessEqual({each["name"] for each in listed["namespaces"]}, {"default", "other"})


class LogTests(AttackTestCase):
    """GHSA-4g7c-p5wg-j4hp, 8fa38032 (4.13.0), #1870: a name in a log is one line, and no format."""

    def said_of(self, node: NodeProcess, text: str, source: str) -> list[str]:
        """What the node says while *text* is a user name, proven and not, and a realm."""
        self.node = node
        marks = [self.mark(node, source)]
        expiry = int(time.time()) + 60
        named = probe(node, f"{expiry}:default:{text}", source=source)
        self.addCleanup(named.release)
        named.known()
        realm = named.realm
        for forged in (text.encode(), b"x" * 763):
            named.realm = forged
            self.assertIn(named.forged(turn.ALLOCATE, [(turn.REQUESTED_TRANSPORT, turn.UDP)]), (400, 401))
        named.realm = realm
        # Names with control characters may be refused for what they are (RFC 8265, 4.2).
        if named.forged(turn.ALLOCATE, [(turn.REQUESTED_TRANSPORT, turn.UDP)]) == 0:
            self.assertEqual(named.code(turn.REFRESH, (turn.LIFETIME, bytes(4))), 0)
        named.nonce = b""
        marks.append(self.mark(node, source))
        lines = node.output
        first, last = (next(at for at, line in enumerate(lines) if mark in line and "ended" in line) for mark in marks)
        return lines[first + 1 : last]

    def mark(self, node: NodeProcess, source: str) -> str:
        """Make a line with a name that nobody else has; gives that."""
        name = f"mark{time.monotonic_ns()}"
        client = probe(node, f"{int(time.time()) + 60}:default:{name}", source=source)
        self.assertEqual(client.allocate().code, 0)
        client.release()
        while "ended" not in node.wait_for(name):
            pass
        return name

    def test_text(self) -> None:
        """GHSA-4g7c-p5wg-j4hp: each event of a text log is one line from its time on, without control characters."""
        for text in FORMATS:
            lines = self.said_of(opened(), text, "")
            self.assertLessEqual(len(lines), 3, text)
            for line in lines:
                self.assertTrue(_TEXT_LINE.match(line), line)
                self.assertFalse(any(ord(character) < 32 or 127 <= ord(character) < 160 for character in line), line)
                self.assertNotIn("Unable to format", line)

    def test_json(self) -> None:
        """coturn #1870: in a JSON log each line is an object, whatever stands in it; the user is a field of it."""
        for number, text in enumerate(FORMATS):
            for line in self.said_of(narrow(), text, f"127.62.{number}.1"):
                event = json.loads(line)
                self.assertNotIn("Unable to format", event["message"])
                if "user" in event and not event["user"].startswith("mark"):
                    self.assertEqual(event["user"], text)

    def test_metrics(self) -> None:
        """coturn #666, #861, #919: no name of a user, and nothing that is no line of Prometheus, is in the metrics."""
        self.node = opened()
        for text in (*FORMATS, *QUOTES):
            client = self.client(username=f"{int(time.time()) + 60}:default:{text}")
            client.known().forged(turn.ALLOCATE, [(turn.REQUESTED_TRANSPORT, turn.UDP)])
            client.release()
        metrics = ask(self.node, "GET", "/metrics", headers={}).content.decode()
        lines = [line for line in metrics.splitlines() if not line.startswith("#")]
        self.assertEqual([line for line in lines if not _METRIC.fullmatch(line)], [])
        self.assertFalse(any(text in metrics for text in (*FORMATS[:3], *QUOTES[:3])))


class DoorTests(AttackTestCase):
    """CVE-2018-4059 (coturn's telnet console without a password), #1830, #1932."""

    def attacked(self) -> NodeProcess:
        return opened()

    def test_no_default_password(self) -> None:
        """CVE-2018-4059: nothing that somebody would guess opens the API, with any way to say who one is."""
        for word in ("", "admin", "root", "password", "orama", "default", "coturn", "ak_default:default", ":", "null"):
            for headers in (
                {"X-API-Key": word},
                {"Authorization": f"ApiKey {word}"},
                {"Authorization": f"Bearer {word}"},
                {"Authorization": "Basic YWRtaW46YWRtaW4="},
            ):
                for path in ("/v1/webrtc/rooms", "/v1/namespace/webrtc/status"):
                    self.assertEqual(ask(self.node, "GET", path, headers=headers).status, 401, (word, path))

    def test_no_way_to_the_control_socket(self) -> None:
        """CVE-2018-4059: operators ask a socket of mode 0600 in a directory of mode 0700, which no network has."""
        control = self.node.data / "control.sock"
        self.assertEqual(stat.S_IMODE(control.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.node.data.stat().st_mode), 0o700)
        for path in ("/v1/control/namespaces", "/v1/control/turn/secret?namespace=default", "/v1/control/keys"):
            self.assertIn(ask(self.node, "GET", path).status, (401, 403, 404), path)

    def test_guesses_are_slowed_down(self) -> None:
        """coturn #1932 asks for a lockout: after its burst an address gets 429 for its guesses, other ones do not."""
        self.node = narrow()
        statuses = {
            ask(
                self.node, "GET", "/v1/webrtc/rooms", headers={"X-API-Key": f"ak_{number}:default"}, source="127.66.0.6"
            ).status
            for number in range(NAUGHTY_REQUESTS + 20)
        }
        self.assertEqual(statuses, {401, 429})
        self.assertEqual(ask(self.node, "GET", "/v1/webrtc/rooms", source="127.66.0.7").status, 200)

    def test_secrets_are_in_no_log(self) -> None:
        """coturn #1830: no secret, password or key that was used here stands in the log or on stderr."""
        client = self.allocated()
        client.release()
        wrong = self.client()
        wrong.password = "a-wrong-password"
        self.assertEqual(wrong.allocate().code, 401)
        ask(self.node, "GET", "/v1/webrtc/rooms", headers={"X-API-Key": "ak_a-wrong-key:default"})
        text = "\n".join(self.node.said()) + self.node.errors
        for word in (secret(self.node), self.node.key, client.password, "a-wrong-password", "a-wrong-key"):
            self.assertNotIn(word, text)

    def test_admin_paths_on_the_stun_port(self) -> None:
        """coturn had its web admin on the STUN port: here there is nothing behind an HTTP request over TLS either."""
        stream = turn.unchecked().wrap_socket(socket.create_connection(address(self.node, "tls"), turn.PATIENCE))
        self.addCleanup(stream.close)
        stream.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            self.assertEqual(stream.recv(100), b"")
        except ConnectionError:
            pass


class FileTests(SynchronousTestCase):
    """coturn e72930f5 (4.13.0): ``psd`` of the console wrote a file wherever somebody wanted."""

    def commands(self, group: click.Group, path: str = "orama") -> Iterator[tuple[str, click.Command]]:
        for name, each in group.commands.items():
            if isinstance(each, click.Group):
                yield from self.commands(each, f"{path} {name}")
            else:
                yield f"{path} {name}", each

    def test_no_command_names_a_file_to_write(self) -> None:
        """coturn e72930f5: the files that commands name are read: the cluster key and the list of environments."""
        assert isinstance(main, click.Group)
        found = dict(self.commands(main))
        self.assertGreater(len(found), 10)
        for name, each in found.items():
            files = {
                option.name
                for option in each.params
                if isinstance(option.type, click.Path | click.File)
                or re.search("file|path|output|dump", option.name or "")
            }
            self.assertLessEqual(files, {"data_dir", "cluster_key", "environments"}, name)
            self.assertFalse([option for option in each.params if isinstance(option.type, click.File)], name)

    def test_no_question_names_a_file(self) -> None:
        """coturn e72930f5: nor does what the control socket takes: a field that it does not know is 400."""
        path = opened().data / "control.sock"
        for field in ("file", "path", "output", "psd"):
            body = json.dumps({"namespace": "default", "role": "member", field: "/tmp/x"}).encode()
            with socket.socket(socket.AF_UNIX) as control:
                control.connect(str(path))
                head = f"POST /v1/control/keys HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                control.sendall(head.encode() + body)
                self.assertEqual(control.recv(65536)[:12], b"HTTP/1.1 400", field)
