"""Asking the nodes of an environment over real sockets, with real signatures."""

from __future__ import annotations

import json
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from orama.cli import asking
from orama.cli.asking import Answer, ask, limited, skew
from orama.cli.control import Control, Failed
from orama.cli.environments import Address, Environment
from orama.cluster.keyring import Keyring
from orama.cluster.signing import Verifier
from orama.errors import NotAuthenticated
from tests.cli.clusters import report


class Clock:
    """The machine's, and *ahead* seconds."""

    def __init__(self, ahead: float) -> None:
        self.ahead = ahead

    def seconds(self) -> float:
        return time.time() + self.ahead


class NodeServer:
    """What a node answers on its internal address, in threads.

    :param value: its report; its clock is in there.
    :param ahead: seconds that its clock is ahead of ours.
    """

    def __init__(self, case: SynchronousTestCase, keyring: Keyring, value: Any, ahead: float = 0.0) -> None:
        clock = Clock(ahead - 60)  # what was signed before a node started is refused, so this one started a minute ago
        verifier = Verifier(keyring, clock)
        clock.ahead = ahead
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:
                try:
                    self.asked.append(verifier.check("GET", handler.path, dict(handler.headers.items()), b""))
                    status, body = 200, value() if callable(value) else value
                except NotAuthenticated as error:
                    status, body = 401, {"error": error.message, "code": error.code}
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                handler.send_response(status)
                handler.end_headers()
                handler.wfile.write(content)

            def date_time_string(handler, timestamp: float | None = None) -> str:
                return super().date_time_string(clock.seconds())

            def log_message(handler, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = Address("127.0.0.1", server.server_address[1])
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        case.addCleanup(thread.join)
        case.addCleanup(server.server_close)
        case.addCleanup(server.shutdown)


class AskTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.key = Path(self.mktemp())
        self.keyring = Keyring.keep(self.key)

    def node(self, value: Any = None, ahead: float = 0.0, keyring: Keyring | None = None) -> NodeServer:
        value = (lambda: report("n1", now=time.time() + ahead)) if value is None else value
        return NodeServer(self, keyring or self.keyring, value, ahead)

    def ask(self, *addresses: Address, timeout: float = asking.TIMEOUT) -> tuple[Answer, ...]:
        self.progress: list[tuple[int, int]] = []
        environment = Environment("test", addresses, self.key)
        return ask(Control(Path("/nowhere")), environment, lambda *done: self.progress.append(done), timeout)

    def test_report(self) -> None:
        """A node takes the signature and answers; it is called what it calls itself."""
        node = self.node()
        [found] = self.ask(node.address)
        self.assertEqual((found.node, found.address, found.error), ("n1", str(node.address), ""))
        assert found.report is not None and found.raw is not None and found.skew is not None
        self.assertEqual(found.raw["capacity"]["cpus"], 2)
        self.assertLess(abs(found.skew), 1)
        self.assertEqual(node.asked, [asking.OPERATOR])

    def test_order(self) -> None:
        """The answers come in the order of the environment, whoever was first; progress is told for each."""
        late = Event()
        slow = self.node(lambda: late.wait(5) and report("n1"))
        fast = self.node(lambda: late.set() or report("n2"))  # type: ignore[func-returns-value]
        found = self.ask(slow.address, fast.address)
        self.assertEqual([each.node for each in found], ["n1", "n2"])
        self.assertEqual(self.progress, [(0, 2), (1, 2), (2, 2)])

    def test_refused(self) -> None:
        """Where nobody listens that is said, and the node goes by its address."""
        with socket.create_server(("127.0.0.1", 0)) as gone:
            address = Address("127.0.0.1", gone.getsockname()[1])
        [found] = self.ask(address)
        self.assertEqual((found.node, found.report, found.error), (str(address), None, "connection refused"))

    def test_wrong_key(self) -> None:
        """A node of another cluster refuses, in its own words."""
        other = Keyring.keep(Path(self.mktemp()))
        [found] = self.ask(self.node(keyring=other).address)
        self.assertIn("not signed with the key of this cluster", found.error)

    def test_clock(self) -> None:
        """How far a clock is off is known, also when the node refuses us for it."""
        [ahead] = self.ask(self.node(ahead=12).address)
        self.assertLess(abs((ahead.skew or 0) - 12), 1)
        [refusing] = self.ask(self.node(ahead=-100).address)
        self.assertIsNone(refusing.report)
        self.assertIn("it refuses", refusing.error)
        self.assertLess(abs((refusing.skew or 0) + 100), 2.5)

    def test_no_node(self) -> None:
        """Something else that answers there is no node, and a report that cannot be read counts for nothing."""
        for value, text in (
            (b"<html>", "no node answers there: HTTP 200"),
            (b"[" * 100_000, "no node answers there"),
            ([], "its report cannot be read"),
            ({"node": {}}, "its report cannot be read: node_id"),
        ):
            [found] = self.ask(self.node(value).address)
            self.assertIsNone(found.report)
            self.assertIn(text, found.error)

    def test_no_http(self) -> None:
        """What speaks no HTTP is an error of that node alone."""
        with socket.create_server(("127.0.0.1", 0)) as server:

            def speak() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"SSH-2.0-x\r\n")

            thread = Thread(target=speak)
            thread.start()
            good, bad = self.ask(self.node().address, Address("127.0.0.1", server.getsockname()[1]))
            thread.join()
        self.assertIsNotNone(good.report)
        self.assertIsNone(bad.report)
        self.assertTrue(bad.error)

    def test_slow(self) -> None:
        """A node that answers a byte now and then is given up when its time is over."""
        stop = Event()

        def speak() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while not stop.wait(0.02):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        with socket.create_server(("127.0.0.1", 0)) as server:
            thread = Thread(target=speak)
            thread.start()
            began = time.monotonic()
            [found] = self.ask(Address("127.0.0.1", server.getsockname()[1]), timeout=0.3)
            self.assertLess(time.monotonic() - began, 5)
            stop.set()
            thread.join()
        self.assertEqual(found.error, "no answer in time")

    def test_key_file(self) -> None:
        """A key that cannot be read is one line that names the file."""
        self.key.chmod(0o644)
        self.assertIn(str(self.key), str(self.assertRaises(Failed, self.ask, Address("127.0.0.1", 1))))
        self.key.unlink()
        error = self.assertRaises(Failed, self.ask, Address("127.0.0.1", 1))
        self.assertEqual(error.code, "no_cluster_key")


class LimitTests(SynchronousTestCase):
    def test_bytes_one_by_one(self) -> None:
        """Whoever sends a byte now and then is not waited for longer than for who sends none."""
        one, other = socket.socketpair()
        stop = Event()

        def drip() -> None:
            while not stop.wait(0.02):
                try:
                    other.send(b"x")
                except OSError:
                    return

        thread = Thread(target=drip)
        thread.start()
        began = time.monotonic()
        with one, other:
            self.assertRaises(TimeoutError, self.read, one)
            stop.set()
            thread.join()
        self.assertLess(time.monotonic() - began, 5)

    def read(self, sock: socket.socket) -> None:
        with limited(sock, 0.2):
            while sock.recv(1):
                pass


class SkewTests(SynchronousTestCase):
    def test_within(self) -> None:
        """A time between question and answer tells nothing; one outside tells by how much at least."""
        for now, expected in ((10.0, 0.0), (12.0, 0.0), (9.0, -1.0), (13.5, 1.5)):
            self.assertEqual(skew(now, 10.0, 12.0), expected)
