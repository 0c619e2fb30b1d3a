"""Contract, section 1: options and their defaults, the first start, signals. ``tests.test_start`` has the refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
from functools import cache
from http.client import HTTPSConnection
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from websocket import create_connection

from tests.browser.certificates import issue
from tests.contract import signalling, turn
from tests.contract.rest import ask
from tests.contract.stage import directory, end, started
from tests.node import NodeProcess, environment

_UNSHARE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]


@cache
def unshared() -> bool:
    """Whether we get network namespaces here."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*_UNSHARE, "ip", "link"], capture_output=True, check=False).returncode == 0


@cache
def facts(*options: str) -> Any:
    """What ``alone`` finds of a node with these options."""
    command = [*_UNSHARE, sys.executable, "-m", "tests.contract.alone", str(directory()), *options]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, timeout=60, check=True)
    return json.loads(done.stdout)


class DefaultTests(SynchronousTestCase):
    """A node of which nothing is said, on a machine of its own."""

    def setUp(self) -> None:
        if not unshared():
            self.skipTest("no network namespaces here")

    def test_listeners(self) -> None:
        """HTTP on 127.0.0.1:6001, TURN on 3478 and 5349, SFU media from 20000 and signalling from 30000, no more."""
        self.assertEqual(
            facts()["listeners"],
            [
                "tcp 127.0.0.1 30000",
                "tcp 127.0.0.1 3478",
                "tcp 127.0.0.1 5349",
                "tcp 127.0.0.1 6001",
                "udp 127.0.0.1 20000",
                "udp 127.0.0.1 3478",
            ],
        )

    def test_data(self) -> None:
        """Everything is in ./orama-data, 0700, with files of 0600; SQLite, the key and the control socket are there."""
        modes = facts()["modes"]
        self.assertEqual(modes.pop("orama-data"), "0o700")
        self.assertEqual({name: mode for name, mode in modes.items() if mode not in ("0o600", "0o700")}, {})
        self.assertLessEqual({"orama-data/default.api-key", "orama-data/control.sock"}, set(modes))
        self.assertEqual(modes["orama-data/control.sock"], "0o600")

    def test_page(self) -> None:
        """One line has the URL of the room page; SIGTERM ends it with status 0."""
        found = facts()
        lines = [line for line in found["output"] if "http://127.0.0.1:6001/" in line]
        self.assertEqual(len(lines), 1)
        self.assertEqual(found["status"], 0)

    def test_public(self) -> None:
        """With a public address that is not loopback TURN binds every address; the rest stays on the internal one."""
        self.assertEqual(
            facts("--public-ip", "192.0.2.1", "--internal-ip", "127.0.0.2")["listeners"],
            [
                "tcp 0.0.0.0 3478",
                "tcp 0.0.0.0 5349",
                "tcp 127.0.0.1 6001",
                "tcp 127.0.0.2 30000",
                "tcp :: 3478",
                "tcp :: 5349",
                "udp 0.0.0.0 3478",
                "udp 127.0.0.2 20000",
                "udp :: 3478",
            ],
        )


class NodeTestCase(SynchronousTestCase):
    def node(self, *options: str, config: str = "") -> NodeProcess:
        made = started(*options, config=config)
        self.addCleanup(end, made)
        return made


