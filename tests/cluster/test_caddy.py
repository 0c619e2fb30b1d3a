"""Caddy asked for certificates: over random histories, and with Caddy, pebble and a TURN client for real."""

from __future__ import annotations

import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from hypothesis import settings as limits
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.names import dns, server
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

import tests
from orama.cluster import caddyfile
from orama.cluster.caddy import LAST_RETRY, Caddy
from orama.cluster.certificates import TurnCertificates
from orama.cluster.processes import processes
from orama.net.fabric import Fabric
from orama.net.tls import ServerCertificates
from orama.settings import CertificateSettings, Settings
from orama.turn.listeners import TurnService
from orama.turn.tenants import Tenants
from tests.browser.certificates import issue
from tests.cluster.caddies import MemoryCaddy
from tests.ports import free_ports

DOMAIN = "example.org"
HOSTS = tuple(f"turn.ns-{letter}.{DOMAIN}" for letter in "abc")
OTHERS = "{\n\temail me@example.org\n}\n\nexample.org {\n\trespond ok\n}\n"


class Histories(RuleBasedStateMachine):
    """Caddy goes away, refuses blocks and is slow; nodes crash; people edit. Their part of the file stays."""

    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp(prefix="orama-caddy-"))
        self.clock = Clock()
        self.file = self.top / "Caddyfile"
        self.file.write_text(OTHERS)
        self.others = OTHERS
        self.memory = MemoryCaddy(self.clock, self.file, self.top)
        self.memory.obtains = False
        self.wanted: frozenset[str] = frozenset()
        self.start()

    def teardown(self) -> None:
        """Whatever has been: once nothing is in the way, what is wanted is in the file and in Caddy."""
        try:
            self.memory.up, self.memory.refuses = True, "!"
            self.hurry()
            for _ in range(3):
                self.look()
                self.clock.advance(LAST_RETRY)
            assert caddyfile.blocks(self.file.read_text()).keys() == self.wanted
            assert caddyfile.blocks(self.memory.loaded).keys() == self.wanted
        finally:
            shutil.rmtree(self.top)

    def start(self) -> None:
        settings = CertificateSettings(caddyfile=str(self.file))
        self.caddy = Caddy(self.clock, settings, DOMAIN, self.memory.run)

    @rule(hosts=st.frozensets(st.sampled_from(HOSTS)))
    def want(self, hosts: frozenset[str]) -> None:
        self.wanted = hosts
        self.look()

    @rule()
    def look(self) -> None:
        self.caddy.want(self.wanted)

    @rule(seconds=st.sampled_from((1, 5, 60, 400)))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(up=st.booleans(), refuses=st.sampled_from(("!", *HOSTS)))
    def fail(self, up: bool, refuses: str) -> None:
        self.memory.up, self.memory.refuses = up, refuses

    @rule()
    def slow(self) -> None:
        if self.memory.slow is None:
            self.memory.slow = Deferred()

    @rule()
    def hurry(self) -> None:
        slow, self.memory.slow = self.memory.slow, None
        if slow is not None and not slow.called:
            slow.callback(None)

    @rule()
    def crash(self) -> None:
        """The node's process ends where it stands, and another begins."""
        Deferred.fromCoroutine(self.caddy.stop())
        self.memory.slow = None
        self.start()

    @rule(text=st.sampled_from(("# more\n", "more.example.net {\n}\n")))
    def edit(self, text: str) -> None:
        if text not in self.others:
            self.others = text + self.others
            self.file.write_text(text + self.file.read_text())

    @rule(host=st.sampled_from(HOSTS))
    def remove_by_hand(self, host: str) -> None:
        self.file.write_text(caddyfile.take(self.file.read_text(), (host,)))

    @invariant()
    def rest_stays(self) -> None:
        text = self.file.read_text()
        assert caddyfile.take(text, HOSTS) == self.others
        assert len(caddyfile.blocks(text)) == text.count("# BEGIN")


class HistoryTests(SynchronousTestCase):
    def test_histories(self) -> None:
        """What is wanted comes about in the end, and what is not ours is never changed."""
        run_state_machine_as_test(
            Histories, settings=limits(max_examples=60, stateful_step_count=25, deadline=None, print_blob=True)
        )


class _Program(ProcessProtocol):
    """A server that runs while a test does; ``ended`` fires when it has gone."""

    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()
        self.output = b""

    def outReceived(self, data: bytes) -> None:
        self.output += data

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(None)


