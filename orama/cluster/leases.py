"""The TURN tenants of this node that are held by units: a namespace is served while its unit holds the lease.

All namespaces of a host share one TURN listener, so the unit of one is no server: it opens a stream on the control
socket, and while that is open its namespace is registered there. The stream carries what the listener says about the
namespace. When it ends, or the unit asks for it, the tenant drains: nobody new, and the allocations that are there go
on until they end or their time is over. A lease that comes back by then finds them as they were, so that neither a
restart of the unit nor its death drops a call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from attrs import define, field
from twisted.application.internet import TimerService
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import ILogObserver, LogEvent, Logger, LogPublisher, formatEvent
from zope.interface import implementer

from orama.cluster.desired import WebRtcConfig
from orama.errors import Conflict, NotFound, OramaError
from orama.turn.tenants import Tenant, Tenants

#: Seconds between two looks whether a draining tenant is empty.
TICK = 0.5
#: Whose log events go to the holder.
_TURN = "orama.turn."

_log = Logger()

#: Sends one message to the holder; False when it cannot take it any more.
Say = Callable[[Mapping[str, Any]], bool]


class Turn(Protocol):
    """The TURN server (``turn.listeners.TurnService``)."""

    def drain_tenant(self, namespace: str) -> None: ...
    def undrain_tenant(self, namespace: str) -> None: ...
    def allocations(self, namespace: str | None = None) -> int: ...


@define(eq=False)
class Lease:
    """One holder's. *say* is None when its stream has ended and the tenant drains."""

    namespace: str
    say: Say | None = field(repr=False)
    #: When what is still there ends; None while nobody drains it.
    deadline: float | None = None


@implementer(ILogObserver)
class _Listening:
    """Passes on what TURN says about a namespace."""

    def __init__(self, said: Callable[[str, str], None]) -> None:
        self._said = said

    def __call__(self, event: LogEvent) -> None:
        namespace = event.get("namespace")
        if isinstance(namespace, str) and str(event.get("log_namespace", "")).startswith(_TURN):
            self._said(namespace, formatEvent(event))


class Leases(Service):
    """The leases of this node.

    :param tenant: makes the tenant of a configuration.
    :param config: looks up what a namespace is to be served with; raises OramaError where it is not.
    :param publisher: of the log (``twisted.logger.globalLogPublisher``).
    :param drain_deadline: seconds that allocations get when their namespace's unit stops.
    """

    def __init__(
        self,
        clock: IReactorTime,
        tenants: Tenants,
        turn: Turn,
        config: Callable[[str], Awaitable[WebRtcConfig]],
        tenant: Callable[[WebRtcConfig], Tenant],
        publisher: LogPublisher,
        drain_deadline: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._tenants = tenants
        self._turn = turn
        self._config = config
        self._tenant = tenant
        self._publisher = publisher
        self._drain_deadline = drain_deadline
        self._leases: dict[str, Lease] = {}
        self._listening = _Listening(self._heard)
        self._timer = TimerService(TICK, self._tick)
        self._timer.clock = clock

    def startService(self) -> None:
        super().startService()
        self._publisher.addObserver(self._listening)
        self._timer.startService()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self._publisher.removeObserver(self._listening)
        for lease in tuple(self._leases.values()):
            self._end(lease)
        stopping: Deferred[None] = self._timer.stopService()
        return stopping

    # ---- for the control socket

    async def attach(self, namespace: str, say: Say) -> Lease:
        """Somebody holds the lease from now on; whoever did before is sent away.

        :raises OramaError: the namespace is not to be relayed for here.
        """
        config = await self._config(namespace)
        if config.blocks.relay is None:
            raise NotFound("not_assigned", "the namespace is not relayed for on this node")
        tenant = self._tenant(config)
        before = self._leases.get(namespace)
        if before is not None and before.say is not None:
            before.say({"event": "replaced"})
        lease = self._leases[namespace] = Lease(namespace, say)
        if before is None or self._tenants.get(namespace) != tenant:
            self._tenants.put(tenant)
        self._turn.undrain_tenant(namespace)
        first, last = tenant.relay_ports
        say({"event": "registered", "text": f"{namespace} is relayed for on ports {first} to {last}"})
        _log.info("TURN serves {namespace}", namespace=namespace)
        return lease

    def detach(self, lease: Lease) -> None:
        """Its stream has ended."""
        lease.say = None
        if self._leases.get(lease.namespace) is lease:
            self._drain(lease)

    def drain(self, namespace: str) -> None:
        """The holder is to stop: its stream ends when the last allocation has, or when the time is over.

        :raises Conflict: ``not_attached``.
        """
        lease = self._leases.get(namespace)
        if lease is None or lease.say is None:
            raise Conflict("not_attached", "nobody holds the lease of this namespace")
        self._drain(lease)

    # ---- for the node

    def serves(self, namespace: str) -> bool:
        """Whether the namespace is registered, be it on its way out."""
        return namespace in self._leases

    async def refresh(self, namespace: str) -> None:
        """Serve *namespace* as it is wanted now, if anybody holds its lease; what moves away stays as it is."""
        if namespace not in self._leases:
            return
        config = await self._config(namespace)
        if config.blocks.relay is not None:
            self._tenants.put(self._tenant(config))

    async def refresh_all(self) -> None:
        """The same for every namespace whose lease is held; one that is not to be found out about stays as it is."""
        for namespace in tuple(self._leases):
            try:
                await self.refresh(namespace)
            except OramaError as error:
                _log.warn("TURN serves {namespace} as before: {why}", namespace=namespace, why=error.message)

    # ---- draining

    def _drain(self, lease: Lease) -> None:
        if lease.deadline is None:
            lease.deadline = self._clock.seconds() + self._drain_deadline()
            self._turn.drain_tenant(lease.namespace)
            left = self._turn.allocations(lease.namespace)
            _log.info("TURN drains {namespace}: {left} allocations are left", namespace=lease.namespace, left=left)
            if lease.say is not None:
                lease.say({"event": "draining", "text": f"{left} allocations are left"})

    def _tick(self) -> None:
        # A timer whose function raises never runs again.
        try:
            now = self._clock.seconds()
            for lease in tuple(self._leases.values()):
                if lease.deadline is None:
                    continue
                if now >= lease.deadline or not self._turn.allocations(lease.namespace):
                    self._end(lease)
        except Exception:
            _log.failure("the leases of TURN are not looked after")

    def _end(self, lease: Lease) -> None:
        """The tenant is served no more, and its holder may go."""
        self._tenants.remove(lease.namespace)  # what its allocations have relayed still goes to the holder
        del self._leases[lease.namespace]
        _log.info("TURN serves {namespace} no more", namespace=lease.namespace)
        if lease.say is not None:
            event = "stopped" if lease.deadline is None else "drained"
            lease.say({"event": event, "text": f"{lease.namespace} is relayed for no more"})

    def _heard(self, namespace: str, text: str) -> None:
        """TURN has said something about *namespace*."""
        lease = self._leases.get(namespace)
        if lease is not None and lease.say is not None:
            lease.say({"event": "log", "text": text})