class OptionTests(NodeTestCase):
    def test_file_and_command_line(self) -> None:
        """Every option can stand in the file, with - or _; the command line wins."""
        node = self.node("--base-domain", "b.example", config='base-domain = "a.example"\npublic_ip = "127.0.0.9"\n')
        uris = json.loads(node.request("POST", "/v1/webrtc/turn/credentials")[1])["uris"]
        self.assertTrue(uris[0].startswith("turn:turn.ns-default.b.example:"), uris)
        self.assertEqual(node.stop(), 0)

    def test_refused_internal_address(self) -> None:
        """0.0.0.0 and :: are no internal address, in the file as little as on the command line."""
        for options, config in ((("--internal-ip", "::"), ""), ((), 'internal_ip = "0.0.0.0"\n')):
            node = NodeProcess(directory(), *options, config=config)
            node.launch()
            self.assertEqual(node.wait(), 1)
            [line] = node.errors.splitlines()
            self.assertIn("every address", line)

    def test_bad_value(self) -> None:
        """A bad value stops the start with one line that names file, key and why."""
        node = NodeProcess(directory(), config='[turn]\ncredential_ttl = "long"\n')
        node.launch()
        self.assertEqual(node.wait(), 1)
        [line] = node.errors.splitlines()
        self.assertEqual(line, f"orama-webrtc: {node.config}: turn.credential_ttl: must be a whole number")

    def test_https(self) -> None:
        """An ssl: endpoint serves https and wss beside another endpoint."""
        files = issue(directory())
        certificate, key = files.certificate, files.private_key
        node = self.node(
            "--http",
            f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}",
            "--http",
            "tcp:0:interface=127.0.0.1",
        )
        self.assertTrue(node.url.startswith("https://127.0.0.1:"), node.url)
        context = ssl.create_default_context(cafile=str(files.authority))
        connection = HTTPSConnection(node.authority, context=context)
        self.addCleanup(connection.close)
        connection.request("GET", "/health")
        self.assertEqual(connection.getresponse().status, 200)
        url = f"wss://{node.authority}/v1/webrtc/signal?room=r&api_key={node.key}"
        client = create_connection(url, timeout=10, sslopt={"ca_certs": str(files.authority)})
        self.addCleanup(client.close)
        client.send('{"type": "join"}')
        self.assertEqual(json.loads(client.recv())["type"], "welcome")


class SignalTests(NodeTestCase):
    def test_reload_drops_nothing(self) -> None:
        """SIGHUP re-reads configuration and certificates: sockets and allocations go on, new ones get what is new."""
        node = self.node(config="[signaling]\nmessage_burst = 200\n")
        client = signalling.join(node, "r")
        relay = turn.of(node.credentials())
        self.addCleanup(relay.socket.close)
        self.assertEqual(relay.allocate().code, 0)
        node.config.write_text('[limits]\norigins = ["https://new.example"]\n')
        node.signal(signal.SIGHUP)
        node.wait_for("the configuration was read again")
        self.assertEqual(client.settled(), ["welcome", "turn-credentials"])
        self.assertEqual(relay.request(turn.REFRESH).code, 0)
        headers = {"Origin": "https://new.example", "X-API-Key": node.key}
        answer = ask(node, "GET", "/v1/webrtc/rooms", headers=headers)
        self.assertEqual(answer.headers["Access-Control-Allow-Origin"], "https://new.example")

    def test_drain(self) -> None:
        """SIGTERM tells everybody at once, lets nobody in, and ends with status 0 when the last one has left."""
        node = self.node()
        client = signalling.join(node, "r")
        late = signalling.connect(node, "r")
        node.signal(signal.SIGTERM)
        notice = client.until("server-draining")
        self.assertLessEqual(set(notice), {"type", "reason", "deadlineMs", "reconnectUrl"})
        self.assertTrue(20_000 < notice["deadlineMs"] <= 30_000, notice)
        self.assertEqual((late.until("server-draining")["reason"], late.until_closed()), (notice["reason"], 1001))
        new = signalling.connect(node, "r")
        new.say("join")
        new.until("server-draining")
        self.assertEqual(new.until_closed(), 1001)
        self.assertEqual(ask(node, "GET", "/ready", headers={}).status, 503)
        self.assertEqual(client.settled()[-1], "server-draining")
        client.say("leave")
        self.assertEqual(client.until_closed(), 1000)
        self.assertEqual(node.wait(), 0)

    def test_drain_with_a_peer_whose_socket_is_away(self) -> None:
        """Nobody waits for a socket that dropped before."""
        node = self.node()
        client, other = signalling.join(node, "r"), signalling.join(node, "r")
        client.drop()
        other.listen(0.2)
        node.signal(signal.SIGTERM)
        other.until("server-draining")
        other.say("leave")
        self.assertEqual(other.until_closed(), 1000)
        self.assertEqual(node.wait(), 0)

    def test_deadline(self) -> None:
        """Whoever stays is closed with 1001 at the deadline."""
        node = self.node(config="[signaling]\ndrain_deadline = 1\n")
        client = signalling.join(node, "r")
        node.signal(signal.SIGTERM)
        self.assertLessEqual(client.until("server-draining")["deadlineMs"], 1000)
        self.assertEqual(client.until_closed(), 1001)
        self.assertEqual(node.wait(), 0)
