"""One TURN worker of a node: ``python -m orama.turn_worker``, started by the node alone (:mod:`orama.turn.workers`).

It serves the same ports as the node, on sockets of its own that it was given, with the tenants, settings and
certificates that it is told of. What is counted for the whole node stands in a table that all workers share. It does
not mind signals: it ends when it is told to, and when the node that would tell it has ended.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from orama import reactors

reactors.ensure()

from twisted.application.internet import TimerService  # noqa: E402
from twisted.internet.defer import Deferred, maybeDeferred  # noqa: E402
from twisted.internet.protocol import Protocol, connectionDone  # noqa: E402
from twisted.internet.stdio import StandardIO  # noqa: E402
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, formatEvent, globalLogBeginner  # noqa: E402
from twisted.python.failure import Failure  # noqa: E402
from zope.interface import implementer  # noqa: E402

from orama import interpreter  # noqa: E402
from orama.errors import ConfigurationError  # noqa: E402
from orama.net.fabric import Fabric  # noqa: E402
from orama.net.tls import ServerCertificates  # noqa: E402
from orama.settings import TurnSettings  # noqa: E402
from orama.turn.alternates import Listed  # noqa: E402
from orama.turn.fronts import Front  # noqa: E402
from orama.turn.listeners import TurnService  # noqa: E402
from orama.turn.sessions import Selection  # noqa: E402
from orama.turn.shared import Crew, SharedTable  # noqa: E402
from orama.turn.tenants import Tenant, Tenants  # noqa: E402
from orama.turn.workers_channel import REPORTS, SOCKETS, TABLE, Beginning, Lines, from_json, line  # noqa: E402

#: Seconds between two reports of the figures.
REPORT_INTERVAL = 1.0
#: Fields of log events that are not passed on: the node makes its own.
_UNTOLD = frozenset({"level", "format", "failure", "isError", "message", "self", "text", "time", "why"})

_log = Logger()


class TurnWorker:
    """Obeys the node.

    :param report: sends a message to it.
    :param ended: called when everything has been closed.
    """

    def __init__(self, reactor: Any, report: Callable[..., None], ended: Callable[[], None]) -> None:
        self._reactor = reactor
        self._report = report
        self._ended = ended
        self._turn: TurnService | None = None
        self._stopping = False
        self._tell = TimerService(REPORT_INTERVAL, self._say)
        self._tell.clock = reactor

    def obey(self, message: Mapping[str, Any]) -> None:
        """Do what one message says; what cannot be done is logged, and the end where it is to begin."""
        order = message.get("order")
        try:
            self._obey(order, message)
        except Exception:
            _log.failure("an order could not be obeyed: {order}", order=order)
            if self._turn is None:
                self.stop()

    def _obey(self, order: object, message: Mapping[str, Any]) -> None:
        if order == "begin":
            self._begin(from_json(Beginning, message["beginning"]))
        elif order == "stop":
            self.stop()
        elif order == "put":
            self._tenants.put(from_json(Tenant, message["tenant"]))
        elif order == "remove":
            self._tenants.remove(message["namespace"])
        elif order == "certificates":
            self._serve_certificates(message["certificates"])
        elif order == "configure":
            self._serving.configure(from_json(TurnSettings, message["settings"]))
        elif order == "alternates":
            self._serving.redirect(Listed(message["table"]))
        elif order in ("drain", "undrain"):
            getattr(self._serving, order)()
        elif order in ("drain_tenant", "undrain_tenant"):
            getattr(self._serving, order)(message["namespace"])
        elif order == "sessions":
            self._answer(message["serial"], self._sessions(from_json(Selection, message["selection"])))
        elif order == "disconnect":
            self._answer(message["serial"], self._serving.disconnect(from_json(Selection, message["selection"])))
        else:
            _log.warn("an order that is not known: {order}", order=order)

    def stop(self) -> None:
        """End everything; nothing happens the second time."""
        if not self._stopping:
            self._stopping = True
            Deferred.fromCoroutine(self._stop()).addErrback(
                lambda failure: _log.failure("it did not end well", failure)
            )

    @property
    def _serving(self) -> TurnService:
        assert self._turn is not None, "the first order is to begin"
        return self._turn

    def _begin(self, beginning: Beginning) -> None:
        settings = beginning.settings
        self._tenants = Tenants(settings.relay_ip, settings.turn.relay_ip6)
        for tenant in beginning.tenants:
            self._tenants.put(tenant)
        certificate, private_key = beginning.certificates[""]
        # The default as files, and no directory: a self-signed certificate is made and renewed by the node.
        self._certificates = ServerCertificates(
            Path(), (), self._reactor, certificate, private_key, protocols=beginning.protocols
        )
        self._serve_certificates(beginning.certificates)
        table = SharedTable(TABLE, beginning.workers, beginning.worker, bytes.fromhex(beginning.table_key))
        last = SOCKETS + beginning.sockets
        inbox, *outboxes = (socket.socket(fileno=last + index) for index in range(1 + beginning.workers))
        turn = TurnService(
            self._reactor,
            settings,
            self._tenants,
            Fabric(self._reactor),
            self._certificates,
            front=Front.of_descriptors(range(SOCKETS, last)),
            crew=Crew(table, bytes.fromhex(beginning.key), inbox, tuple(outboxes)),
        )
        for namespace in beginning.drained:
            turn.drain_tenant(namespace)
        if beginning.draining:
            turn.drain()
        turn.startService()
        self._turn = turn
        self._tell.startService()
        self._report(report="began")

    def _serve_certificates(self, files: Mapping[str, tuple[str, str]]) -> None:
        for name in self._certificates.names():
            if name not in files:
                self._certificates.remove(name)
        for name, (certificate, private_key) in files.items():
            if not name:
                continue
            try:
                self._certificates.add(name, certificate, private_key)
            except ConfigurationError as error:
                _log.error("certificate of {name} not served: {why}", name=name, why=error.message)

    def _say(self) -> None:
        # A timer whose function raises never runs again.
        try:
            self._report(report="figures", samples=list(self._serving.samples()))
        except Exception:
            _log.failure("the figures are not told")

    async def _sessions(self, selection: Selection) -> list[dict[str, Any]]:
        return [session.to_json() for session in await self._serving.sessions(selection)]

    def _answer(self, serial: int, asked: Coroutine[Any, Any, Any]) -> None:
        """Report what comes of a question, when it has come."""
        asking = Deferred.fromCoroutine(asked)
        asking.addCallback(lambda answer: self._report(report="answer", serial=serial, answer=answer))
        asking.addErrback(self._no_answer, serial)

    def _no_answer(self, failure: Failure, serial: int) -> None:
        _log.failure("a question has no answer", failure)
        self._report(report="answer", serial=serial, error=failure.getErrorMessage())

    async def _stop(self) -> None:
        try:
            if self._tell.running:
                await self._tell.stopService()
            if self._turn is not None:
                await maybeDeferred(self._turn.stopService)
        finally:
            self._ended()


class _Channel(Protocol):
    """The two pipes."""

    def __init__(self) -> None:
        self._lines = Lines()
        self.obey: Callable[[Mapping[str, Any]], None] = _nothing
        self.lost: Callable[[], None] = _nothing

    def dataReceived(self, data: bytes) -> None:
        for message in self._lines.feed(data):
            self.obey(message)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost()

    def report(self, **message: Any) -> None:
        """Nobody hears it when the node is gone."""
        if self.transport is not None:
            self.transport.write(line(**message))


@implementer(ILogObserver)
class _Told:
    """Has the node write what happens here: one log, in the form that it has."""

    def __init__(self, report: Callable[..., None]) -> None:
        self._report = report

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level", LogLevel.info)
        if level < LogLevel.info:
            return
        text = formatEvent(event)
        if "log_failure" in event:
            text += "\n" + event["log_failure"].getTraceback()
        fields = {
            key: value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
            for key, value in event.items()
            if not key.startswith("log_") and key not in _UNTOLD
        }
        self._report(report="log", level=level.name, namespace=event.get("log_namespace", ""), text=text, fields=fields)


def _nothing(*_: object) -> None:
    """Nobody is there yet."""


def main() -> None:
    """Run until the node says so, or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal and systemd send them to the whole group
    reactor = reactors.installed()
    channel = _Channel()
    globalLogBeginner.beginLoggingTo([_Told(channel.report)], redirectStandardIO=False, discardBuffer=True)
    worker = TurnWorker(reactor, channel.report, reactor.stop)
    channel.obey, channel.lost = worker.obey, worker.stop
    StandardIO(channel, 0, REPORTS, reactor)  # type: ignore[call-arg, arg-type]  # the types are those of Windows
    reactor.callWhenRunning(interpreter.settle)
    reactor.run(installSignalHandlers=False)


if __name__ == "__main__":
    main()
