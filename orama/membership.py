"""This node as one of a cluster: who the others are, what is wanted of this one, and what it and they are asked.

A single node is a cluster of one, by the same code. The parts that carry media are handed in by ``hierarchy``; from
here they are started and stopped as the database says.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from attrs import frozen
from twisted.application.service import MultiService
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.web.resource import IResource

from orama import __version__
from orama.attending import Names, Surroundings
from orama.cluster import acme
from orama.cluster.acme import Challenges
from orama.cluster.certificates import TurnCertificates
from orama.cluster.claims import RoomClaims, RoomName
from orama.cluster.desired import DesiredNamespace, SfuPlace, WebRtcConfig
from orama.cluster.dns import DnsService, stored_records
from orama.cluster.elsewhere import Elsewhere
from orama.cluster.enablement import Enablement, Progress
from orama.cluster.firewall import Firewall
from orama.cluster.keyring import Keyring
from orama.cluster.namespaces import Namespaces
from orama.cluster.neighbours import Neighbours
from orama.cluster.nodes import Capacity, NodeRecord, NodeRegistry
from orama.cluster.ports import PortBlocks, bindable
from orama.cluster.prerequisites import Prerequisite, require
from orama.cluster.processes import processes
from orama.cluster.pulse import Pulse
from orama.cluster.reconciler import Reconciler, Wanted
from orama.cluster.rooms import RoomDirectory
from orama.cluster.rotation import Rotation, change_key, rotate_cluster_key
from orama.cluster.runner import Runner
from orama.cluster.settling import Settling
from orama.cluster.signing import Verifier, sign
from orama.cluster.statefile import StateFile
from orama.errors import NotFound, StartError, Unavailable
from orama.listening import busy
from orama.net.tls import ServerCertificates
from orama.reporting import Everybody, SelfReport, listed
from orama.rest.acme import acme_routes
from orama.rest.control import ControlCalls
from orama.rest.control_turn import TurnSessions
from orama.rest.internal import Gate, NodeCalls, internal_routes, internal_site
from orama.settings import Settings
from orama.store.database import Database
from orama.store.directory import DataDirectory
from orama.store.sealing import BrokenSeal, Seal

#: Of node-to-node HTTP, where it is free.
INTERNAL_PORT = 6002
#: Seconds that a run of ufw gets.
UFW = 20.0
#: Seconds between two looks whether a draining node still relays for somebody.
LOOK = 0.25
#: Seconds that another node gets for a pass that somebody waits for.
PASS = 10.0

_log = Logger()


@frozen
class Parts:
    """What carries media and signalling on this node.

    :param runner: starts and stops the roles of namespaces.
    :param outlives: what the runner has started goes on when this process ends.
    :param close_room: (namespace, room id, reason) → whether it was here.
    :param room_stats: (namespace, room id, peer id or None) → what goes on there; None when it is not here.
    :param rooms: the live rooms, with how many are in each.
    :param lose_room: the room is another node's now.
    :param allocations: how many a namespace has, or all have.
    :param empty: tell everybody why and where to go, and wait until they have gone.
    :param refill: take people again.
    """

    runner: Runner
    outlives: bool
    certificates: ServerCertificates
    close_room: Callable[[str, str, str], bool]
    room_stats: Callable[[str, str, str | None], Awaitable[Mapping[str, Any] | None]]
    rooms: Callable[[], Mapping[RoomName, int]]
    lose_room: Callable[[str, str], object]
    allocations: Callable[[str | None], int]
    capacity: Callable[[], Capacity]
    empty: Callable[[str], Awaitable[None]]
    refill: Callable[[], None]


@frozen
class Monitoring:
    """What ``/health``, ``/ready`` and ``/metrics`` show."""

    health: Callable[[], Mapping[str, Any]]
    ready: Callable[[], str]
    metrics: Callable[[], bytes]


class Membership:
    """:param settings: those that hold now.

    :param probe: asks for what WebRTC needs.
    """

    parts: Parts
    reconciler: Reconciler
    report: SelfReport
    everybody: Everybody
    dns: DnsService
    _challenges: Challenges | None = None

    def __init__(
        self,
        reactor: Any,
        settings: Callable[[], Settings],
        data: DataDirectory,
        database: Database,
        keyring: Keyring,
        seal: Seal,
        probe: Callable[[], Awaitable[Sequence[Prerequisite]]],
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._data = data
        self._database = database
        self._keyring = keyring
        self._probe = probe
        now = settings()
        self.node_id = data.node_id()
        self.registry = NodeRegistry(database, self.node_id, reactor, now.cluster.heartbeat)
        self.neighbours = Neighbours(reactor, keyring, self.node_id)
        self.elsewhere = Elsewhere(self.registry, self.neighbours)
        self.gate = Gate(Verifier(keyring, reactor), self.node_id)
        self.state = StateFile(data, self.node_id, reactor)
        self.ports = PortBlocks(database, now, self.node_id, now.internal_ip, reactor, bindable(now))
        settling = Settling(reactor, self.registry, self._ask)
        self.enablement = Enablement(
            database, seal, self.registry, self.ports, now, reactor, settling, self._require_ready
        )
        self.namespaces = Namespaces(database, data, seal, self.registry, self.enablement, now, reactor)
        self.directory = RoomDirectory(
            database, self.registry, reactor, now.sfu.max_participants, self.places, self._look_again
        )
        #: What is wanted, as last read.
        self.desired: Mapping[str, DesiredNamespace] = {}
        self._pulse: Pulse | None = None
        self._services = MultiService()
        self._stops: list[Callable[[], Any]] = []

    # -- start and stop ------------------------------------------------------------------------

    async def start(self, parts: Parts, monitoring: Monitoring, url: str) -> None:
        """Be one of the nodes; what this node was to do when it was here last, it does again.

        :param url: of our gateway, for browsers.
        :raises StartError: a port is taken.
        :raises Unavailable: the database does not answer.
        """
        self.parts = parts
        self._make_reconciler(monitoring.ready)
        port = self._listen(monitoring)
        await self._reseal()
        await self.ports.forget_elsewhere()
        if not parts.outlives:
            await self.directory.start()
        # What we were to do when we were here last runs before anybody counts on it.
        await self.registry.read()
        await self.reconciler.run()
        await self.registry.join(self._record(url, port))
        await self.reconciler.run()
        self._pulse = self._make_pulse()
        for service in (self._claims(), self._pulse, self.dns):
            service.setServiceParent(self._services)
        self._services.startService()

    async def stop(self) -> None:
        """Leave, and tell the others so."""
        if self._services.running:
            await maybeDeferred(self._services.stopService)
        while self._stops:
            stopping = self._stops.pop()()
            if stopping is not None:
                await stopping
        await self.leave()

    async def leave(self) -> None:
        """Let the others know at once that this node takes nobody any more.

        Nobody is told where the SFUs go on without it: the node is being restarted, and its rooms stay where they are.
        """
        if hasattr(self, "parts") and self.parts.outlives:
            return
        try:
            await self.registry.leave()
        except Unavailable as error:
            _log.warn("the others find out by themselves that this node goes: {why}", why=error.message)

    @property
    def unready(self) -> str:
        """Why nobody new can be let in, whatever runs here; empty when there is no reason."""
        if self._pulse is not None and self._pulse.away:
            return "the database does not answer"
        me = self.registry.get(self.node_id)
        return f"the node is {me.state}: nobody new comes to it" if me is not None and me.draining else ""

    def _record(self, url: str, port: int) -> NodeRecord:
        settings = self._settings()
        return NodeRecord(
            self.node_id,
            settings.internal_ip,
            port,
            settings.public_ip,
            settings.relay_ip,
            url,
            settings.turn_port,
            settings.turns_port,
            __version__,
            capacity=self.parts.capacity(),
        )

    def _make_reconciler(self, ready: Callable[[], str]) -> None:
        settings, reactor, registry = self._settings(), self._reactor, self.registry
        run = processes(reactor)
        firewall = Firewall(reactor, settings, processes(reactor, UFW))
        certificates = TurnCertificates(reactor, settings, self.parts.certificates, run)
        self._stops.append(certificates.stop)
        self.dns = DnsService(
            reactor,
            settings,
            lambda: stored_records(self._database),
            lambda: registry.nodes,
            registry.alive,
            random.SystemRandom(),
        )
        names = Names(
            self._database, registry, settings.base_domain, lambda: self.desired, reactor.seconds, self.dns.poke
        )
        around = Surroundings(self._settings, firewall, certificates, self.state)
        self.reconciler = Reconciler(
            reactor,
            self.node_id,
            self.parts.runner,
            Wanted(self._read_desired, self.namespaces.config_of, self.enablement.stopped, self._repair),
            {
                # In this order: nobody is to find TURN here before he can get to it.
                "firewall": around.firewall,
                "certificates": around.certificates,
                "names": names.attend,
                "state file": around.save,
            },
            self.ports.move_sfu,
        )
        shown = {
            "certificates": certificates.report,
            "dns": self.dns.report,
            "firewall": firewall.report,
            "listeners": self._listeners,
        }
        self.report = SelfReport(
            reactor, self._settings, registry, self.reconciler, lambda: self.desired, self, ready, self._probe, shown
        )
        self.everybody = Everybody(registry, self.neighbours, self.report.make)

    def _listen(self, monitoring: Monitoring) -> int:
        """Answer the other nodes, on the internal address alone; the port, 0 where there can be no others."""
        settings, reactor = self._settings(), self._reactor
        if settings.is_alone:
            return 0
        calls = NodeCalls(
            self.report.make,
            self._reconcile,
            self._close_room,
            self.parts.room_stats,
            partial(self.registry.set_draining, self.node_id),
            partial(change_key, self._keyring),
        )
        routes = internal_routes(self.gate, calls)
        if settings.base_domain:
            challenges = Challenges(
                self._database, settings.base_domain, reactor, self.dns.poke, settings.cluster.heartbeat
            )
            self._stops.append(challenges.stop)
            self._challenges = challenges
            routes |= acme_routes(self.gate, challenges, self._data.keep(acme.FILE, acme.new_password))
        site = internal_site(
            reactor,
            settings,
            routes,
            health=monitoring.health,
            ready=monitoring.ready,
            metrics=monitoring.metrics,
        )
        site.noisy = False
        wanted, ip = settings.cluster.port, settings.internal_ip
        try:
            port: IListeningPort = reactor.listenTCP(wanted or INTERNAL_PORT, site, interface=ip)
        except CannotListenError as error:
            if wanted:
                raise StartError(f"cluster.port: {busy(error)}") from None
            port = reactor.listenTCP(0, site, interface=ip)
        self._stops.append(port.stopListening)
        return int(port.getHost().port)  # type: ignore[attr-defined]

    def _claims(self) -> RoomClaims:
        settings, parts = self._settings(), self.parts
        return RoomClaims(
            self.directory,
            self._reactor,
            settings.cluster.heartbeat,
            settings.sfu.empty_room_timeout,
            parts.rooms,
            parts.lose_room,
            lambda namespace, room_id: parts.close_room(namespace, room_id, "room-closed"),
        )

    def _make_pulse(self) -> Pulse:
        async def empty() -> None:
            until = self._reactor.seconds() + self._settings().signaling.drain_deadline
            # Nobody finds the way here any more before the first one is told to go.
            await self.reconciler.run()
            self.dns.poke()
            await self.parts.empty("the node is taken out of use")
            while self.parts.allocations(None) and self._reactor.seconds() < until:
                await deferLater(self._reactor, LOOK, lambda: None)

        return Pulse(
            self._reactor, self.registry, self.reconciler, self.parts.capacity, empty, lambda: self.parts.refill()
        )

    async def _reseal(self) -> None:
        """What an older key has sealed is sealed with the cluster's from now on."""
        try:
            await self.enablement.reseal()
        except BrokenSeal as error:
            _log.error("a TURN secret cannot be read: {why}; is cluster.key the cluster's?", why=str(error))

    # -- what is wanted, and where ----------------------------------------------------------------

    async def _read_desired(self) -> Mapping[str, DesiredNamespace]:
        self.desired = await self.namespaces.desired()
        return self.desired

    async def _look_again(self) -> None:
        """See who is there and what is wanted, now and not when it is time."""
        await self.registry.read()
        await self._read_desired()

    async def config_of(self, namespace: str) -> WebRtcConfig:
        """What this node has to know of a namespace, as the last pass found it.

        :raises NotFound: ``webrtc_not_enabled``.
        :raises Unavailable: ``secret_unreadable``.
        """
        each = self.desired.get(namespace)
        if each is None or not each.enabled:
            raise NotFound("webrtc_not_enabled", "WebRTC is not enabled in this namespace")
        return self.reconciler.configs.get(namespace) or self.namespaces.config_of(each)

    async def config(self, name: str) -> WebRtcConfig:
        """What clients of a namespace need to know: as it is now, or as it last was while the database is away.

        :raises NotFound: ``webrtc_not_enabled``.
        """
        try:
            return await self.namespaces.config(name)
        except Unavailable:
            if name in self.reconciler.configs:
                return self.reconciler.configs[name]
            raise

    async def _repair(self, desired: Mapping[str, DesiredNamespace]) -> None:
        await self.enablement.finish()
        if not self.registry.leads:
            return
        if await self.enablement.repair(tuple(desired.values())):
            self.dns.poke()
        if self._challenges is not None:
            await self._challenges.forget()

    async def _require_ready(self, progress: Progress) -> None:
        found = await self._probe()
        for each in found:
            progress(each.name, "done" if each.ok or not each.required else "failed", f"{each.name}: {each.detail}")
        require(found)

    def places(self, namespace: str) -> Sequence[SfuPlace]:
        """Where the SFUs of *namespace* are."""
        each = self.desired.get(namespace)
        return () if each is None else each.sfu_places({node.node_id: node for node in self.registry.nodes})

    def sign(self, method: str, target: str) -> Mapping[str, str]:
        """Headers for a request without a body to another node."""
        return sign(self._keyring, method, target, b"", self.node_id, self._reactor.seconds())

    def reconnect_url(self) -> str | None:
        """Where the people of this node can go: the gateway of another one, if there is one."""
        others = [node for node in self.registry.active() if node.node_id != self.node_id and node.url]
        return f"ws{random.choice(others).url[4:]}/v1/webrtc/signal" if others else None  # noqa: S311

    # -- what is here -------------------------------------------------------------------------------

    def room_count(self, namespace: str) -> int:
        return sum(name == namespace for name, _ in self.parts.rooms())

    def participants(self, namespace: str) -> int:
        return sum(number for (name, _), number in self.parts.rooms().items() if name == namespace)

    def allocations(self, namespace: str) -> int:
        return self.parts.allocations(namespace)

    def capacity(self) -> Capacity:
        return self.parts.capacity()

    def _listeners(self) -> list[dict[str, Any]]:
        settings = self._settings()
        ports = [
            ("turn", "udp", settings.turn_port),
            ("turn", "tcp", settings.turn_port),
            ("turns", "tcp", settings.turns_port),
        ]
        if self.dns.port:
            ports += [("dns", "udp", self.dns.port), ("dns", "tcp", self.dns.port)]
        return [{"name": name, "proto": proto, "port": port} for name, proto, port in ports]

    # -- among the nodes ----------------------------------------------------------------------------

    async def _ask(self, node: NodeRecord, namespace: str) -> Mapping[str, Any]:
        """Have *node* look at *namespace*, and what it sees then."""
        if node.node_id == self.node_id:
            return await self._reconcile(namespace)
        body = {"namespace": namespace}
        answer: Mapping[str, Any] = await self.neighbours.post(node, "/v1/internal/reconcile", body, timeout=PASS)
        return answer

    async def _reconcile(self, namespace: str | None) -> Mapping[str, Any]:
        await self.reconciler.run(namespace)
        await self.dns.refresh()  # whoever waits for this namespace waits for its names too
        return self.report.observed(namespace) if namespace is not None else {"settled": self.reconciler.settled}

    async def _close_room(self, namespace: str, room_id: str, reason: str) -> bool:
        return self.parts.close_room(namespace, room_id, reason)

    # -- what the command line asks -----------------------------------------------------------------

    def control_calls(self, turn: TurnSessions, more: Mapping[str, IResource]) -> ControlCalls:
        """:param more: name → what answers below ``/v1/control`` besides."""
        return ControlCalls(
            nodes=self._list_nodes,
            drain=self._drain_node,
            remove=self.registry.remove,
            reports=self._reports,
            keyring=self._keyring,
            rotate_key=self._rotate_key,
            more=more,
            turn=turn,
        )

    async def _reports(self) -> Mapping[str, Any]:
        return {"nodes": await self.everybody.reports()}

    async def _drain_node(self, node_id: str, draining: bool) -> Mapping[str, Any]:
        await self.registry.set_draining(node_id, draining)
        node = self.registry.get(node_id)
        moves = [
            {"namespace": namespace, "role": role.role}
            for namespace, each in sorted(self.desired.items())
            for role in each.roles
            if role.node_id == node_id and draining
        ]
        return {"node_id": node_id, "state": "unknown" if node is None else node.state, "moves": moves}

    async def _rotate_key(self) -> Rotation:
        others = [node for node in self.registry.nodes if node.node_id != self.node_id]
        now, reseal = self._reactor.seconds(), self.enablement.reseal
        return await rotate_cluster_key(self._keyring, self.neighbours, others, reseal, self.node_id, now)

    async def _list_nodes(self) -> Iterable[Mapping[str, Any]]:
        """For ``orama node list``."""
        answers = {each["node_id"]: each for each in await self.everybody.reports()}
        return [
            listed(node, self.registry.alive(node.node_id), answers.get(node.node_id, {}), self.desired.values())
            for node in self.registry.nodes
        ]
