"""A host for units: what their node has on the control socket, with a real TURN listener, in this process; and the
units, each a process of its own that tells a systemd of ours how it goes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from threading import Thread
from typing import Any
from urllib.parse import urlencode

from attrs import evolve
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from orama.cluster.desired import Blocks, SfuPlace, TurnPlace, WebRtcConfig
from orama.cluster.keyring import KEY_FILE, Keyring
from orama.cluster.rooms import RoomRecord
from orama.cluster.signing import sign
from orama.errors import NotFound
from orama.net.fabric import Fabric
from orama.net.tls import ServerCertificates
from orama.rest.control import listen_control
from orama.rest.json_resource import JsonResource
from orama.rest.origins import Origins
from orama.rest.site import Site
from orama.settings import Settings, SignalingSettings, TurnSettings
from orama.signaling.visitors import VISITOR, ForwardedVisitor, write_visitor
from orama.turn.listeners import TurnService
from orama.turn.tenants import Tenant, Tenants
from orama.units import Units
from tests.contract.signalling import Client
from tests.node import environment
from tests.ports import free_ports
from tests.units.systemctl import Systemctl

HOST = "127.0.0.1"
#: Seconds that anything gets here.
PATIENCE = 90.0
RELAYS = (15100, 15149)
SECRET = "c2VjcmV0IG9mIHRoZSBob3VzZQ=="
VISITOR_OF = ForwardedVisitor("demo", "owner", None, None, frozenset({"publish", "subscribe", "data"}))

reactor: Any = _reactor


class Directory:
    """Rooms, all of this node."""

    node_id = "n1"

    def __init__(self) -> None:
        self.rooms: dict[str, str] = {}

    async def claim(self, namespace: str, room_id: str) -> RoomRecord:
        return RoomRecord(namespace, room_id, self.rooms.setdefault(room_id, "n1"), 10, 0, 0.0)

    async def release(self, namespace: str, room_id: str) -> bool:
        return self.rooms.pop(room_id, None) is not None


class Host:
    """Namespace ``demo`` is wanted here, until *config* is None."""

    def __init__(self, case: TestCase, drain_deadline: float = 20.0) -> None:
        # Not in trial's directory: the address of a Unix socket has 108 bytes.
        self.data = Path(mkdtemp(prefix="orama-"))
        case.addCleanup(rmtree, self.data)
        self.keyring = Keyring.keep(self.data / KEY_FILE)
        self.directory = Directory()
        self.settings = evolve(
            Settings(data_dir=self.data),
            turn_port=0,
            turns_port=0,
            turn=TurnSettings(relay_ports=RELAYS),
            signaling=SignalingSettings(drain_deadline=drain_deadline),
        )
        self.systemctl = Systemctl()
        self.reconnect_url: str | None = "ws://n2.example"
        self.signaling, self.media = free_ports(2)
        self.config: WebRtcConfig | None = WebRtcConfig(
            "demo",
            (SECRET,),
            600,
            True,
            Blocks((self.signaling, self.signaling), (self.media, self.media), RELAYS),
            (SfuPlace("n1", HOST, self.signaling, (self.media, self.media)),),
        )
        self.start()
        case.addCleanup(self.stop)

    def start(self) -> None:
        """The node comes up."""
        self.running = True
        self.tenants = Tenants(HOST)
        certificates = ServerCertificates(self.data, [HOST], reactor)
        self.turn = TurnService(reactor, self.settings, self.tenants, Fabric(reactor), certificates)
        self.turn.startService()
        if self.config is not None:
            place = TurnPlace("n1", HOST, HOST, RELAYS, self.turn.udp_port, self.turn.tls_port)
            self.config = evolve(self.config, turns=(place,))
        self.units = Units(
            reactor,
            lambda: evolve(self.settings, turn_port=self.turn.udp_port, turns_port=self.turn.tls_port),
            self.directory,
            self.tenants,
            self.turn,
            self.wanted,
            _tenant,
            lambda: self.reconnect_url,
            globalLogPublisher,
            self.systemctl,
        )
        self.units.startService()
        self.leases, self.workers = self.units.leases, self.units.workers
        root, version, control = (JsonResource(Origins(())) for _ in range(3))
        root.putChild(b"v1", version)
        version.putChild(b"control", control)
        for name, resource in self.units.resources().items():
            control.putChild(name.encode(), resource)
        self.site = Site(root, self.settings, reactor)
        self.control = listen_control(reactor, self.data, self.site)

    async def stop(self) -> None:
        """The node is gone, and every connection to it."""
        if not self.running:
            return
        self.running = False
        await self.units.stopService()
        await maybeDeferred(self.control.stopListening)
        for channel in _connections(self.data):
            channel.abortConnection()
        await self.turn.stopService()

    async def wanted(self, namespace: str) -> WebRtcConfig:
        if self.config is None or namespace != "demo":
            raise NotFound("webrtc_not_enabled", "WebRTC is not enabled in this namespace")
        return self.config

    def connect(self, room: str, node_id: str = "n2") -> Client:
        """A client that another node forwards to the SFU. To be called on a thread."""
        query = {"room": room, "to": "n1", VISITOR: write_visitor(VISITOR_OF, room)}
        target = f"?{urlencode(query)}"
        headers = sign(self.keyring, "GET", f"/v1/webrtc/signal{target}", b"", node_id, time.time())
        return Client(None, target, headers=headers, base=f"ws://{HOST}:{self.signaling}")  # type: ignore[arg-type]

    def joined(self, room: str) -> Client:
        client = self.connect(room)
        client.say("join")
        client.until("turn-credentials")
        return client


class Unit:
    """One process, and what it says to systemd and to its journal.

    :param watchdog: seconds without a sign of life that it is allowed; 0 for no limit.
    """

    def __init__(self, case: TestCase, command: Sequence[str], watchdog: float = 0.0) -> None:
        directory = Path(mkdtemp(prefix="orama-"))
        case.addCleanup(rmtree, directory)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(directory / "notify"))
        told = {"NOTIFY_SOCKET": str(directory / "notify"), "WATCHDOG_USEC": str(int(watchdog * 1_000_000))}
        self.journal: list[str] = []
        self.told: list[str] = []
        self.process = subprocess.Popen(
            command, env={**environment(), **told}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._threads = [Thread(target=each, daemon=True) for each in (self._read_journal, self._read_notify)]
        for thread in self._threads:
            thread.start()
        case.addCleanup(self._end)

    @classmethod
    def of(cls, case: TestCase, host: Host, module: str, watchdog: float = 0.0) -> Unit:
        """A role of ``demo``: ``orama.worker`` or ``orama.lease``."""
        command = [sys.executable, "-m", module, "--namespace", "demo", "--data-dir", str(host.data)]
        return cls(case, command, watchdog)

    async def until(self, reached: Callable[[], object], what: str) -> None:
        """Wait for something that this process or another brings about."""
        await until(reached, lambda: f"{what}: {self.journal} {self.told} {self.process.poll()}")

    async def said(self, text: str) -> None:
        await self.until(lambda: any(text in line for line in tuple(self.journal)), text)

    async def notified(self, text: str) -> None:
        await self.until(lambda: any(text in line for line in tuple(self.told)), text)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Its exit status, once it is gone."""
        status: int = await deferToThread(self.process.wait, PATIENCE)
        for thread in self._threads[:1]:
            await deferToThread(thread.join, PATIENCE)
        return status

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._threads[0].join()
        # Whoever reads datagrams is woken by one more.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._notify.getsockname())
        self._threads[1].join()
        self._notify.close()

    def _read_journal(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.journal.append(line.rstrip("\n"))

    def _read_notify(self) -> None:
        while datagram := self._notify.recv(4096):
            self.told += datagram.decode().split("\n")


async def until(reached: Callable[[], object], what: Callable[[], str]) -> None:
    """Wait for something that another process brings about."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, what()
        await deferLater(reactor, 0.02, lambda: None)


def on_thread(call: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
    return deferToThread(call, *arguments)


def _tenant(config: WebRtcConfig) -> Tenant:
    assert config.blocks.relay is not None
    media = tuple((place.ip, *place.media) for place in config.sfus)
    return Tenant(config.namespace, config.turn_secrets, config.blocks.relay, media)


def _connections(data: Path) -> list[Any]:
    """Our ends of what is connected to the control socket in *data*."""
    found = []
    for reader in reactor.getReaders():
        name = getattr(reader, "getHost", lambda: None)()
        if getattr(name, "name", None) == os.fsencode(data / "control.sock") and hasattr(reader, "abortConnection"):
            found.append(reader)
    return found
