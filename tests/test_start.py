"""A node starts whole or not at all, says why not in one line, and leaves when it is told to."""

from __future__ import annotations

import json
import re
import signal
import socket
import sqlite3
import stat
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from websocket import WebSocket, create_connection

from tests.node import PATIENCE, NodeProcess


class NodeTestCase(SynchronousTestCase):
    def node(self, *options: str, config: str = "", twistd: tuple[str, ...] = ()) -> NodeProcess:
        # Not in trial's directory: the address of a Unix socket has 108 bytes.
        directory = Path(mkdtemp(prefix="orama-"))
        self.addCleanup(rmtree, directory)
        return NodeProcess(directory, *options, config=config, twistd=twistd)

    def started(self, *options: str, config: str = "") -> NodeProcess:
        node = self.node(*options, config=config).start()
        self.addCleanup(node.stop)
        return node

    def refused(self, node: NodeProcess) -> str:
        """The one line on stderr of a start that failed, with exit status 1 and nothing served."""
        node.launch()
        self.assertEqual(node.wait(), 1, node.output)
        [line] = node.errors.splitlines()
        self.assertFalse([each for each in node.output if "Traceback" in each or "orama is ready" in each])
        self.assertTrue(line.startswith("orama-webrtc: "), line)
        return line.removeprefix("orama-webrtc: ").replace(str(node.directory), "DIR")


class RefusedTests(NodeTestCase):
    def taken(self, kind: int) -> int:
        """A port that somebody has, outside the ranges that a node keeps for itself."""
        for port in range(12000, 13000):
            taken = socket.socket(socket.AF_INET, kind)
            try:
                taken.bind(("127.0.0.1", port))
            except OSError:
                taken.close()
                continue
            self.addCleanup(taken.close)
            if kind == socket.SOCK_STREAM:
                taken.listen()
            return port
        raise AssertionError("every port from 12000 on is taken")

    def test_wrong_reactor(self) -> None:
        """Any reactor but asyncio's is refused."""
        line = self.refused(self.node(twistd=("--reactor=select",)))
        self.assertRegex(line, r"^needs the asyncio reactor, but .*SelectReactor is installed: ")

    def test_configuration(self) -> None:
        """A configuration that cannot be used is named with key and reason."""
        self.assertEqual(
            self.refused(self.node(config="turn_prot = 1")),
            "DIR/orama.toml: turn_prot: unknown key, did you mean turn_port?",
        )
        self.assertRegex(self.refused(self.node(config="a =")), r"^DIR/orama.toml: is not TOML: ")
        node = self.node()
        node.config.unlink()
        self.assertEqual(self.refused(node), "DIR/orama.toml: cannot be read: No such file or directory")

    def test_internal_ip(self) -> None:
        """The internal address is one address, and one of this machine."""
        self.assertEqual(
            self.refused(self.node("--internal-ip", "0.0.0.0")),
            "--internal-ip: 0.0.0.0 is every address; one address is needed",
        )
        self.assertEqual(
            self.refused(self.node("--internal-ip", "192.0.2.1")),
            "--internal-ip 192.0.2.1: Cannot assign requested address",
        )

    def test_busy_http(self) -> None:
        """A busy HTTP port ends the start."""
        port = self.taken(socket.SOCK_STREAM)
        endpoint = f"tcp:{port}:interface=127.0.0.1"
        self.assertEqual(
            self.refused(self.node("--http", endpoint)), f"--http {endpoint}: 127.0.0.1:{port}: Address already in use"
        )

    def test_busy_second_http(self) -> None:
        """One busy port of two is enough."""
        endpoint = f"tcp:{self.taken(socket.SOCK_STREAM)}:interface=127.0.0.1"
        line = self.refused(self.node("--http", "tcp:0:interface=127.0.0.1", "--http", endpoint))
        self.assertIn("Address already in use", line)

    def test_busy_turn(self) -> None:
        """So does a busy TURN port, over UDP, TCP and TLS."""
        for option, kind in (
            ("--turn-port", socket.SOCK_DGRAM),
            ("--turn-port", socket.SOCK_STREAM),
            ("--turns-port", socket.SOCK_STREAM),
        ):
            port = self.taken(kind)
            line = self.refused(self.node(option, str(port)))
            self.assertEqual(line, f"127.0.0.1:{port}: Address already in use")

    def test_endpoints(self) -> None:
        """What is no endpoint, or names files that are not there, is refused before anything is bound."""
        self.assertRegex(self.refused(self.node("--http", "nonsense:1")), r"^--http nonsense:1: is no endpoint: ")
        self.assertRegex(
            self.refused(self.node("--http", "ssl:0:privateKey=/nowhere/k.pem:certKey=/nowhere/c.pem")),
            r"^--http ssl:0:.*: /nowhere/.\.pem: No such file or directory$",
        )

    def test_certificate(self) -> None:
        """A TURN certificate that is not there is named."""
        config = '[turn]\ncertificate = "/nowhere/c.pem"\nprivate_key = "/nowhere/k.pem"\n'
        self.assertEqual(self.refused(self.node(config=config)), "/nowhere/c.pem: No such file or directory")

    def test_jwt_keys(self) -> None:
        """A JWT key that is not there is named."""
        line = self.refused(self.node(config='[auth]\njwt_keys = ["/nowhere/k.pem"]\n'))
        self.assertIn("/nowhere/k.pem", line)

    def test_data_directory_of_another_version(self) -> None:
        """A data directory that another version wrote is left alone."""
        node = self.node()
        node.data.mkdir()
        (node.data / "VERSION").write_text("99\n")
        self.assertEqual(self.refused(node), "data directory DIR/data is of version '99', this program reads version 1")
        self.assertEqual({file.name for file in node.data.iterdir()} - {".lock"}, {"VERSION"})

    def test_database_of_another_version(self) -> None:
        """So is a database that a newer program has upgraded."""
        node = self.node()
        self.assertEqual(node.start().stop(), 0)
        with sqlite3.connect(node.data / "orama.db") as database:
            database.execute("UPDATE alembic_version SET version_num = 'from the future'")
        database.close()
        self.assertIn("newer version (from the future)", self.refused(node))

    def test_data_directory_is_none(self) -> None:
        """A file where the data directory should be is named."""
        node = self.node()
        node.data.write_text("")
        self.assertRegex(self.refused(node), r"^data directory DIR/data: ")

    def test_database_url(self) -> None:
        """A database that cannot be used is named; the URL's password is not."""
        self.assertIn("database", self.refused(self.node("--database", "nonsense")))

    def test_database_away(self) -> None:
        """A database that does not answer is waited for and named, its password is not; SIGTERM ends the wait."""
        node = self.node("--database", "postgresql+psycopg://u:sesame@127.0.0.1:1/x")
        node.launch()
        line = node.wait_for("waiting: ")
        self.assertIn("127.0.0.1", line)
        self.assertEqual(node.stop(), 0)
        self.assertNotIn("sesame", "".join(node.output) + node.errors)

    def test_data_directory_in_use(self) -> None:
        """Two nodes never share a data directory, and the first one goes on."""
        first = self.started()
        second = NodeProcess(first.directory / "second", "--data-dir", str(first.data))
        self.assertIn("another process is using it", self.refused(second))
        self.assertEqual(first.request("GET", "/health")[0], 200)


