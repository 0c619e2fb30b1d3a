"""The way from a process of this host to its node: questions and one long stream over the control socket.

For processes that have a reactor; those that have none use the standard library (:mod:`orama.lease`). Whoever opens a
stream that ends, opens it again: the node may be between two lives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool, ResponseNeverReceived, readBody
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IResponse
from zope.interface import implementer

from orama.cluster.exchange import SentBody
from orama.errors import Conflict, NotFound, OramaError, PreconditionFailed, Unavailable
from orama.rest.control import SOCKET

#: Seconds to connect, and for the answer to a question; the node may have to wait for its database.
CONNECT_TIMEOUT = 5.0
ANSWER_TIMEOUT = 15.0
#: Longest line: the report of a node with all its rooms is far below.
MAX_LINE = 4 << 20

_ERRORS: Mapping[int, type[OramaError]] = {404: NotFound, 409: Conflict, 412: PreconditionFailed, 503: Unavailable}

Take = Callable[[Mapping[str, Any]], None]


class Attachment:
    """:param data_dir: of the node."""

    def __init__(self, reactor: Any, data_dir: Path) -> None:
        self._reactor = reactor
        self._path = data_dir / SOCKET
        pool = HTTPConnectionPool(reactor, persistent=False)
        self._agent = Agent.usingEndpointFactory(reactor, _OneSocket(reactor, self._path), pool=pool)

    async def post(self, address: str, body: Mapping[str, Any]) -> Any:
        """What the node answers.

        :param address: below ``/v1/control/``.
        :raises OramaError: the node's own, or Unavailable when it does not answer.
        """
        asking = Deferred.fromCoroutine(self._post(address, body))
        asking.addTimeout(ANSWER_TIMEOUT, self._reactor, lambda result, _: _late(result))
        return await asking

    async def follow(self, address: str, query: Mapping[str, str], take: Take) -> None:
        """Give every message of a stream to *take*; returns when it ends.

        :raises OramaError: the node's own, or Unavailable when it does not answer.
        """
        response = await self._ask("GET", f"{address}?{urlencode(query)}", None)
        if response.code != 200:
            _raise(response.code, await _body(response))
        lines = _Lines(take)
        response.deliverBody(lines)
        await lines.ended

    async def _post(self, address: str, body: Mapping[str, Any]) -> Any:
        response = await self._ask("POST", address, json.dumps(body).encode())
        content = await _body(response)
        if response.code >= 300:
            _raise(response.code, content)
        return json.loads(content) if content else None

    async def _ask(self, method: str, address: str, body: bytes | None) -> IResponse:
        url = f"http://localhost/v1/control/{address}".encode()
        producer = None if body is None else SentBody(body)
        try:
            response: IResponse = await self._agent.request(
                method.encode(), url, Headers({b"Content-Type": [b"application/json"]}), producer
            )
        except Exception as error:
            raise Unavailable("node_unreachable", f"{self._path}: {_why(error)}") from None
        return response


@implementer(IAgentEndpointFactory)
class _OneSocket:
    """Leads every address to the same socket."""

    def __init__(self, reactor: Any, path: Path) -> None:
        self._endpoint = UNIXClientEndpoint(reactor, str(path), CONNECT_TIMEOUT)

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        return self._endpoint


class _Lines(LineOnlyReceiver):
    """A body of JSON lines. An empty one means nothing."""

    delimiter = b"\n"
    MAX_LENGTH = MAX_LINE

    def __init__(self, take: Take) -> None:
        self._take = take
        self.ended: Deferred[None] = Deferred(lambda _: self._cut())

    def lineReceived(self, line: bytes) -> None:
        if line.strip():
            self._take(json.loads(line))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.ended.called:
            self.ended.callback(None)

    def _cut(self) -> None:
        transport: Any = self.transport
        transport.abortConnection() if hasattr(transport, "abortConnection") else transport.stopProducing()


async def _body(response: IResponse) -> bytes:
    try:
        content: bytes = await readBody(response)
    except Exception as error:
        raise Unavailable("node_unreachable", f"the node went away: {_why(error)}") from None
    return content


def _raise(status: int, content: bytes) -> None:
    try:
        body = json.loads(content)
        code, message = str(body["code"]), str(body["error"])
    except (ValueError, TypeError, KeyError):
        code, message = "bad_answer", f"the node answers {status}"
    raise _ERRORS.get(status, Unavailable)(code, message)


def _why(error: Exception) -> str:
    if isinstance(error, ResponseNeverReceived):
        return "; ".join(failure.getErrorMessage() for failure in error.reasons)
    return str(error) or type(error).__name__


def _late(result: Any) -> Any:
    raise Unavailable("node_unreachable", f"the node did not answer within {ANSWER_TIMEOUT:g} s")
