"""Posts what happens in rooms to where the settings say, until somebody takes it.

:meth:`Webhooks.note` costs a room 30 µs, half of it for a line in a file, and never fails it. An event is taken when
its answer is 2xx; redirects are not followed, since whoever answers there was not chosen by the operator. Certificates
are verified.
What nobody has taken when the node stops is there when it starts again (:mod:`orama.webhooks.spool`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from orama._version import __version__
from orama.cluster.exchange import Exchange, NoAnswer
from orama.errors import NotFound, Unavailable
from orama.settings import NamespaceWebhookSettings, WebhookSettings
from orama.sfu.occurrences import Occurrence
from orama.timestamp import timestamp
from orama.webhooks.backlog import Backlog
from orama.webhooks.letter import Letter, letter
from orama.webhooks.signature import HEADER, sign
from orama.webhooks.spool import Spool

#: Seconds that what has just happened gets to be delivered when the node stops: rooms end with it.
FAREWELL = 2.0

_log = Logger()


class Webhooks(Service):
    """The webhooks of one node.

    :param spool: file in which events wait; it is opened when the service starts.
    :param chance: as :class:`Backlog` has it.
    """

    name = "webhooks"

    def __init__(
        self,
        reactor: Any,
        settings: WebhookSettings,
        node_id: str,
        spool: Path,
        exchange: Exchange,
        chance: Callable[[], float],
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._node_id = node_id
        self._path = spool
        self._exchange = exchange
        self._chance = chance
        self._spool: Spool | None = None
        self._backlogs: dict[str, Backlog] = {}
        self._sending: set[Deferred[None]] = set()
        self._call: IDelayedCall | None = None
        self._idle: Deferred[None] | None = None
        #: Namespaces whose receiver was told of in the log as away.
        self._away: set[str] = set()
        self._sent: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._dropped: Counter[tuple[str, str]] = Counter()

    def startService(self) -> None:
        super().startService()
        try:
            self._spool = Spool(self._path)
        except OSError as error:
            _log.error("webhooks do not outlive this process: {file}: {why}", file=str(self._path), why=error.strerror)
        else:
            for each in self._spool.found:
                self._backlog(each.namespace).add(each, self._reactor.seconds())
            if self._spool.found:
                _log.info("{count} events of webhooks have waited for this start", count=len(self._spool.found))
        self._go_on()

    async def stopService(self) -> None:  # type: ignore[override]
        """Deliver what can be delivered at once, and keep the rest."""
        super().stopService()
        if self._sending or any(backlog.due() <= self._reactor.seconds() for backlog in self._backlogs.values()):
            self._idle = Deferred()
            self._go_on()
            farewell = self._reactor.callLater(FAREWELL, self._end)
            await self._idle
            if farewell.active():
                farewell.cancel()
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        sending = list(self._sending)
        for each in sending:
            each.cancel()
        await DeferredList(sending)
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def configure(self, settings: WebhookSettings) -> None:
        """Take over other settings; what waits goes to where they say."""
        self._settings = settings
        for backlog in self._backlogs.values():
            backlog.retry, backlog.keep = settings.retry, settings.keep
        self._go_on()

    def note(self, occurrence: Occurrence) -> None:
        """Something has happened; whoever is to know it will."""
        told = self._told(occurrence.namespace)
        if not told.url or (told.events and occurrence.event not in told.events):
            return
        made = letter(occurrence, self._node_id)
        for gone in self._backlog(made.namespace).add(made, self._reactor.seconds()):
            self._drop(gone, "full")
        self._keep(lambda spool: spool.add(made))
        self._soon()

    async def test(self, namespace: str) -> Mapping[str, Any]:
        """Send an event that means nothing, once; how long it took to be taken.

        :raises NotFound: ``no_webhook``: nobody is told of this namespace.
        :raises Unavailable: ``webhook_not_taken``, and why.
        """
        told, began = self._told(namespace), self._reactor.seconds()
        if not told.url:
            raise NotFound("no_webhook", f"the settings name no receiver for events of {namespace}")
        name = f"ev_test{int(began * 1e6):x}"
        body = {"id": name, "event": "test", "created_at": timestamp(began), "namespace": namespace}
        why = await self._post(told, name, json.dumps({**body, "node_id": self._node_id}).encode())
        if why:
            raise Unavailable("webhook_not_taken", f"the receiver does not take it: {why}")
        return {"namespace": namespace, "id": name, "seconds": round(self._reactor.seconds() - began, 3)}

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """What ``/metrics`` shows."""
        for namespace, backlog in self._backlogs.items():
            labels = {"namespace": namespace}
            yield "orama_webhooks_waiting", labels, len(backlog)
            yield "orama_webhooks_sent_total", labels, self._sent[namespace]
            yield "orama_webhooks_failed_total", labels, self._failed[namespace]
        for (namespace, reason), number in self._dropped.items():
            yield "orama_webhooks_dropped_total", {"namespace": namespace, "reason": reason}, number

    # ---- what waits

    def _told(self, namespace: str) -> WebhookSettings:
        """What holds for *namespace*."""
        settings, own = self._settings, self._settings.namespaces.get(namespace, NamespaceWebhookSettings())
        return evolve(
            settings,
            url=settings.url if own.url is None else own.url,
            secret=settings.secret if own.secret is None else own.secret,
            events=settings.events if own.events is None else own.events,
        )

    def _backlog(self, namespace: str) -> Backlog:
        if namespace not in self._backlogs:
            self._backlogs[namespace] = Backlog(self._settings.retry, self._settings.keep, self._chance)
        return self._backlogs[namespace]

    def _keep(self, write: Callable[[Spool], None]) -> None:
        """Write to the spool, as far as that can be done."""
        if self._spool is None:
            return
        try:
            write(self._spool)
            self._spool.tidy(each for backlog in self._backlogs.values() for each in backlog.letters())
        except OSError as error:
            _log.error("an event may not outlive this process: {why}", why=error.strerror)

    def _drop(self, gone: Letter, reason: str) -> None:
        if not self._dropped[gone.namespace, reason]:
            _log.warn("events of {namespace} are lost: {reason}", namespace=gone.namespace, reason=reason)
        self._dropped[gone.namespace, reason] += 1
        self._keep(lambda spool: spool.done(gone))

    # ---- what is under way

    def _go_on(self) -> None:
        """Try what may be tried now, and look again when the next one may be."""
        if not (self.running or self._idle):
            return
        now, soonest = self._reactor.seconds(), inf
        for namespace, backlog in self._backlogs.items():
            told = self._told(namespace)
            if not told.url:
                for each in list(backlog.letters()):
                    if not backlog.is_flying(each):
                        backlog.forget(each)
                        self._drop(each, "unconfigured")
                continue
            while (sent := backlog.next(now)) is not None:
                self._send(backlog, sent, told)
            soonest = min(soonest, backlog.due())
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        if self._idle is not None:
            if not self._sending:
                self._end()
        elif soonest < inf:
            self._call = self._reactor.callLater(max(0.0, soonest - now), self._go_on)

    def _end(self) -> None:
        if self._idle is not None and not self._idle.called:
            self._idle.callback(None)

    def _send(self, backlog: Backlog, sent: Letter, told: WebhookSettings) -> None:
        sending = Deferred.fromCoroutine(self._try(backlog, sent, told))
        self._sending.add(sending)

        def over(result: object) -> None:
            self._sending.discard(sending)
            # Not from within: an attempt may fail before it has begun to wait.
            self._soon()

        sending.addErrback(lambda failure: _log.failure("sending an event failed", failure)).addCallback(over)

    def _soon(self) -> None:
        """Go on in the next turn of the reactor, once for all that happens in this one."""
        if not (self.running or self._idle):
            return
        if self._call is not None and self._call.active():
            if self._call.getTime() <= self._reactor.seconds():
                return
            self._call.cancel()
        self._call = self._reactor.callLater(0, self._go_on)

    async def _try(self, backlog: Backlog, sent: Letter, told: WebhookSettings) -> None:
        try:
            why = await self._post(told, sent.id, sent.body.encode())
        except CancelledError:
            backlog.put_back(sent, self._reactor.seconds())
            return
        except BaseException:
            backlog.failed(sent, self._reactor.seconds())
            raise
        if why:
            self._not_taken(backlog, sent, why)
        else:
            self._taken(backlog, sent)

    async def _post(self, told: WebhookSettings, name: str, body: bytes) -> str:
        """Why the receiver did not take *body*; empty when it did."""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"orama-webrtc/{__version__}",
            "Orama-Event-Id": name,
            HEADER: sign(told.secret, body, self._reactor.seconds()),
        }
        try:
            status, _ = await self._exchange.ask("POST", told.url, headers, body, told.timeout)
        except NoAnswer as error:
            return error.why
        return "" if 200 <= status < 300 else f"HTTP {status}"

    def _taken(self, backlog: Backlog, sent: Letter) -> None:
        backlog.taken(sent, self._reactor.seconds())
        self._sent[sent.namespace] += 1
        self._keep(lambda spool: spool.done(sent))
        if sent.namespace in self._away:
            self._away.discard(sent.namespace)
            _log.info("events of {namespace} are taken again", namespace=sent.namespace)

    def _not_taken(self, backlog: Backlog, sent: Letter, why: str) -> None:
        self._failed[sent.namespace] += 1
        if sent.namespace not in self._away:
            self._away.add(sent.namespace)
            _log.warn("an event of {namespace} is not taken: {why}", namespace=sent.namespace, why=why)
        if backlog.failed(sent, self._reactor.seconds()):
            self._drop(sent, "too_old")
