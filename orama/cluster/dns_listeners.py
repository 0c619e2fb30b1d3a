"""How DNS messages come and go (RFC 1035, 4.2; RFC 7766): datagrams, streams, and what each may take up.

What is said is said in :mod:`orama.cluster.answering`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import MessageLengthError
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol
from twisted.internet.protocol import DatagramProtocol, ServerFactory
from twisted.protocols.basic import Int16StringReceiver
from twisted.protocols.policies import TimeoutMixin
from zope.interface import implementer

from orama.cluster.answering import STREAM, Answering
from orama.turn.ratelimit import RateLimit

#: Answers a second to one address over UDP, and how many may come at once; beyond that it is sent to TCP, where it
#: cannot be forged.
RATE, BURST = 100, 400
#: Seconds without a query after which a connection is closed (RFC 7766, 6.2.3).
IDLE = 10.0
#: Connections at a time: above it the one that has been quiet for longest goes, and of one address none comes.
CONNECTIONS, CONNECTIONS_EACH = 256, 32
#: Bytes of the longest query: a question, an OPT record and some cookies have fewer.
LONGEST_QUERY = 4096


class Datagrams(DatagramProtocol):
    """Queries and answers over UDP."""

    noisy = False

    def __init__(self, answering: Answering, clock: Any) -> None:
        self._answering = answering
        self._clock = clock
        self._rate = RateLimit(RATE, BURST)
        self.counts: Counter[str] = Counter()

    def datagramReceived(self, datagram: bytes, address: Any) -> None:
        host = address[0].partition("%")[0].removeprefix("::ffff:")
        brief = not self._rate.take(host, self._clock.seconds())
        answer = self._answering.respond(datagram, brief=brief)
        outcome = "brief" if brief else "answered"
        if answer is None:
            outcome = "dropped"
        elif self.transport is not None:
            try:
                self.transport.write(answer, address)
            except (OSError, MessageLengthError):  # from port 0, or the kernel has no way there
                outcome = "dropped"
        self.counts[outcome] += 1


class Streams(ServerFactory):
    """Connections, and what they may take up."""

    noisy = False

    def __init__(self, answering: Answering, clock: Any) -> None:
        self.answering = answering
        self.clock = clock
        self.counts: Counter[str] = Counter()
        #: Those that are open and whose they are, the one that has been quiet for longest at the front.
        self.open: dict[Stream, str] = {}
        self._empty: Deferred[None] | None = None

    def buildProtocol(self, addr: IAddress | None) -> Stream | None:
        host = getattr(addr, "host", "")
        if self._empty is not None or list(self.open.values()).count(host) >= CONNECTIONS_EACH:
            return None
        if len(self.open) >= CONNECTIONS:
            quiet, whose = next(iter(self.open.items()))
            self.heard(quiet, whose)  # so that the next one of this iteration ends another
            quiet.abort()
        return Stream(self, host)

    def heard(self, stream: Stream, host: str) -> None:
        """*stream* was not quiet."""
        self.open.pop(stream, None)
        self.open[stream] = host

    def lost(self, stream: Stream) -> None:
        self.open.pop(stream, None)
        if not self.open and self._empty is not None:
            self._empty.callback(None)

    def stop(self) -> Deferred[None]:
        """Close every connection; fires when they are."""
        gone: Deferred[None] = Deferred()
        if not self.open:
            gone.callback(None)
            return gone
        self._empty = gone
        for stream in list(self.open):
            stream.abort()
        return gone


@implementer(IHalfCloseableProtocol)
class Stream(Int16StringReceiver, TimeoutMixin):
    """One connection. Who does not read its answers is not read from either, and is idle."""

    MAX_LENGTH = LONGEST_QUERY
    transport: Any

    def __init__(self, streams: Streams, host: str) -> None:
        self._streams = streams
        self._host = host

    def callLater(self, period: float, func: Callable[[], None]) -> Any:
        return self._streams.clock.callLater(period, func)

    def connectionMade(self) -> None:
        self._streams.heard(self, self._host)
        self.transport.registerProducer(self, True)
        self.setTimeout(IDLE)

    def stringReceived(self, string: bytes) -> None:
        answer = self._streams.answering.respond(string, STREAM)
        if answer is None:
            self._streams.counts["dropped"] += 1
            self.abort()
            return
        self._streams.counts["answered"] += 1
        self._streams.heard(self, self._host)
        self.resetTimeout()
        self.sendString(answer)

    def lengthLimitExceeded(self, length: int) -> None:
        self._streams.counts["dropped"] += 1
        self.abort()

    def timeoutConnection(self) -> None:
        self.abort()

    def readConnectionLost(self) -> None:
        """There are no more questions: close when the answers have gone."""
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        self.abort()

    def connectionLost(self, reason: object = None) -> None:
        self.setTimeout(None)
        self._streams.lost(self)

    def abort(self) -> None:
        """Close at once."""
        self.paused = True
        self.transport.abortConnection()
