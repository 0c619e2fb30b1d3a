"""One node: the only place where the parts meet, and what starts and stops in which order.

Starting goes store, namespaces, SFU and TURN, HTTP; whatever fails is a :class:`StartError` of one line and leaves
nothing behind. Stopping goes the other way: nobody new is let in, the peers are told and get their time (``drain``),
then the sockets close, then the store. What is wanted of a namespace is put into the running parts here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, DeferredLock, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger

from orama import __version__
from orama.cluster.namespaces import DEFAULT_KEY_FILE, Namespaces, WebRtcConfig
from orama.cluster.ports import PortBlocks, bindable
from orama.cluster.rooms import RoomDirectory
from orama.cluster.turn_access import TurnAccess, turn_host
from orama.errors import StartError, Unavailable
from orama.listening import busy, listen, page_url, require_local, server_endpoints
from orama.metrics import LoopLag, Metrics
from orama.net.fabric import Fabric
from orama.net.tls import ServerCertificates
from orama.rest.auth import Authenticator
from orama.rest.control import control_site, listen_control
from orama.rest.site import Site, make_site
from orama.rest.tokens import Tokens
from orama.rest.tokens import new_key as new_token_key
from orama.serving import LiveRooms, Require, ServedNamespaces
from orama.settings import Settings, reloaded
from orama.sfu.room import Rooms
from orama.signaling.resource import SignalResource
from orama.signaling.service import SignalingService
from orama.store.database import Database
from orama.store.directory import DataDirectory
from orama.store.sealing import BrokenSeal, Seal
from orama.store.sealing import new_key as new_node_key
from orama.turn.listeners import TurnService
from orama.turn.tenants import Tenants

_PORTS = ("turn_port", "turns_port")

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
        if hasattr(self, "signaling"):
            deadline = self.settings.signaling.drain_deadline
            _log.info("draining: {peers} peers have {deadline} s", peers=self.rooms.peers(), deadline=deadline)
            await self.signaling.drain("the node goes down", deadline)

    def _started(self, name: str, stop: Callable[[], Any]) -> None:
        """Remember how to stop what has just been started."""
        self._running.append((name, stop))

    async def _start(self) -> None:
        settings = self.settings
        for option, ip in (("--internal-ip", settings.internal_ip), ("turn.relay_ip:", settings.relay_ip)):
            require_local(option, ip)
        endpoints = server_endpoints(self._reactor, settings.http)
        await self._start_store()
        await self._start_media()
        await self._start_signaling()
        await self._start_http(endpoints)
        self._watch()
        self.unready = ""
        _log.info("orama is ready: {url}", url=self.url)

    async def _start_store(self) -> None:
        settings, reactor = self.settings, self._reactor
        self.data = DataDirectory(settings.data_dir)
        self.data.prepare()
        self._started("data directory", self.data.release)
        try:
            seal = Seal(self.data.keep("node.key", new_node_key))
        except BrokenSeal as error:
            raise StartError(f"{self.data / 'node.key'}: {error}") from None
        tokens = Tokens(settings.auth, self.data.keep("token.key", new_token_key), reactor)
        self.database = Database(settings.database or self.data.database_url, reactor)
        await self.database.start()
        self._started("store", self.database.stop)
        node_id = self.data.node_id()
        ports = PortBlocks(self.database, settings, node_id, settings.internal_ip, reactor, bindable(settings))
        self.namespaces = Namespaces(self.database, self.data, seal, ports, settings, reactor)
        self.directory = RoomDirectory(self.database, node_id, reactor, settings.sfu.max_participants)
        await self.directory.start()
        if await self.namespaces.start() is not None:
            _log.info("the owner key of default is in {file}", file=str(self.data / DEFAULT_KEY_FILE))
        self.authenticator = Authenticator(self.namespaces, tokens)

    async def _start_media(self) -> None:
        settings, reactor = self.settings, self._reactor
        self.fabric = Fabric(reactor)
        self.tenants = Tenants(settings.relay_ip)
        self.certificates = ServerCertificates(
            self.data / "certificates",
            self._hosts(config.namespace for config in await self.namespaces.configs()),
            reactor,
            settings.turn.certificate,
            settings.turn.private_key,
        )
        self.rooms = Rooms(reactor, settings, self.fabric)
        self.rooms.on_empty = self._emptied
        self.rooms.on_secured = self.metrics.join_time.observe
        self._started("rooms", self.rooms.stop)
        self.turn = TurnService(reactor, settings, self.tenants, self.fabric, self.certificates)
        self.turn.startService()
        self._started("TURN", self.turn.stopService)
        # With port 0 the kernel chose; what clients are told is what is.
        self.settings = evolve(settings, turn_port=self.turn.udp_port, turns_port=self.turn.tls_port)

    async def _start_signaling(self) -> None:
        self.access = TurnAccess(self.settings, self.namespaces, self._reactor)
        self.signaling = SignalingService(self._reactor, self.settings, self.rooms, self.directory, self.access)
        self.served = ServedNamespaces(
            self._reactor, self.settings, self.tenants, self.rooms, self._signal, self.namespaces.require_webrtc
        )
        self._started("namespaces", self.served.stop)
        # Stopped before the rooms are, so that clients hear that the node goes, not that their room was closed.
        self.signaling.startService()
        self._started("signalling", self.signaling.stopService)
        for config in await self.namespaces.configs():
            try:
                await self.served.apply(config.namespace, config)
            except Unavailable as error:  # while we were away, somebody took a port of its block
                _log.warn("{namespace} moves to other ports: {why}", namespace=config.namespace, why=error.message)
                await self.served.apply(config.namespace, await self.namespaces.move(config.namespace))
        self.namespaces.changed.append(self._namespace_changed)

    async def _start_http(self, endpoints: Mapping[str, IStreamServerEndpoint]) -> None:
        self.site = self._site()
        for description, endpoint in endpoints.items():
            port = await listen(description, endpoint, self.site)
            self._started(f"--http {description}", port.stopListening)
            self.http.append(port)
        self.url = page_url(self.settings.http[0], self.http[0], self.settings.public_ip)
        control = control_site(
            self._reactor,
            self.settings,
            self.namespaces,
            self.authenticator.tokens,
            self.access,
            observed=self.observed,
            nodes=self.nodes,
        )
        control.noisy = False
        socket = listen_control(self._reactor, self.data.path, control)
        self._started("control socket", socket.stopListening)

    async def _namespace_changed(self, namespace: str, config: WebRtcConfig | None) -> None:
        await self.served.apply(namespace, config)
        self.certificates.cover(self._hosts(self.served.names))

    def _hosts(self, namespaces: Iterable[str]) -> list[str]:
        """What the self-signed certificate is for: the addresses that clients are sent to."""
        turn = sorted(turn_host(self.settings, namespace) for namespace in namespaces)
        return [self.settings.public_ip, "localhost", *turn]

    def _signal(self, settings: Settings, require: Require) -> SignalResource:
        return SignalResource(self.signaling, settings, self.authenticator, require)

    def _site(self) -> Site:
        """What answers on the HTTP endpoints, with the settings as they are now."""
        site = make_site(
            self._reactor,
            self.settings,
            self.authenticator,
            self.namespaces,
            self.directory,
            LiveRooms(self.rooms),
            signal=self._signal(self.settings, self.namespaces.require_webrtc),
            health=self.health,
            ready=lambda: self.unready,
            metrics=self.metrics.text,
            observed=self.observed,
        )
        site.noisy = False
        return site

    def _watch(self) -> None:
        for source in (self.turn.samples, self.rooms.samples, self.signaling.samples):
            self.metrics.add(source)
        lag = LoopLag(self._reactor, self.metrics.loop_lag.observe)
        lag.startService()
        self._started("event-loop lag", lag.stopService)

    # -- what the parts are asked -----------------------------------------------------------------

    def health(self) -> Mapping[str, Any]:
        """For ``/health``."""
        return {"status": "ok", "version": __version__, "node_id": self.directory.node_id}

    def observed(self, namespace: str) -> Iterable[Mapping[str, Any]]:
        """What runs for *namespace*, one mapping a node."""
        up = self.served.serves(namespace)
        yield {"node_id": self.directory.node_id, "sfu_up": up, "turn_up": up and self.turn.running == 1}

    def nodes(self) -> Iterable[Mapping[str, Any]]:
        """For ``orama node list``."""
        yield {
            "node_id": self.directory.node_id,
            "status": self.unready or "ready",
            "public_ip": self.settings.public_ip,
            "internal_ip": self.settings.internal_ip,
            "version": __version__,
        }

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
            self.served.configure(settings)
            self.site.adopt(self._site())
            _log.info("the configuration was read again")
            if waiting:
                _log.warn("configuration that waits for the next start: {keys}", keys=", ".join(waiting))


def _same(name: str, one: Settings, other: Settings) -> bool:
    return bool(getattr(one, name) == getattr(other, name))
