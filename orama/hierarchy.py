"""One node: the only place where the parts meet, and what starts and stops in which order.

Starting goes keys, HTTP (which says what the node waits for), database, then what else it needs, TURN, SFU, signalling,
and the loop that makes the node what the database says. Whatever fails is a :class:`StartError` of one line and leaves
nothing behind. Stopping goes the other way: nobody new is let in, the peers are told and get their time (``drain``),
then the sockets close, then the store.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger

from orama import __version__
from orama.attending import Names, Surroundings
from orama.boot import wait_for_database, wait_for_prerequisites, waiting_site
from orama.cluster import acme
from orama.cluster.acme import Challenges
from orama.cluster.certificates import TurnCertificates
from orama.cluster.claims import RoomClaims
from orama.cluster.desired import DesiredNamespace, SfuPlace, WebRtcConfig
from orama.cluster.dns import DnsService, stored_records
from orama.cluster.enablement import Enablement
from orama.cluster.firewall import Firewall
from orama.cluster.keyring import Keyring
from orama.cluster.namespaces import DEFAULT_KEY_FILE, Namespaces
from orama.cluster.neighbours import Neighbours
from orama.cluster.nodes import Capacity, NodeRecord, NodeRegistry, machine
from orama.cluster.ports import PortBlocks, bindable
from orama.cluster.prerequisites import Prerequisite, probe, require
from orama.cluster.processes import processes
from orama.cluster.pulse import Pulse
from orama.cluster.reconciler import Reconciler, Wanted
from orama.cluster.rooms import RoomDirectory, RoomRecord
from orama.cluster.rotation import Rotation, change_key, rotate_cluster_key
from orama.cluster.runner import InlineRunner
from orama.cluster.settling import Settling
from orama.cluster.signing import Verifier, sign
from orama.cluster.statefile import StateFile
from orama.cluster.turn_access import TurnAccess
from orama.errors import StartError, Unavailable
from orama.listening import busy, listen, page_url, require_local, server_endpoints
from orama.metrics import LoopLag, Metrics
from orama.net.fabric import Fabric
from orama.net.tls import ServerCertificates
from orama.reporting import Everybody, SelfReport
from orama.rest.acme import acme_routes
from orama.rest.auth import Authenticator
from orama.rest.control import ControlCalls, control_site, listen_control
from orama.rest.internal import Gate, NodeCalls, internal_routes, internal_site
from orama.rest.site import Site, make_site
from orama.rest.tokens import Tokens
from orama.rest.tokens import new_key as new_token_key
from orama.serving import LiveRooms, Require, ServedNamespaces
from orama.settings import Settings, reloaded
from orama.sfu.room import Rooms
from orama.signaling.resource import SignalResource
from orama.signaling.service import SignalingService
from orama.signaling.trunks import Trunks
from orama.store.database import Database
from orama.store.directory import DataDirectory
from orama.store.sealing import BrokenSeal, Seal
from orama.turn.listeners import TurnService
from orama.turn.tenants import Tenants

_PORTS = ("turn_port", "turns_port")
#: Of node-to-node HTTP, where it is free.
INTERNAL_PORT = 6002
#: Bytes of the key that sealed secrets before there was a cluster key.
_NODE_KEY = "node.key"

_log = Logger()


class Node:
    """:param reactor: the asyncio reactor, for everything but the store's threads."""

    def __init__(self, reactor: Any, settings: Settings) -> None:
        self._reactor = reactor
        self.settings = self._given = settings
        self.metrics = Metrics()
        #: Why the node takes no calls; empty when it does.
        self.unready = "the node is starting"
        #: Where the room page is, once it is served.
        self.url = ""
        #: Actual ports of the HTTP endpoints, in the order of the settings.
        self.http: list[IListeningPort] = []
        self._running: list[tuple[str, Callable[[], Any]]] = []
        self._changing = DeferredLock()

    # -- start and stop ------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything, or nothing.

        :raises OramaError: one line that says why not.
        """
        try:
            await self._start()
        except CannotListenError as error:
            await self.stop()
            raise StartError(busy(error)) from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop what runs, the last that was started first. Nothing is left behind."""
        self.unready = self.unready or "the node is stopping"
        async with self._changing:
            while self._running:
                name, stop = self._running.pop()
                try:
                    await maybeDeferred(stop)
                except Exception:
                    _log.failure("{part} did not stop cleanly", part=name)

    async def drain(self) -> None:
        """Let nobody new in, tell the peers, and wait until the last has gone or their time is over."""
        self.unready = "the node is draining"
        if not hasattr(self, "signaling"):
            return
        try:
            await self.registry.leave()
        except Unavailable as error:
            _log.warn("the others find out by themselves that this node goes down: {why}", why=error.message)
        await self._empty("the node goes down")

    async def _empty(self, reason: str) -> None:
        """Tell everybody where to go, and wait until they have gone."""
        deadline = self.settings.signaling.drain_deadline
        _log.info("draining: {peers} peers have {deadline} s", peers=self.rooms.peers(), deadline=deadline)
        await self.signaling.drain(reason, deadline, self._reconnect_url())

    def _reconnect_url(self) -> str | None:
        """Where the people of this node can go: the gateway of another one, if there is one."""
        others = [node for node in self.registry.active() if node.node_id != self.registry.node_id and node.url]
        return f"ws{random.choice(others).url[4:]}/v1/webrtc/signal" if others else None  # noqa: S311

    def _started(self, name: str, stop: Callable[[], Any]) -> None:
        """Remember how to stop what has just been started."""
        self._running.append((name, stop))

    def _run(self, service: Service) -> None:
        """Start *service*, and stop it when its turn comes."""
        service.startService()
        self._started(str(service.name or type(service).__name__), service.stopService)

    async def _start(self) -> None:
        settings = self.settings
        for option, ip in (("--internal-ip", settings.internal_ip), ("turn.relay_ip:", settings.relay_ip)):
            require_local(option, ip)
        endpoints = server_endpoints(self._reactor, settings.http)
        self._prepare()
        await self._open_http(endpoints)
        services = [f"{role.upper()} of {name}" for name, roles in self.state.load().items() for role in roles]
        await wait_for_database(self._reactor, self.database, self._waiting, services)
        self._started("store", self.database.stop)
        self.unready = "the node is starting"
        await wait_for_prerequisites(self._reactor, self._probe, self._waiting, services)
        self.unready = "the node is starting"
        self._make_control()
        self._start_media()
        self._start_signaling()
        self._start_internal()
        await self._join()
        await self._serve()
        self._watch()
        self.unready = ""
        _log.info("orama is ready: {url}", url=self.url)

    def _waiting(self, why: str) -> None:
        self.unready = why

    def _prepare(self) -> None:
        """Files and keys, and what needs no more than these."""
        settings, reactor = self.settings, self._reactor
        self.data = DataDirectory(settings.data_dir)
        self.data.prepare()
        self._started("data directory", self.data.release)
        self.keyring = Keyring.keep(self.data / "cluster.key")
        try:
            self.seal = Seal(self._sealing_keys())
        except BrokenSeal as error:
            raise StartError(f"{self.data / _NODE_KEY}: {error}") from None
        self.keyring.changed.append(lambda: self.seal.adopt(self._sealing_keys()))
        self.tokens = Tokens(settings.auth, self.data.keep("token.key", new_token_key), reactor)
        self.node_id = self.data.node_id()
        self.database = Database(settings.database or self.data.database_url, reactor)
        self.registry = NodeRegistry(self.database, self.node_id, reactor, settings.cluster.heartbeat)
        self.neighbours = Neighbours(reactor, self.keyring, self.node_id)
        self.gate = Gate(Verifier(self.keyring, reactor), self.node_id)
        self.state = StateFile(self.data, self.node_id, reactor)

    def _sealing_keys(self) -> list[bytes]:
        """Those of the cluster, and the one that a node had for itself alone before there was one."""
        keys = list(self.keyring.sealing_keys)
        old = self.data / _NODE_KEY
        return [*keys, old.read_bytes()] if old.exists() else keys

    async def _open_http(self, endpoints: Mapping[str, IStreamServerEndpoint]) -> None:
        """Answer, though only that the node starts."""
        self.site = waiting_site(self._reactor, self.settings, self.health, lambda: self.unready)
        for description, endpoint in endpoints.items():
            port = await listen(description, endpoint, self.site)
            self._started(f"--http {description}", port.stopListening)
            self.http.append(port)
        self.url = page_url(self.settings.http[0], self.http[0], self.settings.public_ip)

    async def _probe(self) -> Sequence[Prerequisite]:
        return await probe(self.settings, self._reactor, self._own_url(), self.database)

    def _own_url(self) -> str:
        """Our own gateway, as browsers reach it."""
        return self.settings.cluster.url.rstrip("/") or self.url.partition("/?")[0]

    def _make_control(self) -> None:
        """What decides, and nothing that runs."""
        settings, reactor = self.settings, self._reactor
        self.desired: Mapping[str, DesiredNamespace] = {}
        self.ports = PortBlocks(
            self.database, settings, self.node_id, settings.internal_ip, reactor, bindable(settings)
        )
        settling = Settling(reactor, self.registry, self._ask)
        self.enablement = Enablement(
            self.database, self.seal, self.registry, self.ports, settings, reactor, settling, self._require_ready
        )
        self.namespaces = Namespaces(
            self.database, self.data, self.seal, self.registry, self.enablement, settings, reactor
        )
        self.directory = RoomDirectory(
            self.database, self.registry, reactor, settings.sfu.max_participants, self._places
        )
        self.authenticator = Authenticator(self.namespaces, self.tokens)

    def _start_media(self) -> None:
        settings, reactor = self.settings, self._reactor
        self.fabric = Fabric(reactor)
        self.tenants = Tenants(settings.relay_ip)
        self.certificates = ServerCertificates(
            self.data / "certificates",
            [settings.public_ip, "localhost"],
            reactor,
            settings.turn.certificate,
            settings.turn.private_key,
        )
        self.turn = TurnService(reactor, settings, self.tenants, self.fabric, self.certificates)
        self._run(self.turn)
        self.rooms = Rooms(reactor, settings, self.fabric)
        self.rooms.on_empty = self._emptied
        self.rooms.on_secured = self.metrics.join_time.observe
        self._started("rooms", self.rooms.stop)
        # With port 0 the kernel chose; what clients are told is what is.
        self.settings = evolve(settings, turn_port=self.turn.udp_port, turns_port=self.turn.tls_port)

    def _start_signaling(self) -> None:
        settings, reactor = self.settings, self._reactor
        self.access = TurnAccess(settings, self, reactor, self.registry.alive)
        trunks = Trunks(reactor, settings.signaling, self._places, self._sign, self.registry.alive)
        self.signaling = SignalingService(reactor, settings, self.rooms, self.directory, self.access, trunks=trunks)
        self.served = ServedNamespaces(
            reactor, settings, self.node_id, self.tenants, self.rooms, self._signal, self.namespaces.require_webrtc
        )
        self.served.drain_tenant = self.turn.drain_tenant
        self._started("namespaces", self.served.stop)
        # Stopped before the rooms are, so that clients hear that the node goes, not that their room was closed.
        self._run(self.signaling)
        self.live = LiveRooms(self.rooms, self._close_elsewhere)
        self._make_reconciler()

    def _make_reconciler(self) -> None:
        settings, reactor = self.settings, self._reactor
        run = processes(reactor)
        self.firewall = Firewall(reactor, settings, run)
        self.turn_certificates = TurnCertificates(reactor, settings, self.certificates, run)
        self._started("certificates", self.turn_certificates.stop)
        self.dns = DnsService(
            reactor,
            settings,
            lambda: stored_records(self.database),
            lambda: self.registry.nodes,
            self.registry.alive,
            random.SystemRandom(),
        )
        names = Names(
            self.database, self.registry, settings.base_domain, lambda: self.desired, reactor.seconds, self.dns.poke
        )
        around = Surroundings(self._settings_now, self.firewall, self.turn_certificates, self.state)

        async def config(namespace: str) -> WebRtcConfig:
            found = self.reconciler.configs.get(namespace) or self.served.config(namespace)
            assert found is not None  # what runs has a configuration, and so has what is to run
            return found

        self.runner = InlineRunner(self.served.apply, config)
        self.reconciler = Reconciler(
            reactor,
            self.node_id,
            self.runner,
            Wanted(self._read_desired, self.namespaces.config_of, self.enablement.stopped, self._repair),
            {
                "names": names.attend,
                "firewall": around.firewall,
                "certificates": around.certificates,
                "state file": around.save,
            },
            self.ports.move_sfu,
        )
        self.report = SelfReport(
            reactor,
            self._settings_now,
            self.registry,
            self.reconciler,
            lambda: self.desired,
            self,
            self._capacity,
            lambda: self.unready,
            self._probe,
            {
                "certificates": self.turn_certificates.report,
                "dns": self.dns.report,
                "firewall": self.firewall.report,
                "listeners": self._listeners,
            },
        )
        self.everybody = Everybody(self.registry, self.neighbours, self.report.make)

    def _start_internal(self) -> None:
        """Answer the other nodes, on the internal address alone."""
        settings, reactor = self.settings, self._reactor
        calls = NodeCalls(self.report.make, self._reconcile, self._close_room, self._set_draining, self._change_key)
        routes = internal_routes(self.gate, calls)
        if settings.base_domain:
            challenges = Challenges(
                self.database, settings.base_domain, reactor, self.dns.poke, settings.cluster.heartbeat
            )
            self._started("challenges", challenges.stop)
            password = self.data.keep(acme.FILE, acme.new_password)
            routes = {**routes, **acme_routes(self.gate, challenges, password)}
        self.internal = internal_site(
            reactor,
            settings,
            routes,
            health=self.health,
            ready=lambda: self.unready,
            metrics=self.metrics.text,
        )
        self.internal.noisy = False
        port = self._listen_internal()
        self._started("node-to-node HTTP", port.stopListening)
        self.internal_port = int(port.getHost().port)  # type: ignore[attr-defined]

    def _listen_internal(self) -> IListeningPort:
        wanted, ip = self.settings.cluster.port, self.settings.internal_ip
        try:
            port: IListeningPort = self._reactor.listenTCP(wanted or INTERNAL_PORT, self.internal, interface=ip)
        except CannotListenError as error:
            if wanted:
                raise StartError(f"cluster.port: {busy(error)}") from None
            port = self._reactor.listenTCP(0, self.internal, interface=ip)
        return port

    async def _join(self) -> None:
        """Be one of the nodes; what the node was to do when it was here last, it is to do again."""
        settings = self.settings
        me = NodeRecord(
            self.node_id,
            settings.internal_ip,
            self.internal_port,
            settings.public_ip,
            settings.relay_ip,
            self._own_url(),
            settings.turn_port,
            settings.turns_port,
            __version__,
            capacity=self._capacity(),
        )
        await self.registry.join(me)
        self._started("membership", self._leave)
        await self.ports.forget_elsewhere()
        await self.directory.start()
        await self.reconciler.run()
        self._run(
            RoomClaims(
                self.directory,
                self._reactor,
                settings.cluster.heartbeat,
                settings.sfu.empty_room_timeout,
                self._live_rooms,
                self.signaling.lose_room,
                lambda namespace, room_id: self.live.close_here(namespace, room_id, "room-closed"),
            )
        )
        self._run(
            Pulse(
                self._reactor,
                self.registry,
                self.reconciler,
                self._capacity,
                lambda: self._empty("the node is taken out of use"),
                self.signaling.undrain,
            )
        )
        self._run(self.dns)
        if await self.namespaces.start() is not None:
            _log.info("the owner key of default is in {file}", file=str(self.data / DEFAULT_KEY_FILE))

    async def _leave(self) -> None:
        try:
            await self.registry.leave()
        except Unavailable as error:
            _log.debug("nobody could be told that this node is gone: {why}", why=error.message)

    async def _serve(self) -> None:
        """Take people."""
        self.site.adopt(self._site())
        control = control_site(
            self._reactor,
            self.settings,
            self.namespaces,
            self.authenticator.tokens,
            self.access,
            observed=self.everybody.observed,
            calls=ControlCalls(
                nodes=self._nodes,
                drain=self._drain_node,
                remove=self.registry.remove,
                reports=self._reports,
                keyring=self.keyring,
                rotate_key=self._rotate_key,
            ),
        )
        control.noisy = False
        socket = listen_control(self._reactor, self.data.path, control)
        self._started("control socket", socket.stopListening)

    def _signal(self, settings: Settings, require: Require) -> SignalResource:
        return SignalResource(self.signaling, settings, self.authenticator, require, self.gate)

    def _site(self) -> Site:
        """What answers on the HTTP endpoints, with the settings as they are now."""
        site = make_site(
            self._reactor,
            self.settings,
            self.authenticator,
            self.namespaces,
            self.directory,
            self.live,
            signal=SignalResource(self.signaling, self.settings, self.authenticator, self.namespaces.require_webrtc),
            health=self.health,
            ready=lambda: self.unready,
            metrics=self.metrics.text,
            observed=self.everybody.observed,
            access=self.access,
        )
        site.noisy = False
        return site

    def _watch(self) -> None:
        for source in (self.turn.samples, self.rooms.samples, self.signaling.samples, self.dns.samples):
            self.metrics.add(source)
        self._run(LoopLag(self._reactor, self.metrics.loop_lag.observe))

    # -- what the parts are asked -----------------------------------------------------------------

    def _settings_now(self) -> Settings:
        return self.settings

    def health(self) -> Mapping[str, Any]:
        """For ``/health``."""
        return {"status": "ok", "version": __version__, "node_id": self.node_id}

    def _capacity(self) -> Capacity:
        return machine(len(self.served.names), self.rooms.peers() + self.turn.allocations())

    def _listeners(self) -> list[dict[str, Any]]:
        ports = (
            ("turn", "udp", self.turn.udp_port),
            ("turn", "tcp", self.turn.tcp_port),
            ("turns", "tcp", self.turn.tls_port),
        )
        return [{"name": name, "proto": proto, "port": port} for name, proto, port in ports]

    async def config(self, namespace: str) -> WebRtcConfig:
        """What clients of *namespace* need to know: as it is now, or as it last was while the database is away.

        :raises NotFound: ``webrtc_not_enabled``.
        """
        try:
            return await self.namespaces.config(namespace)
        except Unavailable:
            if namespace in self.reconciler.configs:
                return self.reconciler.configs[namespace]
            raise

    async def _read_desired(self) -> Mapping[str, DesiredNamespace]:
        self.desired = await self.namespaces.desired()
        return self.desired

    def _places(self, namespace: str) -> Sequence[SfuPlace]:
        """Where the SFUs of *namespace* are."""
        each = self.desired.get(namespace)
        return () if each is None else each.sfu_places({node.node_id: node for node in self.registry.nodes})

    def _sign(self, method: str, target: str) -> Mapping[str, str]:
        return sign(self.keyring, method, target, b"", self.node_id, self._reactor.seconds())

    def _live_rooms(self) -> Mapping[tuple[str, str], int]:
        return {
            (namespace, room.room_id): room.participants
            for namespace in self.served.names
            if self.rooms.serves(namespace)
            for room in self.rooms.all(namespace)
        }

    def room_count(self, namespace: str) -> int:
        return len(self.rooms.all(namespace)) if self.rooms.serves(namespace) else 0

    def participants(self, namespace: str) -> int:
        return sum(room.participants for room in self.rooms.all(namespace)) if self.rooms.serves(namespace) else 0

    def allocations(self, namespace: str) -> int:
        return self.turn.allocations(namespace)

    def _emptied(self, namespace: str, room_id: str) -> None:
        """A room has been empty for too long: its claim goes too, unless somebody joins it anew by then."""

        def back() -> bool:
            return self.rooms.get(namespace, room_id) is not None

        releasing = Deferred.fromCoroutine(self.directory.release(namespace, room_id, unless=back))
        releasing.addErrback(lambda failure: _log.failure("the claim of an empty room stays", failure))

    # -- among the nodes --------------------------------------------------------------------------

    async def _require_ready(self) -> None:
        require(await self._probe())

    async def _ask(self, node: NodeRecord, namespace: str) -> Mapping[str, Any]:
        """Have *node* look at *namespace*, and what it sees then."""
        if node.node_id == self.node_id:
            return await self._reconcile(namespace)
        answer: Mapping[str, Any] = await self.neighbours.post(
            node, "/v1/internal/reconcile", {"namespace": namespace}, timeout=10.0
        )
        return answer

    async def _reconcile(self, namespace: str | None) -> Mapping[str, Any]:
        await self.reconciler.run(namespace)
        return self.report.observed(namespace) if namespace is not None else {"settled": self.reconciler.settled}

    async def _repair(self, desired: Mapping[str, DesiredNamespace]) -> None:
        if self.registry.leads and await self.enablement.repair(tuple(desired.values())):
            self.dns.poke()

    async def _close_room(self, namespace: str, room_id: str, reason: str) -> bool:
        return self.live.close_here(namespace, room_id, reason)

    async def _close_elsewhere(self, record: RoomRecord, reason: str) -> None:
        node = self.registry.get(record.node_id)
        if node is not None and node.node_id != self.node_id and self.registry.alive(node.node_id):
            body = {"namespace": record.namespace, "room_id": record.room_id, "reason": reason}
            await self.neighbours.post(node, "/v1/internal/rooms/close", body)

    async def _set_draining(self, draining: bool) -> None:
        await self.registry.set_draining(self.node_id, draining)

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

    async def _change_key(self, stage: str, sealed: str) -> Mapping[str, Any]:
        return await change_key(self.keyring, stage, sealed)

    async def _rotate_key(self) -> Rotation:
        others = [node for node in self.registry.nodes if node.node_id != self.node_id]
        now = self._reactor.seconds()
        return await rotate_cluster_key(
            self.keyring, self.neighbours, others, self.enablement.reseal, self.node_id, now
        )

    async def _nodes(self) -> Iterable[Mapping[str, Any]]:
        """For ``orama node list``."""
        reports = {each["node_id"]: each for each in await self.everybody.reports()}
        return [self._listed(node, reports.get(node.node_id, {})) for node in self.registry.nodes]

    def _listed(self, node: NodeRecord, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        report, capacity = answer.get("report"), node.capacity
        ready = answer.get("error") or "unknown" if report is None else report["node"]["ready"] or "ready"
        return {
            "node_id": node.node_id,
            "status": ready,
            "state": node.state,
            "alive": self.registry.alive(node.node_id),
            "public_ip": node.public_ip,
            "internal_ip": node.internal_ip,
            "version": node.version,
            "cpus": capacity.cpus,
            "load": round(capacity.load, 2),
            "memory_mb": capacity.memory_mb,
            "memory_free_mb": capacity.memory_free_mb,
            "namespaces": sum(
                any(role.node_id == node.node_id for role in each.roles) for each in self.desired.values()
            ),
            "streams": capacity.streams,
        }

    async def _reports(self) -> Mapping[str, Any]:
        return {"nodes": await self.everybody.reports()}

    # -- while it runs ----------------------------------------------------------------------------

    async def reload(self, read: Settings) -> None:
        """Take over what can change while the node runs, and read certificates and keys again.

        The log names what waits for the next start.

        :raises OramaError: a key file cannot be used; then nothing changes.
        """
        async with self._changing:
            # Port 0 became a real one when TURN started; read again, it is the same wish.
            ports = {name: getattr(self.settings, name) for name in _PORTS if _same(name, read, self._given)}
            settings, waiting = reloaded(self.settings, evolve(read, **ports))
            self.authenticator.tokens.reload(settings.auth)
            self.certificates.reload_if_changed()
            self.settings = settings
            self.signaling.lobby.settings = settings.signaling
            self.served.configure(settings)
            self.site.adopt(self._site())
            _log.info("the configuration was read again")
            if waiting:
                _log.warn("configuration that waits for the next start: {keys}", keys=", ".join(waiting))


def _same(name: str, one: Settings, other: Settings) -> bool:
    return bool(getattr(one, name) == getattr(other, name))
