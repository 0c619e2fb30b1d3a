"""One node: the only place where the parts meet, and what starts and stops in which order.

Starting goes keys, HTTP (which says what the node waits for), database, then what else it needs, TURN, SFU, signalling,
and the loop that makes the node what the database says. Whatever fails is a :class:`StartError` of one line and leaves
nothing behind. Stopping goes the other way: nobody new is let in, the peers are told and get their time (``drain``),
then the sockets close, then the store.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from random import SystemRandom
from typing import Any

from attrs import evolve
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger, globalLogPublisher
from twisted.python.failure import Failure

from orama import __version__
from orama.boot import wait_for_database, wait_for_prerequisites, waiting_site
from orama.children import Children
from orama.cluster.alternates import ClusterAlternates
from orama.cluster.desired import TurnPlace, WebRtcConfig
from orama.cluster.exchange import Exchange
from orama.cluster.keyring import Keyring
from orama.cluster.namespaces import DEFAULT_KEY_FILE
from orama.cluster.nodes import Capacity, machine
from orama.cluster.prerequisites import Prerequisite, probe
from orama.cluster.processes import processes
from orama.cluster.runner import InlineRunner
from orama.cluster.turn_access import TurnAccess
from orama.errors import OramaError, StartError, Unavailable
from orama.fronts import Fronts
from orama.listening import busy, listen, page_url, require_local, server_endpoints
from orama.membership import INTERNAL_PORT, Membership, Monitoring, Parts
from orama.metrics import LoopLag, Metrics
from orama.net.fabric import Fabric
from orama.net.poll import Poll
from orama.net.tls import ServerCertificates
from orama.rest.auth import Authenticator
from orama.rest.control import control_site, listen_control
from orama.rest.control_webhooks import WebhookTestResource
from orama.rest.site import Site, make_site
from orama.rest.tokens import Tokens
from orama.rest.tokens import new_key as new_token_key
from orama.serving import LiveRooms, Require, ServedNamespaces, tenant_of
from orama.settings import Settings, reloaded
from orama.sfu.rooms import Rooms
from orama.sfu.transit import Transit
from orama.shut import shut_places
from orama.signaling.resource import SignalResource
from orama.signaling.service import SignalingService
from orama.signaling.trunks import Trunks
from orama.store.database import Database
from orama.store.directory import DataDirectory
from orama.store.sealing import BrokenSeal, Seal
from orama.turn.listeners import TurnService
from orama.turn.tenants import Shut, Tenants
from orama.turn.workers import Workers, worker_count
from orama.units import Units
from orama.webhooks.service import Webhooks

_PORTS = ("turn_port", "turns_port")
#: The file with the key that sealed secrets before there was a cluster key.
_NODE_KEY = "node.key"

_log = Logger()


class Node:
    """:param reactor: the asyncio reactor, for everything but the store's threads."""

    def __init__(self, reactor: Any, settings: Settings) -> None:
        self._reactor = reactor
        self.settings = self._given = settings
        self.metrics = Metrics()
        self.transit = Transit()
        #: Why the node takes no calls; empty when it does.
        self.unready = "the node is starting"
        #: Where the room page is, once it is served.
        self.url = ""
        #: Actual ports of the HTTP endpoints, in the order of the settings.
        self.http: list[IListeningPort] = []
        #: Namespaces that run in processes of their own; None when they run in here.
        self.units: Units | Children | None = None
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
        await self.membership.leave()
        await self._empty("the node goes down")

    async def _empty(self, reason: str) -> None:
        """Tell everybody where to go, and wait until they have gone."""
        deadline = self.settings.signaling.drain_deadline
        _log.info("draining: {peers} peers have {deadline} s", peers=self.rooms.peers(), deadline=deadline)
        self.turn.drain()
        await self.signaling.drain(reason, deadline, self.membership.reconnect_url())

    def _refill(self) -> None:
        """Take people again."""
        self.turn.undrain()
        self.signaling.undrain()

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
        if settings.turn.relay_ip6:
            require_local("turn.relay_ip6:", settings.turn.relay_ip6)
        endpoints = server_endpoints(self._reactor, settings.http)
        self._prepare()
        await self._open_http(endpoints)
        await self._wait()
        await self._start_media()
        self._start_signaling()
        await self._join()
        await self._serve()
        self._watch()
        if self.units is not None and not self.units.outlives:
            await self._later(self._first_start())  # our children, which come to the control socket
        self.unready = ""
        _log.info("orama is ready: {url}", url=self.url)
        if self.units is not None and self.units.outlives:
            # systemd starts no unit before we have said that we are ready.
            self._later(self._first_start())

    def _later(self, work: Coroutine[Any, Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(work).addErrback(_not_later)

    async def _wait(self) -> None:
        """Until everything is there that the node needs."""
        waits = self.membership.state.load().items()
        services = [f"{role.upper()} of {namespace}" for namespace, roles in waits for role in roles]

        def waiting(why: str) -> None:
            self.unready = why

        await wait_for_database(self._reactor, self.database, waiting, services)
        self._started("store", self.database.stop)
        await wait_for_prerequisites(self._reactor, self._probe, waiting, services)
        self.unready = "the node is starting"

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
        self.database = Database(settings.database or self.data.database_url, reactor)
        self.membership = Membership(
            reactor, self._settings_now, self.data, self.database, self.keyring, self.seal, self._probe
        )
        self.node_id, self.registry = self.membership.node_id, self.membership.registry
        self.namespaces, self.directory = self.membership.namespaces, self.membership.directory
        self.authenticator = Authenticator(self.namespaces, self.tokens)

    def _sealing_keys(self) -> list[bytes]:
        """Those of the cluster, and the one that a node had for itself alone before there was one."""
        keys = list(self.keyring.sealing_keys)
        old = self.data / _NODE_KEY
        return [*keys, old.read_bytes()] if old.exists() else keys

    async def _open_http(self, endpoints: Mapping[str, IStreamServerEndpoint]) -> None:
        """Answer, though only that the node starts."""
        self.site = waiting_site(self._reactor, self.settings, self.health, self.ready)
        for description, endpoint in endpoints.items():
            port = await listen(description, endpoint, self.site)
            self._started(f"--http {description}", port.stopListening)
            self.http.append(port)
        self.url = page_url(self.settings.http[0], self.http[0], self.settings.public_ip)

    async def _probe(self) -> Sequence[Prerequisite]:
        return await probe(self.settings, self._reactor, self._local_url(), self.database)

    def _local_url(self) -> str:
        """Our own gateway, as this machine reaches it: behind it there may be a proxy that is not up yet."""
        return page_url(self.settings.http[0], self.http[0], "127.0.0.1").partition("/?")[0]

    def _own_url(self) -> str:
        """Our own gateway, as browsers reach it."""
        return self.settings.cluster.url.rstrip("/") or self.url.partition("/?")[0]

    async def _start_media(self) -> None:
        settings, reactor = self.settings, self._reactor
        self.fabric = Fabric(reactor)
        self.fabric.transit = self.transit.note
        self.tenants = Tenants(settings.relay_ip, settings.turn.relay_ip6)
        self.certificates = ServerCertificates(
            self.data / "certificates",
            [settings.public_ip, "localhost"],
            reactor,
            settings.turn.certificate,
            settings.turn.private_key,
            protocols=("stun.turn", "stun.nat-discovery"),  # RFC 7443, 3
        )
        poll = Poll(reactor, self.fabric, settings.turn.coalescing)
        parts = reactor, settings, self.tenants, self.fabric, self.certificates, poll
        self.turn: TurnService | Workers
        if worker_count(settings.turn) == 1:
            inline = settings.cluster.runner == "inline"
            self.turn = TurnService(*parts, all_issued_here=settings.is_alone and inline)
        else:
            self.turn = Workers(*parts)
        self._run(self.turn)
        self.unready = "the node waits for the processes of TURN"
        await self.turn.ready()
        self.unready = "the node is starting"
        spool, chance = self.data / "webhooks.spool", SystemRandom().random
        self.webhooks = Webhooks(reactor, settings.webhooks, self.node_id, spool, Exchange(reactor), chance)
        self._run(self.webhooks)
        self.rooms = Rooms(reactor, settings, self.fabric, poll=poll)
        self.rooms.on_empty = self._emptied
        self.rooms.on_secured = self.metrics.join_time.observe
        self.rooms.on_first_frame = self.metrics.first_frame.observe
        self.rooms.on_occurrence = self.webhooks.note
        self._started("rooms", self.rooms.stop)
        # With port 0 the kernel chose; what clients are told is what is.
        self.settings = evolve(settings, turn_port=self.turn.udp_port, turns_port=self.turn.tls_port)
        if settings.cluster.runner != "inline":
            self._start_units(settings.cluster.runner)

    def _start_units(self, runner: str) -> None:
        """Namespaces are processes of their own: be there for them."""
        config, reconnect_url = self.membership.config_of, self.membership.reconnect_url
        if runner == "processes":
            inline = self._inline()
            fronts = Fronts(self._reactor, self._settings_now, self._signal, self.namespaces.require_webrtc)
            self.units = Children(
                self._reactor, self._settings_now, self.directory, inline, config, reconnect_url, fronts
            )
        else:
            self.units = Units(
                self._reactor,
                self._settings_now,
                self.directory,
                self.tenants,
                self.turn,
                config,
                lambda config: tenant_of(config, self.settings, self._shut()),
                reconnect_url,
                globalLogPublisher,
                processes(self._reactor),
            )
        self.units.workers.on_secured = self.metrics.join_time.observe
        self.units.workers.on_occurrence = self.webhooks.note
        self.units.workers.on_first_frame = self.metrics.first_frame.observe
        self.units.startService()
        self._started("units", self.units.stopService)

    def _start_signaling(self) -> None:
        settings, reactor = self.settings, self._reactor
        self.access = TurnAccess(settings, self.membership, reactor, self.registry.alive, self.turn.learn)
        processes = self.units.workers if isinstance(self.units, Children) and self.units.several else None
        trunks = Trunks(
            reactor,
            settings.signaling,
            self.membership.places,
            self.membership.sign,
            self.registry.alive,
            processes,
        )
        self.signaling = SignalingService(reactor, settings, self.rooms, self.directory, self.access, trunks=trunks)
        self.served = ServedNamespaces(
            reactor, settings, self.node_id, self.tenants, self.rooms, self._signal, self.namespaces.require_webrtc
        )
        self.served.drain_tenant = self.turn.drain_tenant
        self.served.shut = self._shut
        self.turn.redirect(
            ClusterAlternates(self._settings_now, self.node_id, self._turn_places, self.registry.active, SystemRandom())
        )
        self.served.lose_namespace = self._moved
        self._started("namespaces", self.served.stop)
        # Stopped before the rooms are, so that clients hear that the node goes, not that their room was closed.
        self._run(self.signaling)
        sfus = self.rooms if self.units is None else self.units.workers
        self.live = LiveRooms(sfus, self.membership.elsewhere.close, self.membership.elsewhere.stats)

    def _shut(self) -> Shut:
        """What no relay may reach of what this node serves and uses, as far as it is there already."""
        me = self.registry.get(self.node_id)
        own = [getattr(each.getHost(), "port", 0) for each in self.http]
        cluster = me.internal_port if me is not None else self.settings.cluster.port or INTERNAL_PORT
        return shut_places(self.settings, [*own, cluster, self.membership.dns.port])

    def _turn_places(self, namespace: str) -> Sequence[TurnPlace]:
        """Where TURN of *namespace* is, as the last pass found it."""
        each = self.membership.desired.get(namespace)
        return () if each is None else each.turn_places({node.node_id: node for node in self.registry.nodes})

    def _inline(self) -> InlineRunner:
        """Serves roles in this process, once there is what serves them."""
        return InlineRunner(lambda *what: self.served.apply(*what), self._config_to_run)

    def _parts(self) -> Parts:
        units = self.units
        return Parts(
            self._inline() if units is None else units.runner,
            units is not None and units.outlives,
            self.certificates,
            self.live.close_here,
            self.live.stats_here,
            self._live_rooms if units is None else units.workers.live,
            self.lose_room if units is None else units.workers.lose,
            self.turn.allocations,
            self._capacity,
            self._empty,
            self._refill,
        )

    async def _join(self) -> None:
        """Be one of the nodes, and what this node was when it was here last."""
        monitoring = Monitoring(self.health, self.ready, self.metrics.text)
        self._started("membership", self.membership.stop)
        await self.membership.start(self._parts(), monitoring, self._own_url())
        self.served.configure(self.settings)  # by now all ports of ours are known
        if self.units is None:
            await self._first_start()

    async def _first_start(self) -> None:
        if await self.namespaces.start() is not None:
            _log.info("the owner key of default is in {file}", file=str(self.data / DEFAULT_KEY_FILE))

    async def _serve(self) -> None:
        """Take people."""
        self.site.adopt(self._site())
        units = {} if self.units is None else self.units.resources()
        webhooks = WebhookTestResource(self.namespaces.require, self.webhooks.test)
        control = control_site(
            self._reactor,
            self.settings,
            self.namespaces,
            self.authenticator.tokens,
            self.access,
            observed=self.membership.everybody.observed,
            calls=self.membership.control_calls(self.turn, {**units, "webhooks": webhooks}),
        )
        control.noisy = False
        socket = listen_control(self._reactor, self.data.path, control)
        # Processes that end with the node say their last on it.
        last = next((at for at, (name, _) in enumerate(self._running) if name == "units"), len(self._running))
        self._running.insert(last, ("control socket", socket.stopListening))

    def _signal(self, settings: Settings, require: Require) -> SignalResource:
        return SignalResource(self.signaling, settings, self.authenticator, require, self.membership.gate)

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
            ready=self.ready,
            metrics=self.metrics.text,
            observed=self.membership.everybody.observed,
            access=self.access,
        )
        site.noisy = False
        return site

    def _watch(self) -> None:
        for part in (self.turn, self.rooms, self.signaling, self.membership.dns, self.webhooks):
            self.metrics.add(part.samples)
        if self.units is None:
            self.metrics.add(self.transit.samples)
        if self.units is not None:
            self.metrics.add(self.units.workers.samples)
        lag = LoopLag(self._reactor, self.metrics.loop_lag.observe)
        self.metrics.add(lag.samples)
        self._run(lag)

    # -- what the parts are asked -----------------------------------------------------------------

    def _settings_now(self) -> Settings:
        return self.settings

    def ready(self) -> str:
        """Why the node takes nobody new, for ``/ready``; empty when it does."""
        return self.unready or self.membership.unready

    def health(self) -> Mapping[str, Any]:
        """For ``/health``."""
        return {"status": "ok", "version": __version__, "node_id": self.node_id}

    def _capacity(self) -> Capacity:
        peers = self.rooms.peers() if self.units is None else self.units.workers.peers()
        return machine(len(self.tenants), peers + self.turn.allocations())

    async def _config_to_run(self, namespace: str) -> WebRtcConfig:
        """What runs has a configuration, and so has what is to run."""
        found = self.membership.reconciler.configs.get(namespace) or self.served.config(namespace)
        if found is None:
            raise Unavailable("node_failed", f"it is not known how {namespace} is to be served")
        return found

    def _live_rooms(self) -> Mapping[tuple[str, str], int]:
        return {
            (namespace, room.room_id): room.participants
            for namespace in self.served.names
            if self.rooms.serves(namespace)
            for room in self.rooms.all(namespace)
        }

    def lose_room(self, namespace: str, room_id: str) -> None:
        """A room of this process is another node's by now, and its people go there.

        Not while the node is to be emptied: then everybody hears that first, and has the time that goes with it.
        """
        if not self.registry.draining:
            self.signaling.lose_room(namespace, room_id)

    def _moved(self, namespace: str) -> None:
        """The SFU of *namespace* ends here: where it goes on elsewhere, its people go there; else their rooms close."""
        each = self.membership.desired.get(namespace)
        if each is not None and each.enabled:
            self.signaling.lose_namespace(namespace)

    def _emptied(self, namespace: str, room_id: str) -> None:
        """A room has been empty for too long: its claim goes too, unless somebody joins it anew by then."""

        def back() -> bool:
            return self.rooms.get(namespace, room_id) is not None

        releasing = Deferred.fromCoroutine(self.directory.release(namespace, room_id, unless=back))
        releasing.addErrback(lambda failure: _log.failure("the claim of an empty room stays", failure))

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
            self.turn.configure(settings.turn)
            self.webhooks.configure(settings.webhooks)
            self.served.configure(settings)
            if self.units is not None:
                await self.units.reloaded()
            self.site.adopt(self._site())
            _log.info("the configuration was read again")
            if waiting:
                _log.warn("configuration that waits for the next start: {keys}", keys=", ".join(waiting))


def _same(name: str, one: Settings, other: Settings) -> bool:
    return bool(getattr(one, name) == getattr(other, name))


def _not_later(failure: Failure) -> None:
    """What was left for later did not work out; the next start tries it again."""
    if failure.check(OramaError) is None:
        _log.failure("the first start is incomplete", failure)
    else:
        _log.error("the first start is incomplete: {why}", why=failure.getErrorMessage())