class FirstStartTests(NodeTestCase):
    def test_from_nothing(self) -> None:
        """Without any configuration ``default`` is there with WebRTC, and the page and the key's file are named."""
        node = self.started()
        self.assertRegex(node.url, r"^http://127\.0\.0\.1:\d+/\?room=lobby&join=1$")
        self.assertRegex(node.key, r"^ak_\w+:default$")
        self.assertEqual(node.request("GET", "/")[0], 200)
        status, body = node.request("GET", "/v1/namespace/webrtc/status")
        self.assertEqual((status, json.loads(body)["enabled"]), (200, True))
        self.assertEqual(len(node.credentials()["uris"]), 3)
        self.assertTrue([line for line in node.output if str(node.data / "default.api-key") in line])
        self.assertNotIn(node.key, "\n".join(node.output))
        self.assertEqual(node.errors, "")

    def test_second_start(self) -> None:
        """A second start finds all of it again."""
        node = self.node()
        self.assertEqual(node.start().stop(), 0)
        key, node_id = node.key, (node.data / "node.id").read_text()
        again = NodeProcess(node.directory).start()
        self.addCleanup(again.stop)
        self.assertEqual((again.key, (again.data / "node.id").read_text()), (key, node_id))
        self.assertEqual(again.request("GET", "/v1/webrtc/rooms")[0], 200)
        self.assertFalse([line for line in again.output if "owner key" in line])

    def test_modes(self) -> None:
        """The data directory is ours alone, and so is every file in it."""
        node = self.started()
        self.assertEqual(stat.S_IMODE(node.data.stat().st_mode), 0o700)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in node.data.rglob("*") if not file.is_dir()}
        self.assertEqual({name: oct(mode) for name, mode in modes.items() if mode & 0o077}, {})
        self.assertIn("default.api-key", modes)

    def test_several_endpoints(self) -> None:
        """Every --http is served; the first one is announced."""
        path = Path(self.mktemp()).absolute()
        node = self.started("--http", "tcp:0:interface=127.0.0.1", "--http", f"unix:{path}")
        self.assertEqual(node.request("GET", "/health")[0], 200)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            self.assertTrue(client.recv(100).startswith(b"HTTP/1.1 200 "))


