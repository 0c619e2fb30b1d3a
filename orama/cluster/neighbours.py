"""Asking other nodes: signed JSON over HTTP on their internal addresses, a connection for each question.

A refused connection is the proof that the process behind it has gone; any other silence proves nothing, so the two
have errors of their own. Nothing is tried twice in here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from typing import Protocol as Interface
from urllib.parse import urlencode

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionClosed, ConnectionRefusedError
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, RequestTransmissionFailed, ResponseDone, ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer

from orama.cluster.keyring import Keyring
from orama.cluster.signing import sign
from orama.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    InsufficientStorage,
    NotAuthenticated,
    NotFound,
    OramaError,
    PreconditionFailed,
    RateLimited,
    TooLarge,
    Unavailable,
)

#: Seconds for a whole question, connecting included.
TIMEOUT = 5.0
#: Bytes of an answer; the report of a node with a hundred namespaces has about 100 kB.
MAX_ANSWER = 4 << 20
#: Query parameter with the node that a request is for: one that was taken down elsewhere is no good there.
TO = "to"

_ERRORS: dict[int, type[OramaError]] = {
    error.status: error
    for error in (
        BadRequest,
        NotAuthenticated,
        Forbidden,
        NotFound,
        Conflict,
        PreconditionFailed,
        TooLarge,
        Unavailable,
        InsufficientStorage,
    )
}


class Neighbour(Interface):
    """Where a node is; a ``NodeRecord`` is one."""

    @property
    def node_id(self) -> str: ...

    @property
    def internal_ip(self) -> str: ...

    @property
    def internal_port(self) -> int: ...


class NodeRefused(Unavailable):
    """Nobody listens there: the node's process is gone."""


class Neighbours:
    """The other nodes, as *node_id* asks them.

    :param keyring: signs what is asked.
    """

    def __init__(self, reactor: Any, keyring: Keyring, node_id: str) -> None:
        self._reactor = reactor
        self._keyring = keyring
        self._node_id = node_id
        self._agent = Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False))

    async def get(
        self,
        node: Neighbour,
        path: str,
        query: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,  # noqa: ASYNC109 asyncio has no say here
    ) -> Any:
        """What *node* answers.

        :raises NodeRefused: ``node_unreachable``; nobody listens.
        :raises Unavailable: ``node_unreachable``; no answer in *timeout* seconds, or none that a node gives.
        :raises OramaError: what *node* answered.
        """
        return await self._ask(node, "GET", path, query, None, timeout)

    async def post(
        self,
        node: Neighbour,
        path: str,
        body: Mapping[str, Any],
        timeout: float = TIMEOUT,  # noqa: ASYNC109
    ) -> Any:
        """As :meth:`get`, with *body*. An error that is no :class:`NodeRefused` does not say that nothing was done."""
        return await self._ask(node, "POST", path, None, body, timeout)

    async def _ask(
        self,
        node: Neighbour,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        limit: float,
    ) -> Any:
        target = f"{path}?{urlencode({**(query or {}), TO: node.node_id})}"
        content = b"" if body is None else json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        signed = sign(self._keyring, method, target, content, self._node_id, self._reactor.seconds())
        headers = Headers({name: [value] for name, value in signed.items()})
        if body is not None:
            headers.setRawHeaders("Content-Type", ["application/json"])
        address = f"[{node.internal_ip}]" if ":" in node.internal_ip else node.internal_ip
        url = f"http://{address}:{node.internal_port}{target}".encode()
        sent = None if body is None else _Sent(content)

        def late(result: Any, _: float) -> Any:
            if isinstance(result, Failure):
                raise Unavailable(*_unreachable(node, f"no answer in {limit:g} s"))
            return result

        asking = Deferred.fromCoroutine(self._answer(method.encode(), url, headers, sent))
        try:
            status, answer = await asking.addTimeout(limit, self._reactor, late)
        except ConnectionRefusedError:
            raise NodeRefused(*_unreachable(node, "connection refused")) from None
        except ConnectError as error:
            raise Unavailable(*_unreachable(node, str(error.osError or error))) from None
        except (ResponseFailed, RequestTransmissionFailed, ConnectionClosed):
            raise Unavailable(*_unreachable(node, "the connection was lost")) from None
        return _read(node, status, answer)

    async def _answer(self, method: bytes, url: bytes, headers: Headers, sent: _Sent | None) -> tuple[int, bytes]:
        try:
            response: IResponse = await self._agent.request(method, url, headers, sent)
            received = _Received(MAX_ANSWER)
            response.deliverBody(received)
            return response.code, await received.whole
        except ConnectingCancelledError:
            raise CancelledError from None
        except ResponseFailed as error:
            if any(reason.check(CancelledError) for reason in error.reasons):
                raise CancelledError from None
            raise


@implementer(IBodyProducer)
class _Sent:
    """A body that leaves at once."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.length = len(content)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._content)
        return succeed(None)

    def pauseProducing(self) -> None:
        """There is nothing left to hold back."""

    resumeProducing = stopProducing = pauseProducing


class _Received(Protocol):
    """A body of *limit* bytes at most."""

    def __init__(self, limit: int) -> None:
        self._content = bytearray()
        self._limit = limit
        self.whole: Deferred[bytes] = Deferred(lambda _: self._abort())

    def dataReceived(self, data: bytes) -> None:
        self._content += data
        if len(self._content) > self._limit:
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.whole.called:
            return
        if reason.check(ResponseDone) is None or len(self._content) > self._limit:
            self.whole.errback(ResponseFailed([reason]))
        else:
            self.whole.callback(bytes(self._content))

    def _abort(self) -> None:
        if self.transport is not None:
            transport: Any = self.transport
            transport.abortConnection()


def _unreachable(node: Neighbour, why: str) -> tuple[str, str]:
    return "node_unreachable", f"node {node.node_id} at {node.internal_ip}:{node.internal_port}: {why}"


def _read(node: Neighbour, status: int, content: bytes) -> Any:
    """The JSON of an answer.

    :raises OramaError: that *content* says, or Unavailable when no node says such things.
    """
    try:
        answer: Any = json.loads(content) if content else None
        if 200 <= status < 300:
            return answer
        code, text = str(answer["code"]), str(answer["error"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Unavailable(*_unreachable(node, f"HTTP {status}, and not as a node answers")) from None
    text = f"node {node.node_id}: {text}"
    if status == RateLimited.status:
        raise RateLimited(text)
    raise _ERRORS.get(status, Unavailable)(code, text)
