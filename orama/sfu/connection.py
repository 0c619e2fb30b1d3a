"""One client's peer connection: ICE, DTLS, SCTP, media and negotiation held together.

Offers of ours are gathered for a moment, so that one carries many changes, and made again when nobody answers. What an
agreement means for the room is told to a :class:`Listener`. Nothing here knows rooms, permissions or who anybody is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from orama.errors import SignalError
from orama.net.fabric import Burst, Fabric
from orama.settings import SfuSettings
from orama.sfu._aiortc import DtlsCertificate, DtlsCounters, DtlsTransport
from orama.sfu._sctp import SctpCounters
from orama.sfu._sctp_channels import SctpTransport
from orama.sfu.agreement import Agreement
from orama.sfu.allowance import Allowance
from orama.sfu.counters import MediaCounters
from orama.sfu.data import DataCounters
from orama.sfu.events import Answer, Error, Event, Offer
from orama.sfu.ice import IceAgent, MediaPort
from orama.sfu.lines import Wanted
from orama.sfu.media import PeerMedia, RandomBits
from orama.sfu.negotiation import Negotiator
from orama.sfu.values import SrtpKeys
from orama.wire import sdp

#: Seconds that changes are gathered before we offer.
GATHER = 0.03
#: The same at the start, when the client is most often about to offer what it publishes.
GATHER_FIRST = 0.1
#: Seconds after an answer of ours before we offer: a browser that is still busy with it ignores an offer.
AFTER_ANSWER = 0.1
#: Seconds that the offer after an answer of ours waits at first, in case that the browser was busy all the same.
IMPATIENT = 1.0
#: Seconds that an offer which has crossed ours waits for the answer to ours: a client that gives way answers it at
#: once, and its own offer is void then. Under heavy load a browser took 0.15 s; the rest is for the way.
GIVING_WAY = 0.5
#: Seconds after an offer was made again within which it may cross an offer of the client's, though it is answered.
REPEATED_MAY_CROSS = 2.0
#: Seconds after an answer that did not fit.
AFTER_WRONG_ANSWER = 1.0
#: Seconds without a connectivity check after which we ask for an ICE restart, and until we ask again. Clients that get
#: through check every 4 to 6 at least (RFC 7675, 5.1).
RESTART_AFTER, RESTART_AGAIN = 8.0, 10.0
#: Descriptions a second from one client, and at once. One of 64 KiB takes up to 20 ms.
DESCRIPTION_RATE, MOST_DESCRIPTIONS = 10, 200

_log = Logger()


@define(eq=False)
class Counters:
    """What all connections and rooms of a namespace count together."""

    media: MediaCounters = field(factory=MediaCounters)
    dtls: DtlsCounters = field(factory=DtlsCounters)
    sctp: SctpCounters = field(factory=SctpCounters)
    data: DataCounters = field(factory=DataCounters)
    offers_sent: int = 0
    offers_repeated: int = 0
    offers_received: int = 0
    glares: int = 0
    candidates_refused: int = 0
    dtls_failed: int = 0


class Listener(Protocol):
    """Who owns the connection."""

    def say(self, event: Event) -> None:
        """Send *event* to the client."""

    def may_publish(self, kind: str, mid: str) -> bool:
        """Whether the client may publish on that m-line."""

    def name_track(self, proposed: str | None) -> str:
        """A track id that is unused in the room."""

    def offering(self, added: Mapping[str, str]) -> None:
        """An offer with these tracks, by mid, is sent next."""

    def agreed(self, agreement: Agreement, forbidden: frozenset[str]) -> None:
        """An offer was answered. An answer of ours is sent after this returns."""

    def data_opened(self, sctp: SctpTransport) -> None:
        """The client has a data m-line now."""

    def data_closed(self) -> None:
        """The client has stopped it."""

    def secured(self) -> None:
        """DTLS is up for the first time."""

    def broken(self, error: SignalError | None) -> None:
        """DTLS is closed by the client, or with *error* has never come up."""


class Connection:
    """
    :param port: where the client's packets come in.
    """

    def __init__(
        self,
        clock: IReactorTime,
        settings: SfuSettings,
        fabric: Fabric,
        port: MediaPort,
        certificate: DtlsCertificate,
        random: RandomBits,
        counters: Counters,
        listener: Listener,
        *,
        may_use_data: bool,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._port = port
        self._counters = counters
        self._listener = listener
        self._agent = IceAgent(clock, random)
        self._agent.on_dtls = self._dtls_received
        self._agent.on_media = self._media_received
        self._agent.on_selected = self._selected
        self._reached = False
        self._began = False
        self._certificate = certificate
        self._dtls: DtlsTransport | None = None
        self._sctp: SctpTransport | None = None
        self.media = PeerMedia(
            clock,
            random,
            self._agent.send,
            fabric.later,
            counters.media,
            settings.max_bitrate,
            settings.estimate,
            settings.max_estimate,
        )
        # Before the first description is written: a ufrag that is taken is drawn again.
        port.add(self._agent)
        self.negotiator = Negotiator(
            self._agent,
            certificate.fingerprint(),
            port.address,
            random,
            listener.name_track,
            may_publish=listener.may_publish,
            may_use_data=may_use_data,
            max_uplinks=settings.max_tracks,
            max_bitrate=settings.max_bitrate,
        )
        self._descriptions = Allowance(DESCRIPTION_RATE, MOST_DESCRIPTIONS, clock.seconds())
        self._flowing = False
        self._offer_call: IDelayedCall | None = None
        #: An offer of the client's that has crossed ours, and when it is answered.
        self._crossed: str | None = None
        self._crossed_call: IDelayedCall | None = None
        #: When we last made an offer again.
        self._repeated = 0.0
        self._quiet_until = 0.0
        self._restarted = float("-inf")
        self._closed = False
        #: Who sent the description with the client's certificate.
        self._certified_by = "invalid_offer"

    # ---- what the client is to receive

    def want(self, track: Wanted) -> None:
        self.negotiator.want(track)
        self.negotiate()

    def unwant(self, track_id: str) -> None:
        self.media.unsubscribe(track_id)
        self.negotiator.unwant(track_id)
        self.negotiate()

    def want_data(self) -> None:
        self.negotiator.want_data()
        self.negotiate()

    # ---- when we may speak

    def flow(self) -> None:
        """The client hears us from now on. An offer that it may not have got is made again."""
        self._flowing = True
        if self.negotiator.offering:
            self._repeat()
        else:
            self.negotiate(GATHER if self._began else GATHER_FIRST)

    def hold(self) -> None:
        """The client does not hear us for a while."""
        self._flowing = False
        self._cancel()

    def negotiate(self, gather: float = GATHER) -> None:
        """Offer soon what has changed, unless an offer is on its way already or the client does not hear us."""
        if not self._flowing or self._closed or self._offer_call is not None:
            return
        delay = max(gather, self._quiet_until - self._clock.seconds())
        self._offer_call = self._clock.callLater(delay, self._offer)

    def _offer(self) -> None:
        self._offer_call = None
        proposed = self.negotiator.propose()
        if proposed is None:
            return
        self._begin()
        self._counters.offers_sent += 1
        crossing = self._clock.seconds() < self._quiet_until + IMPATIENT
        self._expect(min(IMPATIENT, self._settings.offer_timeout) if crossing else None)
        self._listener.offering(proposed.added)
        self._listener.say(Offer(proposed.sdp))

    def _expect(self, seconds: float | None = None) -> None:
        """Make the offer again when it is not answered in time."""
        self._cancel()
        if self._flowing and not self._closed:
            delay = self._settings.offer_timeout if seconds is None else seconds
            self._offer_call = self._clock.callLater(delay, self._repeat)

    def _repeat(self) -> None:
        self._cancel()
        offer = self.negotiator.repeat()
        if offer is not None:
            self._counters.offers_repeated += 1
            self._repeated = self._clock.seconds()
            self._expect()
            self._listener.say(Offer(offer))

    def _cancel(self) -> None:
        call, self._offer_call = self._offer_call, None
        if call is not None and call.active():
            call.cancel()

    # ---- what the client says

    def remote_offer(self, text: str) -> None:
        """Answer the client's offer. One that has crossed ours is answered a little later, if then.

        Both ends have to agree on which of the two offers counts. Clients that ignore ours have theirs answered. But a
        page that hands whatever comes to ``setRemoteDescription`` takes its own offer back by that (RFC 8829, 4.1.8.2),
        answers ours, and offers again; an answer to what it took back would leave both sides with another idea of
        m-lines and ICE credentials, and after an ICE restart for ever.

        :raises SignalError: ``invalid_offer`` or ``rate_limited``; nothing has changed.
        """
        self._described()
        self._counters.offers_received += 1
        again = self.negotiator.repeated and self._clock.seconds() < self._repeated + REPEATED_MAY_CROSS
        if self.negotiator.offering or again:
            self._counters.glares += self.negotiator.offering
            if self._crossed is None:
                self._crossed = text
                self._cancel()
                self._crossed_call = self._clock.callLater(GIVING_WAY, self._insisted)
                return
        self._answer(text)

    def _insisted(self) -> None:
        """The client goes by its own offer: ours is taken back, and made again after the answer."""
        text, self._crossed = self._crossed, None
        assert text is not None
        try:
            self._answer(text)
        except SignalError as error:
            self._listener.say(Error(error.code, error.message, error.fatal))
            self._expect()

    def _forget_crossed(self) -> None:
        call, self._crossed, self._crossed_call = self._crossed_call, None, None
        if call is not None and call.active():
            call.cancel()

    def _answer(self, text: str) -> None:
        dropped = self.negotiator.candidates_dropped
        answered = self.negotiator.remote_offer(text)
        self._forget_crossed()
        self._counters.candidates_refused += self.negotiator.candidates_dropped - dropped
        self._begin()
        self._cancel()
        self._take(answered.agreement, answered.forbidden, "invalid_offer")
        if self._closed:
            return
        self._listener.say(Answer(answered.sdp))
        self._quiet_until = self._clock.seconds() + AFTER_ANSWER
        self.negotiate()

    def remote_answer(self, text: str) -> None:
        """
        :raises SignalError: ``invalid_answer`` or ``rate_limited``; the offer is made again.
        """
        self._described()
        dropped = self.negotiator.candidates_dropped
        try:
            agreement = self.negotiator.remote_answer(text)
        except SignalError:
            if self.negotiator.offering and self._crossed is None:
                self._expect(AFTER_WRONG_ANSWER)
            raise
        self._counters.candidates_refused += self.negotiator.candidates_dropped - dropped
        if self._crossed is not None:
            # Whatever this answers, the client has given way.
            self._forget_crossed()
            self._expect()
        if agreement is None:
            return
        if not self.negotiator.offering:
            self._cancel()
        self._take(agreement, frozenset(), "invalid_answer")
        self.negotiate()

    def _described(self) -> None:
        if not self._descriptions.take(1, self._clock.seconds()):
            raise SignalError("rate_limited", "too many descriptions")

    def remote_candidate(self, candidate: str) -> None:
        """Look at a candidate: a lite agent has no use for one, but one that is not ``relay`` is refused.

        :raises SignalError: ``invalid_candidate``.
        """
        if not candidate:
            return
        try:
            kind = sdp.candidate(candidate).type
        except sdp.SdpError as error:
            self._counters.candidates_refused += 1
            raise SignalError("invalid_candidate", f"the candidate cannot be used: {error}") from None
        if kind != "relay":
            self._counters.candidates_refused += 1
            raise SignalError("invalid_candidate", "only candidates of type relay are taken: set iceTransportPolicy")

    # ---- transport

    def _begin(self) -> None:
        """The first description goes out: be there for what it brings."""
        if not self._began:
            self._began = True
            self._dtls = DtlsTransport(self._certificate, self._dtls_send, counters=self._counters.dtls)
            self._dtls.on_keys = self._keys
            self._dtls.on_state = self._dtls_changed

    def _take(self, agreement: Agreement, forbidden: frozenset[str], code: str) -> None:
        dtls = self._dtls
        assert dtls is not None
        if agreement.fingerprints and dtls.state == "new":
            self._certified_by = code
            dtls.start(list(agreement.fingerprints))
        if agreement.data is not None and (self._sctp is None or self._sctp.state == "closed"):
            port, longest = agreement.data
            sctp = self._sctp = SctpTransport(dtls, port, longest, counters=self._counters.sctp)
            self._listener.data_opened(sctp)
            sctp.start()
        elif agreement.data is None and self._sctp is not None:
            self._sctp.close()
            self._sctp = None
            self._listener.data_closed()
        self._listener.agreed(agreement, forbidden)

    def _selected(self) -> None:
        self._reached = True

    def _dtls_send(self, datagrams: Sequence[bytes]) -> None:
        self._agent.send(datagrams)

    def _dtls_received(self, datagram: bytes) -> None:
        if self._dtls is not None:
            self._dtls.received(datagram)

    def _media_received(self, packets: Burst) -> None:
        self.media.receive(packets, self._clock.seconds())

    def _keys(self, keys: SrtpKeys) -> None:
        self.media.secure(keys)
        self._listener.secured()

    def _dtls_changed(self, state: str) -> None:
        if state == "failed":
            self._counters.dtls_failed += 1
            text = "The DTLS handshake failed: the certificate is not that of a=fingerprint, or there was no answer."
            self._listener.broken(SignalError(self._certified_by, text, fatal=True))
        elif state == "closed":
            self._listener.broken(None)

    def silent_for(self, now: float) -> float:
        """Seconds since the last connectivity check; 0 while there has been none."""
        return now - self._agent.last_check if self._reached else 0.0

    def check(self, now: float) -> None:
        """Where the checks have stopped, and the client hears us, let it look for another way."""
        if self._flowing and self.silent_for(now) > RESTART_AFTER and now - self._restarted > RESTART_AGAIN:
            self._restarted = now
            self.negotiator.restart()
            self.negotiate()

    def close(self) -> Deferred[None]:
        """End everything. Fires when nothing is left of it."""
        if self._closed:
            return succeed(None)
        self._closed = True
        self._cancel()
        self._forget_crossed()
        self.media.close()
        self.negotiator.close()
        self._listener = _Nobody()

        def forget(result: object) -> None:
            self._port.remove(self._agent)
            self._agent.on_media = self._agent.on_dtls = self._agent.on_selected = _nothing
            self._dtls = self._sctp = None

        if self._dtls is None:
            forget(None)
            return succeed(None)
        return self._dtls.close().addErrback(_failed).addCallback(forget)


def _nothing(*_: object) -> None:
    """The connection is closed."""


class _Nobody:
    """Who listens to a connection that is closed."""

    def say(self, event: Event) -> None: ...
    def may_publish(self, kind: str, mid: str) -> bool:
        return False

    def name_track(self, proposed: str | None) -> str:
        return ""

    def offering(self, added: Mapping[str, str]) -> None: ...
    def agreed(self, agreement: Agreement, forbidden: frozenset[str]) -> None: ...
    def data_opened(self, sctp: SctpTransport) -> None: ...
    def data_closed(self) -> None: ...
    def secured(self) -> None: ...
    def broken(self, error: SignalError | None) -> None: ...


def _failed(failure: object) -> None:
    _log.failure("closing DTLS failed", failure)  # type: ignore[arg-type]


#: Makes a connection for its listener.
Connect = Callable[[Listener, bool], Connection]
