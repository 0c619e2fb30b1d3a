"""The TURN server of a node as several processes: worker 0 is the node's own process, the others are its children.

Python runs one thread at a time, so that one process is one core. All workers have sockets of their own on the same
ports (:mod:`orama.turn.fronts`), and the kernel spreads clients over them; relay ports, allocations and bandwidth are
counted for all of them in one table (:mod:`orama.turn.shared`), and what one gives out is good with all. What comes
from a new address about an allocation of another worker is passed on to that one (:mod:`orama.turn.workers_passing`).
Worker 0 reaches the SFU of this process in memory, the others through the kernel.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any

from attrs import evolve
from twisted.application.internet import TimerService
from twisted.application.service import Service
from twisted.internet.defer import Deferred, FirstError, gatherResults, maybeDeferred
from twisted.logger import Logger

from orama.figures import Sample, total
from orama.net.fabric import Fabric
from orama.net.poll import Poll
from orama.net.tls import ServerCertificates
from orama.settings import AuthSettings, Settings, TurnSettings
from orama.turn.alternates import Alternates, listed
from orama.turn.fronts import Front, bind
from orama.turn.listeners import TurnService
from orama.turn.sessions import Selection, Session
from orama.turn.shared import MAX_WORKERS, Crew, SharedTable, make_memory
from orama.turn.tenants import Tenants
from orama.turn.workers_channel import Beginning, from_json, to_json
from orama.turn.workers_process import WorkerProcess

#: Seconds between two looks at the workers.
TICK = 1.0
#: Seconds between two looks where clients are sent while this node, or a namespace on it, drains.
ALTERNATES_TIME = 5.0
#: Figures that the table has for all workers: the node's own say them.
_COMMON = frozenset({"orama_turn_allocations"})
_KEY_LENGTH = 32

_log = Logger()


def worker_count(settings: TurnSettings) -> int:
    """How many processes are to serve TURN."""
    return settings.workers or min(len(os.sched_getaffinity(0)), MAX_WORKERS)


class Workers(Service):
    """What :class:`~orama.turn.listeners.TurnService` is where there is one process, for several.

    :param settings: with ``turn.workers`` of 2 and more.
    :param fabric: of this process; :param poll: likewise.
    """

    name = "turn"

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        tenants: Tenants,
        fabric: Fabric,
        certificates: ServerCertificates,
        poll: Poll | None = None,
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._tenants = tenants
        self._fabric = fabric
        self._certificates = certificates
        self._poll = poll
        self._count = worker_count(settings.turn)
        self._alternates: Alternates | None = None
        self._alternates_told = 0.0
        self._table_key = secrets.token_bytes(_KEY_LENGTH)
        self._key = secrets.token_bytes(_KEY_LENGTH)
        self._draining = False
        self._drained: set[str] = set()
        self._fronts: list[Front] = []
        self.workers: list[WorkerProcess] = []
        self._tick = TimerService(TICK, self._look)
        self._tick.clock = reactor
        self.udp_port = self.tcp_port = settings.turn_port
        self.tls_port = settings.turns_port

    def startService(self) -> None:
        """Bind everything or nothing, and start the workers; they serve a moment later (:meth:`ready`).

        :raises CannotListenError: a port is taken.
        """
        settings = self._settings
        self._fronts = bind(settings.public_ip, settings.turn_port, settings.turns_port, self._count)
        self.udp_port, self.tcp_port, self.tls_port = self._fronts[0].ports
        self._settings = settings = evolve(settings, turn_port=self.udp_port, turns_port=self.tls_port)
        self.table = make_memory(self._count)
        self._common = SharedTable(self.table, self._count, 0, self._table_key)
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(self._count)]
        self._inboxes, self._outboxes = zip(*pairs, strict=True)
        for each in (*self._inboxes, *self._outboxes):
            each.setblocking(False)
        self.own = TurnService(
            self._reactor,
            settings,
            self._tenants,
            self._fabric,
            self._certificates,
            self._poll,
            front=self._fronts[0],
            crew=Crew(self._common, self._key, self._inboxes[0], self._outboxes),
        )
        self.own.startService()
        self._tenants.watch(self._tenant_changed)
        self._certificates.changed.append(self._certificates_changed)
        self.workers = [
            WorkerProcess(self._reactor, index, [*self._fronts[index], self._inboxes[index], *self._outboxes], self)
            for index in range(1, self._count)
        ]
        for worker in self.workers:
            worker.start()
        self._tick.startService()
        super().startService()
        _log.info("TURN is served by {count} processes", count=self._count)

    def learn(self, username: str) -> None:
        """Know the name of credentials that were issued, in this process alone; nobody is told to hide one."""
        self.own.learn(username)

    async def ready(self) -> None:
        """Wait until all workers serve."""
        for worker in self.workers:
            await worker.began

    def stopService(self) -> Deferred[Any]:
        """End every allocation and every worker, and give every port back."""
        super().stopService()
        self._tenants.unwatch(self._tenant_changed)
        self._certificates.changed.remove(self._certificates_changed)
        stopping = [self._tick.stopService(), maybeDeferred(self.own.stopService)]
        stopping += [worker.stop() for worker in self.workers]
        return gatherResults(stopping).addBoth(self._stopped)

    def _stopped(self, result: Any) -> Any:
        for each in (*self._fronts, *self._inboxes, *self._outboxes):
            each.close()
        self._common.close()
        os.close(self.table)
        return result

    # ---- what the node says

    def redirect(self, alternates: Alternates) -> None:
        """Send clients to *alternates* while draining, instead of to the servers of the configuration."""
        self._alternates = alternates
        self.own.redirect(alternates)

    def drain(self) -> None:
        """Make no new allocations; the ones that are there go on."""
        self._draining = True
        self.own.drain()
        self._tell_alternates()
        self._tell(order="drain")

    def undrain(self) -> None:
        """Make allocations again."""
        self._draining = False
        self.own.undrain()
        self._tell(order="undrain")

    def drain_tenant(self, namespace: str) -> None:
        """Make no new allocations for *namespace*: who asks gets 508, the ones that are there go on."""
        self._drained.add(namespace)
        self.own.drain_tenant(namespace)
        self._tell_alternates()
        self._tell(order="drain_tenant", namespace=namespace)

    def undrain_tenant(self, namespace: str) -> None:
        """Make allocations for *namespace* again."""
        self._drained.discard(namespace)
        self.own.undrain_tenant(namespace)
        self._tell(order="undrain_tenant", namespace=namespace)

    def configure(self, settings: TurnSettings) -> None:
        """Take over what may change while the server runs."""
        self._settings = evolve(self._settings, turn=settings)
        self.own.configure(settings)
        self._tell(order="configure", settings=to_json(settings))
        if self._draining or self._drained:
            self._tell_alternates()

    async def disconnect(self, selection: Selection) -> int:
        """End the allocations that an operator means, and the streams of their clients; gives how many there were.

        :raises Unavailable: a worker does not answer.
        """
        counts = await self._ask(self.own.disconnect(selection), order="disconnect", selection=to_json(selection))
        return sum(counts)

    # ---- what it asks

    async def sessions(self, selection: Selection) -> list[Session]:
        """The allocations that an operator means.

        :raises Unavailable: a worker does not answer.
        """
        own, *others = await self._ask(self.own.sessions(selection), order="sessions", selection=to_json(selection))
        return [*own, *(from_json(Session, each) for found in others for each in found)]

    def allocations(self, namespace: str | None = None) -> int:
        """How many there are, of all or of one namespace."""
        if namespace is not None:
            return self._common.held((namespace,))
        return sum(self._common.held((tenant.namespace,)) for tenant in self._tenants)

    def samples(self) -> Iterator[Sample]:
        """Name, labels and value of every figure, for Prometheus: the sums of what the workers have."""
        others = ((each for each in worker.samples() if each[0] not in _COMMON) for worker in self.workers)
        yield from total([self.own.samples(), *others])
        yield "orama_turn_workers", {}, 1 + sum(worker.pid is not None for worker in self.workers)

    # ---- for the workers

    def beginning(self, worker: int) -> Mapping[str, Any]:
        """What a worker is told first: how everything is now."""
        beginning = Beginning(
            worker=worker,
            workers=self._count,
            table_key=self._table_key.hex(),
            key=self._key.hex(),
            settings=evolve(self._settings, database="", auth=AuthSettings()),
            tenants=tuple(self._tenants),
            sockets=len(list(self._fronts[worker])),
            certificates=self._certificates.files(),
            protocols=self._certificates.protocols,
            drained=tuple(sorted(self._drained)),
            draining=self._draining,
        )
        return to_json(beginning)  # type: ignore[no-any-return]

    def died(self, worker: int) -> None:
        """What the table has of it belongs to nobody."""
        self._common.forget(worker)

    async def _ask(self, own: Coroutine[Any, Any, Any], **message: Any) -> list[Any]:
        """Our own answer and those of the workers that are there; one that is not has nothing."""
        others = [worker.ask(**message) for worker in self.workers if worker.pid is not None]
        asking = [Deferred.fromCoroutine(each) for each in (own, *others)]
        try:
            return list(await gatherResults(asking, consumeErrors=True))
        except FirstError as error:
            error.subFailure.raiseException()
            raise

    def _tell(self, **message: Any) -> None:
        for worker in self.workers:
            worker.tell(**message)

    def _tell_alternates(self) -> None:
        """Where clients are sent by those of us who send them away."""
        self._alternates_told = self._reactor.seconds()
        if self._alternates is not None:
            namespaces = [tenant.namespace for tenant in self._tenants] if self._draining else sorted(self._drained)
            self._tell(order="alternates", table=listed(self._alternates, namespaces))

    def _tenant_changed(self, namespace: str) -> None:
        tenant = self._tenants.get(namespace)
        if tenant is None:
            self._drained.discard(namespace)
            self._tell(order="remove", namespace=namespace)
        else:
            self._tell(order="put", tenant=to_json(tenant))

    def _certificates_changed(self) -> None:
        self._tell(order="certificates", certificates=self._certificates.files())

    def _look(self) -> None:
        # A timer whose function raises never runs again.
        try:
            self._common.sweep(self._reactor.seconds())
            for worker in self.workers:
                worker.tick()
            late = self._reactor.seconds() - self._alternates_told >= ALTERNATES_TIME
            if late and (self._draining or self._drained):
                self._tell_alternates()
        except Exception:
            _log.failure("a look at the TURN workers failed")
