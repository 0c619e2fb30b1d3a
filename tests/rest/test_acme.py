"""The ``httpreq`` form for challenges: who may, and what a real lego makes of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from base64 import b64encode
from pathlib import Path
from typing import Any

from attrs import evolve
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from orama.cluster.acme import Challenges
from orama.cluster.dns import DnsService, stored_records
from orama.cluster.keyring import ClusterKey, Keyring
from orama.cluster.signing import Verifier, sign
from orama.errors import BadRequest, Unavailable
from orama.net.tls import ServerCertificates
from orama.rest.acme import CHALLENGE, USER, AcmeResource, acme_routes, is_authorized
from orama.rest.internal import Gate, internal_site
from orama.settings import DnsSettings, Settings
from tests.cluster.test_zone import Node
from tests.ports import free_ports
from tests.rest.service import Answer, Listener, ask
from tests.store.databases import DatabaseCase, OnSQLite

PASSWORD = b"correct-horse\n"
NODE_ID = "node-1"
KEY = ClusterKey(0, b"k" * 32)
BODY = {"fqdn": "_acme-challenge.lab.example.", "value": "abc"}


def basic(user: str = USER, password: str = "correct-horse") -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


class AcmeResourceTests(TestCase):
    timeout = 120

    def setUp(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.raising: Exception | None = None
        self.gate = Gate(Verifier(Keyring([KEY]), reactor), NODE_ID)  # type: ignore[arg-type]
        routes = {"v1/internal/acme/present": AcmeResource(self.gate, self.change, PASSWORD)}
        self.base = Listener(self, site(routes)).base

    async def change(self, fqdn: str, value: str) -> None:
        if self.raising is not None:
            raise self.raising
        self.asked.append((fqdn, value))

    async def call(self, body: Any = BODY, headers: dict[str, str] | None = None, query: str = "") -> Answer:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"{self.base}/v1/internal/acme/present{query}"
        return await ask("POST", url, headers=basic() if headers is None else headers, data=content)

    async def test_present(self) -> None:
        """Name and value are handed on as they came."""
        answer = await self.call()
        self.assertEqual((answer.status, answer.json), (200, {"status": "ok"}))
        self.assertEqual(self.asked, [("_acme-challenge.lab.example.", "abc")])

    async def test_wrong_password(self) -> None:
        """Anything but the one user with the one password is 401, and says which scheme is wanted."""
        for headers in (
            {},
            basic(password=""),
            basic(password="correct-horse\n"),
            basic(user="root"),
            {"Authorization": "Basic !!!"},
            {"Authorization": "Basic"},
            {"Authorization": basic()["Authorization"].replace("Basic", "Bearer")},
            {"X-API-Key": "correct-horse"},
        ):
            answer = await self.call(headers=headers)
            self.assertEqual((answer.outcome, answer.header("WWW-Authenticate")), ((401, "wrong_password"), CHALLENGE))
        self.assertEqual(self.asked, [])

    async def test_signed(self) -> None:
        """A node of the cluster signs instead, for this node; a copy of that is refused."""
        content = json.dumps(BODY).encode()
        target = f"/v1/internal/acme/present?to={NODE_ID}"
        headers = sign(KEY.secret, "POST", target, content, "node-2", reactor.seconds())  # type: ignore[attr-defined]
        answers = [await self.call(headers=headers, query=f"?to={NODE_ID}") for _ in range(2)]
        self.assertEqual([answer.status for answer in answers], [200, 401])
        self.assertEqual(len(self.asked), 1)
        other = sign(KEY.secret, "POST", target[:-1] + "2", content, "node-2", reactor.seconds())  # type: ignore[attr-defined]
        answer = await self.call(headers=other, query=f"?to={NODE_ID[:-1]}2")
        self.assertEqual(answer.outcome, (409, "wrong_node"))
        target = target.partition("?")[0]
        nobody = sign(KEY.secret, "POST", target, content, "node-2", reactor.seconds())  # type: ignore[attr-defined]
        self.assertEqual((await self.call(headers=nobody)).outcome, (409, "wrong_node"))

    async def test_bad_bodies(self) -> None:
        """What is no object with two texts is 400; so is what the challenges do not like."""
        for body, code in (
            (b"{", "invalid_json"),
            ([], "invalid_request"),
            ({"fqdn": "x"}, "invalid_request"),
            ({"domain": "x", "token": "y", "keyAuth": "z"}, "invalid_request"),
            ({"fqdn": 1, "value": "x"}, "invalid_request"),
        ):
            self.assertEqual((await self.call(body)).outcome, (400, code))
        self.raising = BadRequest("invalid_fqdn", "no")
        self.assertEqual((await self.call()).outcome, (400, "invalid_fqdn"))
        self.raising = Unavailable("store_unavailable", "no")
        self.assertEqual((await self.call()).outcome, (503, "store_unavailable"))

    async def test_password_first(self) -> None:
        """Without the password nothing is said of the body."""
        self.assertEqual((await self.call(b"{", headers={})).status, 401)

    async def test_not_read(self) -> None:
        """There is nothing to get."""
        self.assertEqual((await ask("GET", f"{self.base}/v1/internal/acme/present")).status, 405)


class AuthorizedTests(SynchronousTestCase):
    @given(st.text())
    def test_total(self, given: str) -> None:
        """No other header is right, and none raises."""
        self.assertFalse(is_authorized(given, USER, PASSWORD.strip()))
        self.assertFalse(is_authorized(f"Basic {given}", USER, PASSWORD.strip()))

    def test_right(self) -> None:
        """The scheme is written as one likes (RFC 9110, 11.1)."""
        right = b64encode(b"orama:secret").decode()
        for header in (f"Basic {right}", f"basic  {right} "):
            self.assertTrue(is_authorized(header, USER, b"secret"))
        self.assertFalse(is_authorized("Basic " + b64encode(b"orama:").decode(), USER, b""))


def site(routes: Any) -> Any:
    return internal_site(
        reactor,  # type: ignore[arg-type]
        Settings(),
        routes,
        health=lambda: {},
        ready=lambda: "",
        metrics=lambda: b"",
    )


class Pebble(ProcessProtocol):
    """An authority for tests, which asks our DNS server."""

    def __init__(self) -> None:
        self.ready: Deferred[None] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self.output = b""

    def outReceived(self, data: bytes) -> None:
        self.output += data
        if b"Listening on" in self.output and b"ACME directory available" in self.output and not self.ready.called:
            self.ready.callback(None)

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        if not self.ready.called:
            self.ready.errback(AssertionError(self.output.decode(errors="replace")))
        self.ended.callback(None)


class LegoTests(OnSQLite, DatabaseCase):
    """lego gets a certificate from pebble, by our resources and our DNS server."""

    timeout = 300

    async def setUp(self) -> None:
        for program in ("lego", "pebble"):
            if shutil.which(program) is None:
                raise SkipTest(f"{program} is not here")
        await super().setUp()
        self.directory = Path(tempfile.mkdtemp(dir=Path.cwd()))
        settings = Settings(base_domain="lab.example", dns=DnsSettings(listen="127.0.0.1:0"))
        # A heartbeat so long that nothing is served in time but for the poke.
        settings = evolve(settings, cluster=evolve(settings.cluster, heartbeat=1000.0))
        nodes = [Node(NODE_ID, "127.0.0.1")]
        self.dns = DnsService(
            reactor, settings, lambda: stored_records(self.database), lambda: nodes, lambda _: True, random.Random()
        )
        self.dns.startService()
        self.addCleanup(self.dns.stopService)
        self.challenges = Challenges(self.database, "lab.example", reactor, self.dns.poke, 0.1)  # type: ignore[arg-type]
        self.addCleanup(self.challenges.stop)
        gate = Gate(Verifier(Keyring([KEY]), reactor), NODE_ID)  # type: ignore[arg-type]
        self.listener = Listener(self, site(acme_routes(gate, self.challenges, PASSWORD)))
        await self.start_pebble()

    async def start_pebble(self) -> None:
        self.port, management, http, tls = free_ports(4)
        certificates = ServerCertificates(self.directory / "ca", ["localhost", "127.0.0.1"], reactor)  # type: ignore[arg-type]
        certificates.context_factory()
        self.ca = next((self.directory / "ca").glob("*.crt"))
        config = {
            "listenAddress": f"127.0.0.1:{self.port}",
            "managementListenAddress": f"127.0.0.1:{management}",
            "certificate": str(self.ca),
            "privateKey": str(next((self.directory / "ca").glob("*.key"))),
            "httpPort": http,
            "tlsPort": tls,
        }
        file = self.directory / "pebble.json"
        file.write_text(json.dumps({"pebble": config}))
        program = shutil.which("pebble")
        assert program is not None
        command = [program, "-config", str(file), "-dnsserver", f"127.0.0.1:{self.dns.port}"]
        environment = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PATH": os.environ["PATH"]}
        pebble = Pebble()
        process: IProcessTransport = reactor.spawnProcess(pebble, program, command, environment)  # type: ignore[attr-defined]

        def end() -> Deferred[None]:
            if not pebble.ended.called:
                process.signalProcess("KILL")
            return pebble.ended

        self.addCleanup(end)
        await pebble.ready

    async def lego(self, *command: str) -> tuple[int, str]:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "LEGO_CA_CERTIFICATES": str(self.ca),
            "HTTPREQ_ENDPOINT": f"{self.listener.base}/v1/internal/acme",
            "HTTPREQ_USERNAME": USER,
            "HTTPREQ_PASSWORD": PASSWORD.decode().strip(),
        }
        options = ["--accept-tos", "--email", "t@lab.example", "--server", f"https://localhost:{self.port}/dir"]
        options += ["--path", str(self.directory / "lego"), "--dns", "httpreq", "--dns.disable-cp"]
        options += ["--dns.resolvers", f"127.0.0.1:{self.dns.port}"]
        options += ["--domains", "turn.ns-a.lab.example", "--domains", "*.turn.ns-a.lab.example"]
        program = shutil.which("lego")
        assert program is not None
        out, err, code = await getProcessOutputAndValue(program, [*options, *command], environment)
        return code, (out + err).decode()

    async def test_issue(self) -> None:
        """A name and its wildcard, which are two values of one record, are proven, and nothing is left."""
        code, said = await self.lego("run")
        self.assertEqual(code, 0, said)
        file = self.directory / "lego" / "certificates" / "turn.ns-a.lab.example.crt"
        certificate = x509.load_pem_x509_certificates(file.read_bytes())[0]
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(
            sorted(names.get_values_for_type(x509.DNSName)), ["*.turn.ns-a.lab.example", "turn.ns-a.lab.example"]
        )
        self.assertEqual(await stored_records(self.database), [])
