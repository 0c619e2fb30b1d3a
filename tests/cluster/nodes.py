"""The deciding half of a node, put together for tests as ``membership`` does it: real tables, services in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock

from orama.cluster.desired import DesiredNamespace, WebRtcConfig
from orama.cluster.enablement import Enablement, Progress
from orama.cluster.namespaces import Namespaces
from orama.cluster.nodes import Capacity, NodeRecord, NodeRegistry
from orama.cluster.ports import PortBlocks
from orama.cluster.reconciler import Attend, Reconciler, Wanted
from orama.cluster.rooms import RoomDirectory
from orama.cluster.settling import Settling
from orama.errors import OramaError, Unavailable
from orama.settings import Settings
from orama.store.database import Database
from orama.store.directory import DataDirectory
from orama.store.sealing import Seal, new_key


class RushingClock(Clock):
    """Time that passes as fast as it is waited for."""

    def callLater(self, when: float, what: Callable[..., Any], *a: Any, **kw: Any) -> Any:
        call = super().callLater(when, what, *a, **kw)
        reactor.callLater(0, self.advance, when)  # type: ignore[attr-defined]
        return call


class MemoryRunner:
    """Services that are only written down (``orama.cluster.runner.Runner``).

    :ivar broken: (namespace, role) → what starting it raises.
    :ivar stubborn: (namespace, role) → what stopping it raises.
    """

    def __init__(self, config: Callable[[str], WebRtcConfig | None]) -> None:
        self.up: dict[tuple[str, str], WebRtcConfig] = {}
        self.broken: dict[tuple[str, str], OramaError] = {}
        self.stubborn: dict[tuple[str, str], OramaError] = {}
        self.said: list[tuple[str, str, str]] = []
        self._config = config

    async def start(self, namespace: str, role: str) -> None:
        self.said.append(("start", namespace, role))
        if (namespace, role) in self.broken:
            raise self.broken[namespace, role]
        config = self._config(namespace)
        assert config is not None
        self.up[namespace, role] = config

    async def stop(self, namespace: str, role: str) -> None:
        self.said.append(("stop", namespace, role))
        if (namespace, role) in self.stubborn:
            raise self.stubborn[namespace, role]
        self.up.pop((namespace, role), None)

    async def refresh(self, namespace: str) -> None:
        self.said.append(("refresh", namespace, ""))
        config = self._config(namespace)
        for name, role in self.up:
            if name == namespace and config is not None:
                self.up[name, role] = config

    def running(self, namespace: str, role: str) -> bool:
        return (namespace, role) in self.up

    async def survey(self) -> frozenset[tuple[str, str]]:
        return frozenset(self.up)


class StoredNode:
    """One node on *database*; :meth:`join` makes it one of *among*.

    :param among: the nodes that can be asked, by their ids; each adds itself.
    :ivar busy: (kind, port) pairs that the probe finds taken.
    :ivar deaf: whether it answers nobody.
    :ivar missing: what keeps WebRTC from being enabled.
    """

    def __init__(
        self,
        case: Any,
        database: Database,
        clock: IReactorTime,
        settings: Settings | None = None,
        node_id: str = "node-1",
        host: str = "127.0.0.1",
        seal: Seal | None = None,
        among: dict[str, StoredNode] | None = None,
        attend: Mapping[str, Attend] | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.data = DataDirectory(Path(tempfile.mkdtemp(dir=Path.cwd())))
        self.data.prepare()
        case.addCleanup(self.data.release)
        self.seal = seal or Seal(new_key())
        self.busy: set[tuple[str, int]] = set()
        self.deaf = False
        self.missing: OramaError | None = None
        self.host = host
        self.node_id = node_id
        self._among = {} if among is None else among
        self._among[node_id] = self
        self.registry = NodeRegistry(database, node_id, clock, self.settings.cluster.heartbeat)
        self.ports = PortBlocks(
            database, self.settings, node_id, host, clock, lambda kind, port: (kind, port) not in self.busy
        )
        self.settling = Settling(clock, self.registry, self._ask)
        self.enablement = Enablement(
            database, self.seal, self.registry, self.ports, self.settings, clock, self.settling, self._require_ready
        )
        self.directory = RoomDirectory(database, node_id, clock, self.settings.sfu.max_participants)
        self.namespaces = Namespaces(
            database, self.data, self.seal, self.registry, self.enablement, self.settings, clock
        )
        self.runner = self.make_runner()
        self.reconciler = Reconciler(
            clock,
            node_id,
            self.runner,
            Wanted(self.namespaces.desired, self.namespaces.config_of, self.enablement.stopped, self._repair),
            attend or {},
            self.ports.move_sfu,
        )

    def make_runner(self) -> MemoryRunner:
        """What the reconciler starts and stops services with."""
        return MemoryRunner(lambda namespace: self.reconciler.configs.get(namespace))

    async def join(self, capacity: Capacity | None = None) -> StoredNode:
        """Be one of the nodes."""
        await self.registry.join(
            NodeRecord(
                self.node_id,
                self.host,
                6002,
                self.host,
                self.host,
                f"http://{self.host}:6001",
                self.settings.turn_port,
                self.settings.turns_port,
                "test",
                capacity=capacity or Capacity(2, 0.0, 1000, 500),
            )
        )
        return self

    async def beat(self) -> None:
        """A heartbeat and a pass."""
        me = self.registry.get(self.node_id)
        await self.registry.beat(Capacity(2, 0.0, 1000, 500) if me is None else me.capacity)
        await self.reconciler.run()

    def up(self, namespace: str) -> set[str]:
        """The roles that run."""
        return {role for name, role in self.runner.up if name == namespace}

    async def _repair(self, desired: Mapping[str, DesiredNamespace]) -> None:
        await self.enablement.finish()
        if self.registry.leads:
            await self.enablement.repair(tuple(desired.values()))

    async def _require_ready(self, progress: Progress) -> None:
        if self.missing is not None:
            raise self.missing

    async def _ask(self, node: NodeRecord, namespace: str) -> Mapping[str, Any]:
        asked = self._among.get(node.node_id)
        if asked is None or asked.deaf:
            raise Unavailable("node_unreachable", f"node {node.node_id} does not answer")
        await asked.registry.read()
        await asked.reconciler.run(namespace)
        return asked.reconciler.observed(namespace)
