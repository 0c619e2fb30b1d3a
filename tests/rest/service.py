"""A real site on a loopback port, over a real database, with rooms that are only counted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import treq
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.iweb import IResponse
from twisted.web.resource import IResource

from orama.cluster.rooms import RoomRecord
from orama.cluster.turn_access import TurnAccess
from orama.errors import Unavailable
from orama.rest.auth import Authenticator
from orama.rest.site import Site, make_site
from orama.rest.tokens import Tokens, new_key
from orama.settings import Settings
from tests.cluster.nodes import StoredNode
from tests.store.databases import DatabaseCase, OnSQLite


class CountedRooms:
    """The SFU's rooms, without an SFU."""

    def __init__(self) -> None:
        self.here: dict[tuple[str, str], int] = {}
        self.closed: list[tuple[str, str, str]] = []
        self.broken = False
        self.asked: list[tuple[str, str, str | None]] = []
        self.figures: Mapping[str, Any] | None = None

    def create(self, namespace: str, room_id: str, max_participants: int) -> None:
        if self.broken:
            raise RuntimeError("no room can be made")
        self.here[namespace, room_id] = 0

    async def close(self, record: RoomRecord, reason: str) -> None:
        self.here.pop((record.namespace, record.room_id), None)
        self.closed.append((record.namespace, record.room_id, reason))

    async def stats(self, record: RoomRecord, peer_id: str | None) -> Mapping[str, Any] | None:
        self.asked.append((record.namespace, record.room_id, peer_id))
        if self.broken:
            raise Unavailable("node_unreachable", "nobody answers")
        return self.figures

    def participants(self, namespace: str, room_id: str) -> int:
        return self.here.get((namespace, room_id), 0)


class ServiceCase(OnSQLite, DatabaseCase):
    """A test with a site that serves the namespace ``tenant``.

    :ivar owner: an owner's key, :ivar member: a member's.
    """

    settings = Settings()

    async def setUp(self) -> None:
        await super().setUp()
        self.node = await StoredNode(self, self.database, self.clock, self.settings).join()
        self.namespaces = self.node.namespaces
        await self.namespaces.create("tenant")
        self.owner = (await self.namespaces.create_key("tenant", "owner")).text
        self.member = (await self.namespaces.create_key("tenant", "member")).text
        self.tokens = Tokens(self.settings.auth, new_key(), self.clock)
        self.authenticator = Authenticator(self.namespaces, self.tokens)
        self.rooms = CountedRooms()
        self.unready = ""
        self.serve(self.make_site())

    def make_site(self, signal: IResource | None = None) -> Site:
        return make_site(
            self.clock,
            self.settings,
            self.authenticator,
            self.namespaces,
            self.node.directory,
            self.rooms,
            signal=signal,
            health=lambda: {"status": "ok"},
            ready=lambda: self.unready,
            metrics=lambda: b"orama_rooms 1.0\n",
            observed=self.observed,
            access=TurnAccess(self.settings, self.namespaces, self.clock),
        )

    async def observed(self, namespace: str) -> Iterable[Mapping[str, Any]]:
        return [{"node_id": "node-1", "sfu_up": True, "turn_up": False}]

    def serve(self, site: Site) -> None:
        """Listen with *site*; ``self.base`` is its address from then on."""
        listener = Listener(self, site)
        self.base, self.port = listener.base, listener.port

    async def call(self, method: str, path: str, key: str | None = None, **options: Any) -> Answer:
        """Ask the site; *options* are treq's."""
        return await ask(method, self.base + path, key, **options)


class Answer:
    """A response whose body has been read."""

    def __init__(self, response: IResponse, body: bytes) -> None:
        self.status: int = response.code
        self.body = body
        #: Of ``Content-Length``, which the client does not show as a header.
        self.length: int = response.length
        self._response = response

    def header(self, name: str) -> str | None:
        values = self._response.headers.getRawHeaders(name)
        return None if values is None else ", ".join(values)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def outcome(self) -> tuple[int, str]:
        """The status and the stable code of an error."""
        return self.status, self.json["code"]


async def ask(method: str, url: str, key: str | None = None, **options: Any) -> Answer:
    headers = {**({"X-API-Key": key} if key is not None else {}), **options.pop("headers", {})}
    agent = Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False))
    response = await treq.request(method, url, headers=headers, agent=agent, **options)
    return Answer(response, await response.content())


class Listener:
    """*site* on a loopback port until the test is over, when no connection may be left."""

    def __init__(self, case: Any, site: Site) -> None:
        listening = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.port: int = listening.getHost().port
        self.base = f"http://127.0.0.1:{self.port}"
        case.addCleanup(listening.stopListening)


class Raw(Protocol):
    """A connection for requests that no client would send."""

    def __init__(self) -> None:
        self.received = b""
        self.closed: Deferred[bytes] = Deferred()
        self._waiting: list[tuple[bytes, Deferred[bytes]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        for wanted, waiting in self._waiting[:]:
            if wanted in self.received:
                self._waiting.remove((wanted, waiting))
                waiting.callback(self.received)

    def until(self, wanted: bytes) -> Deferred[bytes]:
        """What has come when *wanted* is in it."""
        waiting: Deferred[bytes] = Deferred()
        self._waiting.append((wanted, waiting))
        self.dataReceived(b"")
        return waiting

    def connectionLost(self, reason: Any = None) -> None:
        self.closed.callback(self.received)


def connect(port: int) -> Deferred[Raw]:
    connected: Deferred[Raw] = Deferred()

    class Factory(ClientFactory):
        noisy = False

        def buildProtocol(self, address: Any) -> Protocol:
            protocol = Raw()
            reactor.callLater(0, connected.callback, protocol)
            return protocol

    reactor.connectTCP("127.0.0.1", port, Factory())
    return connected