class RealCaddyTests(TestCase):
    """Caddy from Debian gets certificates and renews them, and the TURN server serves them."""

    timeout = 240

    def setUp(self) -> None:
        if not shutil.which("caddy"):
            raise SkipTest("caddy is not installed")
        self.top = Path(self.mktemp()).resolve()
        self.top.mkdir()
        self.caddyfile = self.top / "Caddyfile"
        self.admin, self.http, self.https = free_ports(3)
        self.globals = [
            f"admin 127.0.0.1:{self.admin}",
            f"http_port {self.http}",
            f"https_port {self.https}",
            f"storage file_system {self.top / 'storage'}",
            "default_bind 127.0.0.1",
            "skip_install_trust",
        ]
        self.host = "turn.ns-a.lab.example"
        self.run = processes(reactor, 20)

    def start(self, *command: str, **environment: str) -> _Program:
        program = _Program()
        path = shutil.which(command[0])
        assert path is not None
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.top), **environment}
        process = reactor.spawnProcess(program, path, command, environment)  # type: ignore[attr-defined]

        def end() -> Deferred[None]:
            if process.pid is not None:
                process.signalProcess("KILL")
            return program.ended

        self.addCleanup(end)
        return program

    async def start_caddy(self, *more: str) -> _Program:
        self.caddyfile.write_text("{\n" + "".join(f"\t{line}\n" for line in (*self.globals, *more)) + "}\n")
        program = self.start("caddy", "run", "--config", str(self.caddyfile), "--adapter", "caddyfile")
        await self.until(lambda: listens(self.admin), program)
        return program

    async def start_turn(self, tls: str) -> tuple[TurnCertificates, int]:
        """A TURN server whose certificates come from Caddy, and its port for TLS."""
        settings = Settings(
            base_domain="lab.example",
            turn_port=0,
            turns_port=0,
            certificates=CertificateSettings(
                caddyfile=str(self.caddyfile),
                caddy_storage=str(self.top / "storage"),
                caddy_tls=tls,
            ),
        )
        served = ServerCertificates(self.top / "own", ("127.0.0.1",), reactor)
        certificates = TurnCertificates(reactor, settings, served, self.run)  # type: ignore[arg-type]
        self.addCleanup(lambda: Deferred.fromCoroutine(certificates.stop()))
        turn = TurnService(reactor, settings, Tenants("127.0.0.1"), Fabric(reactor), served)
        turn.startService()
        self.addCleanup(turn.stopService)
        return certificates, turn.tls_port

    async def until(self, condition: Callable[[], Any], program: _Program) -> None:
        """Look again until *condition* holds; the test's own time limit ends it."""
        while not condition():
            assert not program.ended.called, program.output.decode()
            await deferLater(reactor, 0.05, lambda: None)  # type: ignore[arg-type]

    async def obtained(self, certificates: TurnCertificates, program: _Program) -> dict[str, Any]:
        """Passes until the host has its certificate from Caddy; the report's row."""
        while True:
            await certificates.ensure((self.host,))
            (row,) = certificates.report()
            if row["source"] == "caddy":
                return row
            assert row["error"] is None, row
            assert not program.ended.called, program.output.decode()
            await deferLater(reactor, 0.1, lambda: None)  # type: ignore[arg-type]

    async def test_internal_issuer(self) -> None:
        """From enable to a renewal: the connection that stands stays, the next one sees the new certificate."""
        program = await self.start_caddy()
        before = self.caddyfile.read_bytes()
        certificates, port = await self.start_turn("issuer internal")
        await certificates.ensure((self.host,))
        first = await deferToThread(Turns, port, self.host)
        self.addCleanup(first.close)
        self.assertEqual(first.names, ["127.0.0.1", "localhost", self.host])
        row = await self.obtained(certificates, program)
        self.assertEqual((row["names"], row["error"]), ([self.host], None))
        second = await deferToThread(Turns, port, self.host)
        self.addCleanup(second.close)
        self.assertEqual(second.names, [self.host])
        # A renewal, as Caddy does it: another certificate in the same files.
        (file,) = (self.top / "storage").glob(f"certificates/*/{self.host}/{self.host}.crt")
        other = issue(self.top / "other")
        serial = second.serial
        file.with_suffix(".key").write_bytes(other.private_key.read_bytes())
        file.write_bytes(other.certificate.read_bytes())
        third = await deferToThread(Turns, port, self.host)
        self.addCleanup(third.close)
        self.assertNotEqual(third.serial, serial)
        for connection in (first, second, third):
            self.assertTrue(await deferToThread(connection.answers))
        # Those names do not fit, so that it is not what the next pass chooses.
        await certificates.ensure(())
        await self.until(lambda: self.caddyfile.read_bytes() == before, program)
        self.assertTrue(await deferToThread(first.answers))

    async def test_the_example(self) -> None:
        """``etc/Caddyfile`` is good for the Caddy that is installed, also with a block of ours."""
        example = Path(tests.__file__).resolve().parent.parent / "etc" / "Caddyfile"
        self.caddyfile.write_text(caddyfile.put(example.read_text(), self.host, "issuer internal"))
        status, output = await self.run(["caddy", "adapt", "--config", str(self.caddyfile)])
        self.assertEqual(status, 0, output)

    async def test_refused_for_real(self) -> None:
        """A block that Caddy cannot adapt comes out again, with Caddy's own words in the report."""
        program = await self.start_caddy()
        before = self.caddyfile.read_bytes()
        certificates, _ = await self.start_turn("no_such_option")
        await certificates.ensure((self.host,))
        await self.until(lambda: certificates.report()[0]["error"], program)
        self.assertIn("no_such_option", certificates.report()[0]["error"])
        self.assertEqual(self.caddyfile.read_bytes(), before)

    async def test_acme(self) -> None:
        """Caddy gets the host's certificate from an ACME server by http-01, and it is served with its chain."""
        if not shutil.which("pebble"):
            raise SkipTest("pebble is not installed")
        directory, management, names = free_ports(3)
        authority = issue(self.top / "pebble")
        answers = NameServer(names)
        self.addCleanup(answers.close)
        (self.top / "pebble.json").write_text(
            f"""{{"pebble": {{"listenAddress": "127.0.0.1:{directory}", "managementListenAddress":
            "127.0.0.1:{management}", "certificate": "{authority.certificate}", "privateKey":
            "{authority.private_key}", "httpPort": {self.http}, "tlsPort": {self.https}}}}}"""
        )
        self.start(
            *("pebble", "-config", str(self.top / "pebble.json"), "-dnsserver", f"127.0.0.1:{names}"),
            PEBBLE_VA_NOSLEEP="1",
            PEBBLE_WFE_NONCEREJECT="0",
        )
        program = await self.start_caddy(
            f"acme_ca https://localhost:{directory}/dir", f"acme_ca_root {authority.authority}", "email t@lab.example"
        )
        await self.until(lambda: listens(directory), program)
        certificates, port = await self.start_turn("")
        row = await self.obtained(certificates, program)
        self.assertEqual(row["names"], [self.host])
        connection = await deferToThread(Turns, port, self.host)
        self.addCleanup(connection.close)
        self.assertIn("Pebble", connection.issuer)
        self.assertTrue(await deferToThread(connection.answers))