class SignalTests(NodeTestCase):
    def test_terminate(self) -> None:
        """SIGTERM and SIGINT end a node with status 0."""
        for number in (signal.SIGTERM, signal.SIGINT):
            node = self.started()
            node.signal(number)
            self.assertEqual((node.wait(), node.errors), (0, ""))

    def joined(self, node: NodeProcess) -> WebSocket:
        """A client in a room of *node*."""
        client = create_connection(
            f"ws://{node.authority}/v1/webrtc/signal?room=r&api_key={node.key}", timeout=PATIENCE
        )
        self.addCleanup(client.close)
        client.send('{"type": "join"}')
        self.heard(client, "turn-credentials")
        return client

    def heard(self, client: WebSocket, kind: str) -> dict[str, Any]:
        message: dict[str, Any] = {}
        while message.get("type") != kind:
            message = json.loads(client.recv())
        return message

    def test_drain(self) -> None:
        """On SIGTERM a peer is told and has its time; nobody new gets in; the process ends when the last one leaves."""
        node = self.started()
        client = self.joined(node)
        node.signal(signal.SIGTERM)
        self.assertGreater(self.heard(client, "server-draining")["deadlineMs"], 20_000)
        late = create_connection(f"ws://{node.authority}/v1/webrtc/signal?room=r&api_key={node.key}", timeout=PATIENCE)
        self.addCleanup(late.close)
        late.send('{"type": "join"}')
        self.assertEqual(json.loads(late.recv())["type"], "server-draining")
        self.assertEqual(late.recv_data()[1][:2], (1001).to_bytes(2, "big"))
        self.assertIsNone(node.process.poll())
        client.send('{"type": "leave"}')
        self.assertEqual((node.wait(), node.errors), (0, ""))

    def test_drain_deadline(self) -> None:
        """Who does not leave is put out with 1001 when the time is over."""
        node = self.started(config="[signaling]\ndrain_deadline = 1\n")
        client = self.joined(node)
        node.signal(signal.SIGTERM)
        self.heard(client, "server-draining")
        self.assertEqual(client.recv_data()[1][:2], (1001).to_bytes(2, "big"))
        self.assertEqual((node.wait(), node.errors), (0, ""))

    def test_second_signal(self) -> None:
        """A second signal does not wait for anybody."""
        node = self.started()
        client = self.joined(node)
        node.signal(signal.SIGTERM)
        self.heard(client, "server-draining")
        node.signal(signal.SIGTERM)
        self.assertEqual(client.recv_data()[1][:2], (1001).to_bytes(2, "big"))
        self.assertEqual((node.wait(), node.errors), (0, ""))

    def test_reload(self) -> None:
        """SIGHUP re-reads the configuration; the node goes on."""
        node = self.started(config="[sfu]\nmax_participants = 5\n")
        node.config.write_text("[limits]\nmax_body = 2048\n[sfu]\nmedia_block = 100\n")
        node.signal(signal.SIGHUP)
        line = node.wait_for("waits for the next start")
        self.assertTrue(line.endswith(": sfu.media_block, sfu.max_participants"), line)
        self.assertEqual(node.request("GET", "/health")[0], 200)
        self.assertEqual(node.request("POST", "/v1/webrtc/rooms", {"room_id": "a" * 3000})[0], 413)

    def test_reload_of_nonsense(self) -> None:
        """A configuration that is wrong by then changes nothing, and the log says why."""
        node = self.started()
        node.config.write_text("nonsense = 1\n")
        node.signal(signal.SIGHUP)
        self.assertRegex(node.wait_for("nonsense"), r"nonsense: unknown key")
        self.assertEqual(node.request("GET", "/health")[0], 200)


class LogTests(NodeTestCase):
    def test_json(self) -> None:
        """With JSON logs every line on stdout is an object, from the first to the last."""
        node = self.started("--log-format", "json")
        self.assertEqual(node.stop(), 0)
        events = [json.loads(line) for line in node.output]
        self.assertTrue(all({"time", "level", "namespace", "message"} <= event.keys() for event in events))
        [ready] = [event for event in events if event["message"].startswith("orama is ready: ")]
        self.assertEqual(ready["url"], node.url)

    def test_text(self) -> None:
        """Text is Twisted's."""
        node = self.started()
        self.assertEqual(node.stop(), 0)
        form = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[\S+\] ")
        self.assertEqual([line for line in node.output if not form.match(line)], [])
