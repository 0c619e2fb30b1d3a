"""One HTTP question and its whole answer, within a time and a size; or a plain word why there is none.

A connection for each question, none tried twice: so a refused one is the proof that nobody listens now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from OpenSSL.SSL import Error as SSLError
from service_identity import VerificationError
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionClosed,
    ConnectionRefusedError,
    DNSLookupError,
)
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

#: Bytes of an answer; the report of a node with a hundred namespaces has about 100 kB.
MAX_ANSWER = 4 << 20

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
        self._agent = Agent(reactor, policy or BrowserLikePolicyForHTTPS(), pool=pool)

    async def ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, limit: float
    ) -> tuple[int, bytes]:
        """Status and body of what comes within *limit* seconds.

        :raises NoAnswer: nothing came, or too much.
        """
        sent = None if body is None else _Sent(body)
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

    def late(result: Any, _: float) -> Any:
        if isinstance(result, Failure):
            raise NoAnswer(f"no answer in {limit:g} s")
        return result

    try:
        return await asking.addTimeout(limit, clock, late)
    except ConnectionRefusedError:
        raise NoAnswer("connection refused", refused=True) from None
    except ConnectingCancelledError:
        raise CancelledError from None
    except DNSLookupError:
        raise NoAnswer("the name is not known") from None
    except ConnectError as error:
        raise NoAnswer(str(error.osError or error)) from None
    except (ResponseFailed, RequestTransmissionFailed) as error:
        if any(reason.check(CancelledError) for reason in error.reasons):
            raise CancelledError from None
        if any(reason.check(SSLError, VerificationError) for reason in error.reasons):
            raise NoAnswer("its certificate is not accepted") from None
        raise NoAnswer("the connection was lost") from None
    except ConnectionClosed:
        raise NoAnswer("the connection was lost") from None


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