class Turns:
    """A client's connection to TURN over TLS, which stays. Every call blocks."""

    def __init__(self, port: int, name: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._socket = context.wrap_socket(
            socket.create_connection(("127.0.0.1", port), 10), server_hostname=name, suppress_ragged_eofs=False
        )
        certificate = x509.load_der_x509_certificate(self._socket.getpeercert(True) or b"")
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.names = sorted(str(getattr(name, "value", name)) for name in names)
        self.serial = certificate.serial_number
        self.issuer = certificate.issuer.rfc4514_string()

    def answers(self) -> bool:
        """Whether a STUN Binding request is answered on this connection."""
        request = bytes.fromhex("000100002112a442") + b"orama-tests!"
        self._socket.sendall(request)
        header = self._socket.recv(20)
        body = self._socket.recv(int.from_bytes(header[2:4], "big"))
        return header[:2] == b"\x01\x01" and header[4:] == request[4:] and len(body) > 0

    def close(self) -> None:
        self._socket.close()


class Everywhere:
    """A resolver that says of every name that it is 127.0.0.1: all that an ACME server asks."""

    def query(self, query: dns.Query, timeout: object = None) -> Deferred[Any]:
        answers = []
        if query.type == dns.A:
            answers = [dns.RRHeader(query.name.name, dns.A, payload=dns.Record_A("127.0.0.1"))]
        return succeed((answers, [], []))


class NameServer:
    """That resolver on a UDP port."""

    def __init__(self, port: int) -> None:
        factory = server.DNSServerFactory(clients=[Everywhere()])
        protocol = dns.DNSDatagramProtocol(factory)
        factory.noisy = protocol.noisy = False
        self._port = reactor.listenUDP(port, protocol, "127.0.0.1")  # type: ignore[attr-defined]

    def close(self) -> Any:
        return self._port.stopListening()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
