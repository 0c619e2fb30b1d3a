"""What WebRTC needs to be there first: RQLite with a leader, Olric, the gateway; asked for real, all at once.

RQLite answers at ``/readyz`` (and says at ``/status`` who leads), Olric speaks RESP, the gateway has ``/health``.
Which of them are needed is what the configuration says: with a database of another kind it is that one which is
asked, and an Olric that nobody named is not missed.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from attrs import field, frozen
from OpenSSL.SSL import Connection as TLSConnection
from sqlalchemy import literal, select
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import connectProtocol
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from orama.cluster.exchange import Exchange, NoAnswer, tcp_endpoint, within
from orama.errors import OramaError, PreconditionFailed
from orama.settings import Settings
from orama.store.database import Database

#: Seconds that each has to answer.
TIMEOUT = 2.0
RQLITE, OLRIC, GATEWAY, DATABASE = "rqlite", "olric", "gateway", "database"

#: Where rqlited has its HTTP interface when nobody says.
RQLITE_PORT = 4001

_SHOWN = {RQLITE: "RQLite", OLRIC: "Olric", GATEWAY: "the gateway", DATABASE: "the database"}
#: A simple answer in RESP is one short line.
_MAX_LINE = 512

_log = Logger()


@frozen
class Prerequisite:
    """One of them.

    :ivar place: where it is asked, without a password; empty where nobody said.
    :ivar required: whether WebRTC waits for it.
    :ivar detail: how it is, or exactly why it is not.
    """

    name: str
    ok: bool
    required: bool
    detail: str
    place: str = field(default="", kw_only=True)

    def as_report(self) -> dict[str, Any]:
        """As it stands in the report of a node."""
        return {"name": self.name, "ok": self.ok, "required": self.required, "detail": self.detail}


class _Missing(Exception):
    """It answers, and says that it is not ready; or it does not answer as it should."""


async def probe(settings: Settings, reactor: Any, own_gateway_url: str, database: Database) -> list[Prerequisite]:
    """Ask all of them at once, in :data:`TIMEOUT` seconds. Never raises.

    :param own_gateway_url: this node's own gateway, for when the configuration names no other.
    """
    wanted = settings.cluster
    places = [wanted.rqlite] if wanted.rqlite else rqlite_places(settings.database or "")
    gateway = wanted.gateway or own_gateway_url
    # Our own gateway's certificate may be for names that we do not know; nothing is told to it but "GET /health".
    policy = None if wanted.gateway else _AnyCertificate()
    asking = {OLRIC: _olric(reactor, wanted.olric), GATEWAY: _gateway(reactor, gateway, policy)}
    if not rqlite_places(settings.database or ""):
        asking = {DATABASE: _database(reactor, database), **asking}
    if places:
        asking = {RQLITE: _rqlite(reactor, places), **asking}
    answers = [Deferred.fromCoroutine(_safely(name, each)) for name, each in asking.items()]
    return list(await gatherResults(answers))


async def _safely(name: str, asking: Awaitable[Prerequisite]) -> Prerequisite:
    """What *asking* comes to, or that it could not be asked: a mistake of ours must not hide the others."""
    try:
        return await asking
    except Exception:
        _log.failure("{name} could not be asked", name=name)
        return Prerequisite(name, False, name != OLRIC, "could not be asked; the log says why")


def require(prerequisites: Iterable[Prerequisite]) -> None:
    """:raises PreconditionFailed: ``cluster_not_ready``; the text names each that is missing, and why."""
    missing = [
        f"{_SHOWN[each.name]}{f' at {each.place}' if each.place else ''} {each.detail}"
        for each in prerequisites
        if each.required and not each.ok
    ]
    if missing:
        raise PreconditionFailed("cluster_not_ready", "; ".join(missing))


def rqlite_places(database_url: str) -> list[str]:
    """The HTTP addresses in the URL of an RQLite database; none when it is of another kind."""
    try:
        url = urlsplit(database_url)
    except ValueError:
        return []
    if url.scheme.partition("+")[0] != RQLITE:
        return []
    login, at, hosts = url.netloc.rpartition("@")
    return [f"http://{login}{at}{_with_port(host)}" for host in hosts.split(",") if host]


def _with_port(host: str) -> str:
    return host if re.search(r":\d+\Z", host) else f"{host}:{RQLITE_PORT}"


async def _rqlite(reactor: Any, places: Sequence[str]) -> Prerequisite:
    """Ready when one of *places* is."""
    asking = [Deferred.fromCoroutine(_rqlite_at(Exchange(reactor), urlsplit(place))) for place in places]
    answers = await gatherResults(asking)
    ready = next((answer for answer in answers if answer.ok), None)
    if ready is not None or len(answers) == 1:
        return ready or answers[0]
    return Prerequisite(RQLITE, False, True, "; ".join(f"{answer.place} {answer.detail}" for answer in answers))


async def _rqlite_at(exchange: Exchange, url: SplitResult) -> Prerequisite:
    place = _netloc(url)
    try:
        return Prerequisite(RQLITE, True, True, f"leader {await _leader(exchange, url)}", place=place)
    except NoAnswer as error:
        return Prerequisite(RQLITE, False, True, f"does not answer: {error.why}", place=place)
    except _Missing as error:
        return Prerequisite(RQLITE, False, True, str(error), place=place)


async def _leader(exchange: Exchange, url: SplitResult) -> str:
    base, headers = f"{url.scheme}://{_netloc(url)}", _login(url)
    status, content = await exchange.ask("GET", f"{base}/readyz", headers, None, TIMEOUT)
    if status != 200:
        said = content[:_MAX_LINE].decode("ascii", "replace").replace("[+]", "").strip().splitlines()
        if status == 503 and any(line.startswith("leader does not") for line in said):
            raise _Missing("has no leader")
        raise _Missing(f"answers HTTP {status}: {said[-1]}" if status == 503 and said else f"answers HTTP {status}")
    try:
        _, content = await exchange.ask("GET", f"{base}/status", headers, None, TIMEOUT)
        return str(json.loads(content)["store"]["leader"]["addr"])
    except (NoAnswer, ValueError, TypeError, KeyError):
        return "known"


async def _gateway(reactor: Any, place: str, policy: IPolicyForHTTPS | None) -> Prerequisite:
    if not place:
        return Prerequisite(GATEWAY, False, True, "is not there yet")
    url = urlsplit(place)
    try:
        address = f"{url.scheme}://{_netloc(url)}/health"
        status, _ = await Exchange(reactor, policy).ask("GET", address, _login(url), None, TIMEOUT)
    except NoAnswer as error:
        return Prerequisite(GATEWAY, False, True, f"does not answer: {error.why}", place=_netloc(url))
    return Prerequisite(GATEWAY, status == 200, True, f"answers HTTP {status}", place=_netloc(url))


async def _olric(reactor: Any, place: str) -> Prerequisite:
    if not place:
        return Prerequisite(OLRIC, True, False, "not used")
    login, _, address = place.rpartition("@")
    host, _, port = address.rpartition(":")
    try:
        await _ping(reactor, host.strip("[]"), int(port), unquote(login.rpartition(":")[2]))
    except NoAnswer as error:
        return Prerequisite(OLRIC, False, True, f"does not answer: {error.why}", place=address)
    except _Missing as error:
        return Prerequisite(OLRIC, False, True, str(error), place=address)
    return Prerequisite(OLRIC, True, True, "answers PING", place=address)


async def _ping(reactor: Any, host: str, port: int, password: str) -> None:
    commands = [["AUTH", password]] if password else []
    resp = _Resp([*commands, ["PING"]])
    endpoint = tcp_endpoint(reactor, host, port)
    try:
        await within(TIMEOUT, reactor, Deferred.fromCoroutine(_connected(endpoint, resp)))
    finally:
        resp.close()


async def _connected(endpoint: IStreamClientEndpoint, resp: _Resp) -> None:
    await connectProtocol(endpoint, resp)
    lines = await resp.answers
    for line in lines:
        if line.startswith(b"-"):
            raise _Missing(f"answers {line[1:120].decode('ascii', 'replace')}")
    if lines[-1] != b"+PONG":
        raise _Missing("does not answer as Olric does")


class _Resp(Protocol):
    """Sends *commands* (RESP arrays of bulk strings) and takes one line for each; after an error, no more.

    :ivar answers: the lines.
    """

    def __init__(self, commands: Sequence[Sequence[str]]) -> None:
        self._commands = commands
        self._received = b""
        self.answers: Deferred[list[bytes]] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        for command in self._commands:
            words = [word.encode() for word in command]
            parts = [b"*%d\r\n" % len(words), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)]
            self.transport.write(b"".join(parts))

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        *lines, rest = self._received.split(b"\r\n")
        if self.answers.called:
            return
        if len(lines) >= len(self._commands) or any(line.startswith(b"-") for line in lines):
            self.answers.callback(lines)
        elif len(rest) > _MAX_LINE:
            self.answers.errback(_Missing("does not answer as Olric does"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.answers.called:
            self.answers.errback(reason)

    def close(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()


async def _database(reactor: Any, database: Database) -> Prerequisite:
    try:
        reading = database.read(lambda connection: connection.execute(select(literal(1))).scalar())
        await within(TIMEOUT, reactor, reading)
    except NoAnswer as error:
        return Prerequisite(DATABASE, False, True, f"does not answer: {error.why}")
    except OramaError as error:
        return Prerequisite(DATABASE, False, True, f"cannot be read: {error.message}")
    return Prerequisite(DATABASE, True, True, "answers")


def _netloc(url: SplitResult) -> str:
    """Host and port, without who asks."""
    return url.netloc.rpartition("@")[2]


def _login(url: SplitResult) -> dict[str, str]:
    if url.username is None:
        return {}
    text = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return {"Authorization": f"Basic {b64encode(text.encode()).decode()}"}


@implementer(IOpenSSLClientConnectionCreator)
class _Unverified:
    def __init__(self, host: bytes) -> None:
        self._host = host

    def clientConnectionForTLS(self, protocol: object) -> TLSConnection:
        connection = TLSConnection(CertificateOptions().getContext(), None)
        host = self._host.decode("ascii")
        if not (isIPAddress(host) or isIPv6Address(host)):
            connection.set_tlsext_host_name(self._host)  # without the name, a proxy has no certificate to show
        return connection


@implementer(IPolicyForHTTPS)
class _AnyCertificate:
    """For asking ourselves."""

    def creatorForNetloc(self, hostname: bytes, port: int) -> _Unverified:
        return _Unverified(hostname)
