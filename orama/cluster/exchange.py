"""One HTTP question and its whole answer, within a time and a size; or a plain word why there is none.

A connection for each question, none tried twice: so a refused one is the proof that nobody listens now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from OpenSSL.SSL import Error as SSLError
from service_identity import VerificationError
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionClosed,
    ConnectionRefusedError,
    DNSLookupError,
)
from twisted.internet.interfaces import (
    IConsumer,
    IOpenSSLClientConnectionCreator,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    Agent,
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

#: Bytes of an answer; the report of a node with a hundred namespaces has about 100 kB.
MAX_ANSWER = 4 << 20
#: Seconds to connect, where nobody gives less for the whole.
CONNECT_TIMEOUT = 30.0

_BROKEN = (ResponseFailed, RequestTransmissionFailed)

T = TypeVar("T")


class NoAnswer(Exception):
    """:ivar why: for a person, in a few words. :ivar refused: nobody listens there."""

    def __init__(self, why: str, refused: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.refused = refused


class Exchange:
    """:param policy: whose certificates are good enough, where the address is an https one."""

    def __init__(self, reactor: Any, policy: IPolicyForHTTPS | None = None) -> None:
        self._reactor = reactor
        pool = HTTPConnectionPool(reactor, persistent=False)
        places = _Places(reactor, policy or BrowserLikePolicyForHTTPS())
        self._agent = Agent.usingEndpointFactory(reactor, places, pool)

    async def ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, limit: float
    ) -> tuple[int, bytes]:
        """Status and body of what comes within *limit* seconds.

        :raises NoAnswer: nothing came, or too much.
        """
        sent = None if body is None else SentBody(body)
        raw = Headers({name: [value] for name, value in headers.items()})
        asking = self._whole(self._agent.request(method.encode(), url.encode(), raw, sent))
        return await within(limit, self._reactor, Deferred.fromCoroutine(asking))

    async def _whole(self, requested: Deferred[IResponse]) -> tuple[int, bytes]:
        response = await requested
        received = _Received(MAX_ANSWER)
        response.deliverBody(received)
        return response.code, await received.whole


async def within(limit: float, clock: IReactorTime, asking: Deferred[T]) -> T:
    """What *asking* comes to in *limit* seconds.

    :raises NoAnswer: the network gave none.
    :raises CancelledError: whoever awaits this no longer wants it.
    """

    unwanted = False

    def stop(_: Deferred[T]) -> None:
        nonlocal unwanted
        unwanted = True
        asking.cancel()

    def late(result: Any, _: float) -> Any:
        if isinstance(result, Failure):
            raise NoAnswer(f"no answer in {limit:g} s")
        return result

    answer: Deferred[T] = Deferred(stop)
    asking.addTimeout(limit, clock, late).chainDeferred(answer)
    try:
        return await answer
    except (ConnectError, ConnectionClosed, DNSLookupError, ConnectingCancelledError, *_BROKEN) as error:
        if unwanted:  # each stage has an error of its own for that
            raise CancelledError from None
        raise _no_answer(error) from None


def _no_answer(error: Exception) -> NoAnswer:
    if isinstance(error, ConnectionRefusedError):
        return NoAnswer("connection refused", refused=True)
    if isinstance(error, DNSLookupError):
        return NoAnswer("the name is not known")
    if isinstance(error, ConnectError):
        return NoAnswer(str(error.osError or error))
    if isinstance(error, _BROKEN) and any(reason.check(SSLError, VerificationError) for reason in error.reasons):
        return NoAnswer("its certificate is not accepted")
    return NoAnswer("the connection was lost")


def tcp_endpoint(reactor: Any, host: str, port: int, limit: float = CONNECT_TIMEOUT) -> IStreamClientEndpoint:
    """How to connect to *host*; addresses need no resolver, which has few threads for the whole process."""
    if isIPAddress(host):
        return TCP4ClientEndpoint(reactor, host, port, limit)
    if isIPv6Address(host):
        return TCP6ClientEndpoint(reactor, host, port, limit)
    return HostnameEndpoint(reactor, host, port, limit)


@implementer(IAgentEndpointFactory)
class _Places:
    def __init__(self, reactor: Any, policy: IPolicyForHTTPS) -> None:
        self._reactor = reactor
        self._policy = policy

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        endpoint = tcp_endpoint(self._reactor, uri.host.decode("ascii"), uri.port)
        if uri.scheme != b"https":
            return endpoint
        creator: IOpenSSLClientConnectionCreator = self._policy.creatorForNetloc(uri.host, uri.port)
        return wrapClientTLS(creator, endpoint)


@implementer(IBodyProducer)
class SentBody:
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
            self.transport.loseConnection()
