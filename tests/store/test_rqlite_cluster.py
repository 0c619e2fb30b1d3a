"""The search for a node of rqlite that answers, and what is sent again when one does not."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from orama.store import rqlite_driver
from orama.store.rqlite_cluster import Address, Cluster, NoAnswer, NotAllowed, Session, Timeouts
from tests.node import environment

A, B, C = (Address("10.0.0.1", port) for port in (1, 2, 3))
SELECT = [["SELECT 1"]]
DONE = {"results": [{"columns": ["1"], "types": ["integer"], "values": [[1]]}]}


class OrderTests(SynchronousTestCase):
    """Which node is asked first."""

    def setUp(self) -> None:
        self.now = 100.0
        self.cluster = Cluster([A, B], seconds=lambda: self.now)

    def test_preferred(self) -> None:
        """The one that answered comes first, one that lost an answer last."""
        self.cluster.prefer(B)
        self.assertEqual(self.cluster.order, (B, A))
        self.cluster.avoid(B)
        self.assertEqual(self.cluster.order, (A, B))

    def test_leader(self) -> None:
        """The leader comes first; others that the cluster knows are asked too, and no longer when it forgets them."""
        self.cluster.learn([(B, False), (C, True)])
        self.assertEqual(self.cluster.order, (C, A, B))
        self.cluster.learn([(A, True)])
        self.assertEqual(self.cluster.order, (A, B))

    def test_leader_out_of_reach(self) -> None:
        """A leader that answers the others and not us is not asked first again and again."""
        self.cluster.prefer(B)
        self.cluster.learn([(A, True), (B, False)], away=[A])
        self.assertEqual(self.cluster.order, (B, A))

    def test_localhost(self) -> None:
        """What another machine calls localhost is not that machine here."""
        here = Address("localhost", 4001)
        self.cluster.learn([(here, True)])
        self.assertEqual(self.cluster.order, (A, B))
        local = Cluster([Address("127.0.0.1", 1)])
        local.learn([(here, True)])
        self.assertIn(here, local.order)

    def test_learns(self) -> None:
        """The nodes are looked for once, and again when somebody else turns out to lead, but not all the time."""
        self.assertTrue(self.cluster.wants_to_learn(forwarded=False))
        self.assertFalse(self.cluster.wants_to_learn(forwarded=True))
        self.now += 5
        self.assertFalse(self.cluster.wants_to_learn(forwarded=False))
        self.assertTrue(self.cluster.wants_to_learn(forwarded=True))


class Scripted:
    """An HTTP server that answers as *answer* says: status and body, or None for a connection that just ends."""

    def __init__(self, case: SynchronousTestCase, answer: Callable[[str], tuple[int, bytes] | None]) -> None:
        self.asked: list[str] = []
        scripted = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def do_GET(self) -> None:
                scripted.asked.append(self.path)
                said = answer(self.path)
                if said is None:
                    self.close_connection = True
                    return
                self.send_response(said[0])
                self.send_header("Content-Length", str(len(said[1])))
                self.end_headers()
                self.wfile.write(said[1])

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        self.address = Address("127.0.0.1", server.server_port)
        case.addCleanup(thread.join)
        case.addCleanup(server.server_close)
        case.addCleanup(server.shutdown)


def says(status: int, text: str | dict[str, Any]) -> Callable[[str], tuple[int, bytes]]:
    body = text.encode() if isinstance(text, str) else json.dumps(text).encode()
    return lambda path: (404, b"") if path.startswith("/nodes") else (status, body)


class SessionTests(SynchronousTestCase):
    """Whom a statement goes to when nodes do not do as they should."""

    def session(self, *nodes: Address, **options: Any) -> Session:
        self.now, self.slept = 0.0, 0
        timeouts = Timeouts(connect=1.0, write=0.2, read=0.2, election=5.0)
        cluster = Cluster(nodes, timeouts=timeouts, seconds=lambda: self.now, sleep=self.sleep, **options)
        session = Session(cluster)
        self.addCleanup(session.close)
        return session

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += 1

    def silent(self) -> Address:
        """A node that takes what comes and never answers."""
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        return Address("127.0.0.1", listening.getsockname()[1])

    def nobody(self) -> Address:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            return Address("127.0.0.1", taken.getsockname()[1])

    def test_nobody_there(self) -> None:
        """Where nobody listens, the next node is asked, also to write, and first from then on."""
        good = Scripted(self, says(200, DONE))
        session = self.session(self.nobody(), good.address)
        self.assertEqual(session.request("/db/execute", SELECT, reads=False), DONE)
        self.assertEqual(session.cluster.order[0], good.address)

    def test_all_away(self) -> None:
        """When nobody listens anywhere, that is said at once, of each."""
        nodes = self.nobody(), self.nobody()
        error = self.assertRaises(NoAnswer, self.session(*nodes).request, "/db/query", SELECT, True)
        self.assertEqual(str(error), "; ".join(f"{node}: Connection refused" for node in nodes))
        self.assertEqual(self.slept, 0)

    def test_silent(self) -> None:
        """Where no answer comes in time, what reads goes to the next node."""
        good = Scripted(self, says(200, DONE))
        session = self.session(self.silent(), good.address)
        self.assertEqual(session.request("/db/query", SELECT, reads=True), DONE)

    def test_write_in_doubt(self) -> None:
        """What writes is not sent twice when it may have been done."""
        cut = Scripted(self, lambda _: None)
        failed = Scripted(self, says(500, "read protobuf length: EOF"))
        lost = Scripted(self, says(200, {"results": [], "error": "leadership lost while committing log"}))
        for first in (self.silent(), cut.address, failed.address, lost.address):
            good = Scripted(self, says(200, DONE))
            session = self.session(first, good.address)
            error = self.assertRaises(NoAnswer, session.request, "/db/execute", SELECT, False)
            self.assertIn("it may have been written all the same", str(error))
            self.assertEqual(good.asked, [])
            session.request("/db/execute", SELECT, reads=False)
            self.assertNotEqual(good.asked, [])

    def test_election(self) -> None:
        """While there is no leader, what reads and what writes waits for one."""
        refusals = [
            (503, b"leader not found"),
            (200, b'{"results":[],"error":"not leader"}'),
            (
                200,
                b'{"results":[],"error":"node failed to process Execute on remote node: pool get: dial tcp: refused"}',
            ),
            (500, b"leader address: none"),
        ]

        def answer(path: str) -> tuple[int, bytes]:
            return refusals.pop() if refusals and path.startswith("/db") else (200, json.dumps(DONE).encode())

        session = self.session(Scripted(self, answer).address)
        self.assertEqual(session.request("/db/execute", SELECT, reads=False), DONE)
        self.assertEqual(self.slept, 4)

    def test_no_election(self) -> None:
        """Nobody waits for ever; and once it was in vain, nobody waits until somebody had an answer."""
        leads: list[bool] = []
        node = Scripted(self, lambda path: says(*((200, DONE) if leads else (503, "leader not found")))(path))
        session = self.session(node.address)
        self.assertRaises(NoAnswer, session.request, "/db/execute", SELECT, False)
        self.assertGreaterEqual(self.now, 5.0)
        slept = self.slept
        self.assertRaises(NoAnswer, session.request, "/db/execute", SELECT, False)
        self.assertEqual(self.slept, slept)
        leads.append(True)
        session.request("/db/execute", SELECT, reads=False)
        leads.clear()
        self.assertRaises(NoAnswer, session.request, "/db/execute", SELECT, False)
        self.assertGreater(self.slept, slept)

    def test_not_allowed(self) -> None:
        """Wrong credentials are no reason to ask another node."""
        session = self.session(Scripted(self, says(401, "")).address, user="me", password="Geheim77")
        error = self.assertRaises(NotAllowed, session.request, "/db/query", SELECT, True)
        self.assertNotIn("Geheim77", str(error))

    def test_closed_meanwhile(self) -> None:
        """A connection that the node has closed since its last use is not used to write."""
        node = Scripted(self, says(200, DONE))
        session = self.session(node.address)
        session.request("/db/execute", SELECT, reads=False)
        (line,) = session._lines.values()
        assert line.sock is not None
        line.sock.shutdown(socket.SHUT_RDWR)
        self.assertEqual(session.request("/db/execute", SELECT, reads=False), DONE)

    def test_machine_gone(self) -> None:
        """A machine that has lost its power says nothing at all: that is found out well before the answer is late."""
        if os.getuid() or not shutil.which("iptables") or not shutil.which("unshare"):
            raise SkipTest("only root can make a machine that says nothing, with unshare and iptables")
        program = [sys.executable, "-m", "tests.store.gone"]
        script = "ip link set lo up && iptables -V > /dev/null && exec " + shlex.join(program)
        done = subprocess.run(
            ["unshare", "-n", "sh", "-c", script],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if "Operation not permitted" in done.stderr:
            raise SkipTest("no network namespace can be made here")
        self.assertEqual(done.returncode, 0, done.stderr)
        idle, waiting = map(float, done.stdout.split())
        self.assertLess(idle, 4.0)
        self.assertLess(waiting, 5.0)

    def test_any_answer(self) -> None:
        """Whatever is answered gives an answer of rqlite's form or NoAnswer."""
        body = [b""]
        session = self.session(Scripted(self, lambda _: (200, body[0])).address)
        connection = rqlite_driver.connect(session.cluster)
        self.addCleanup(connection.close)
        values = st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["results", "error", "columns", "types", "values", "x"]), inner)
            ),
            max_leaves=10,
        )

        @settings(max_examples=60, deadline=None)
        @given(st.binary(max_size=40) | values.map(lambda value: json.dumps(value).encode()))
        def answered(said: bytes) -> None:
            body[0] = said
            try:
                cursor = connection.cursor()
                cursor.execute("SELECT 1")
                cursor.fetchall()
            except rqlite_driver.Error:
                pass

        answered()
