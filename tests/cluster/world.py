"""A cluster for histories: nodes that share one database in memory, die, come back, and are cut off.

Every node is a :class:`tests.cluster.nodes.StoredNode`; what this adds is time, which passes for all of them while
somebody waits, and ports that a program may have which is not ours.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from attrs import field, frozen
from sqlalchemy import Table, select
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from orama.attending import Names
from orama.cluster.desired import MEDIA, RELAY, SIGNALING, Block, Blocks, WebRtcConfig
from orama.cluster.nodes import DRAINING, Capacity, NodeRecord
from orama.cluster.placement import SFU
from orama.errors import OramaError, Unavailable
from orama.settings import ClusterSettings, Settings, SfuSettings, SignalingSettings, TurnSettings
from orama.store.sealing import Seal, new_key
from tests.cluster.nodes import MemoryRunner, StoredNode
from tests.store.memory import MemoryDatabase, Store

#: Few blocks, so that histories run out of them.
SETTINGS = Settings(
    base_domain="example.test",
    cluster=ClusterSettings(sfu_nodes=3, turn_nodes=2, heartbeat=5.0, replace_after=15.0),
    signaling=SignalingSettings(ports=(30000, 30003)),
    sfu=SfuSettings(media_ports=(20000, 21999), media_block=500),
    turn=TurnSettings(relay_ports=(49152, 49152 + 4 * 800 - 1)),
)
#: Seconds between two looks at who waits for what.
TICK = 1.0
#: Seconds after which whoever still waits will wait for ever.
LONGEST = 120.0
#: Seconds that another node is waited for (``membership.PASS``).
ANSWER = 10.0


class SkewedClock(Clock):
    """The clock of one machine: it runs like the others and shows something else."""

    def __init__(self, base: Clock, offset: float) -> None:
        super().__init__()
        self._base = base
        self._offset = offset

    def seconds(self) -> float:
        return self._base.seconds() + self._offset

    def callLater(self, when: float, what: Callable[..., Any], *a: Any, **kw: Any) -> Any:
        return self._base.callLater(when, what, *a, **kw)


class HostRunner(MemoryRunner):
    """Services that listen.

    :param busy: (kind, port) pairs that a program has which is not ours.
    :ivar overlaps: what was started on ports that another namespace still had.
    """

    def __init__(self, config: Callable[[str], WebRtcConfig | None], busy: set[tuple[str, int]]) -> None:
        super().__init__(config)
        self.overlaps: list[str] = []
        self._busy = busy

    async def start(self, namespace: str, role: str) -> None:
        config = self._config(namespace)
        if config is not None and role == SFU and (namespace, role) not in self.up:
            for kind, (first, _) in listens(config.blocks, role):
                if (kind, first) in self._busy:
                    raise Unavailable("port_in_use", f"the {kind} port {first} is in use")
        await super().start(namespace, role)
        self._look()

    async def refresh(self, namespace: str) -> None:
        await super().refresh(namespace)
        self._look()

    def _look(self) -> None:
        taken: dict[tuple[str, int], str] = {}
        for (namespace, role), config in self.up.items():
            for kind, block in listens(config.blocks, role):
                for port in set(block):
                    other = taken.setdefault((kind, port), namespace)
                    if other != namespace:
                        self.overlaps.append(f"{kind} {port} is {other}'s and {namespace}'s")


def listens(blocks: Blocks, role: str) -> list[tuple[str, Block]]:
    """What a role has of *blocks*, by kind."""
    used = {SIGNALING: blocks.signaling, MEDIA: blocks.media} if role == SFU else {RELAY: blocks.relay}
    return [(kind, block) for kind, block in used.items() if block is not None]


@frozen
class Host:
    """A machine, which outlives its node."""

    node_id: str
    ip: str
    clock: Clock
    busy: set[tuple[str, int]] = field(factory=set)


class HostNode(StoredNode):
    """One life of a node on its host.

    :ivar alive: it has not died.
    """

    runner: HostRunner

    def __init__(self, world: World, host: Host, database: MemoryDatabase) -> None:
        self.machine = host
        self.database = database
        self.alive = True
        super().__init__(
            world,
            database,
            host.clock,
            SETTINGS,
            host.node_id,
            host.ip,
            world.seal,
            world.asked,
            {"names": self._attend_names},
        )
        self.busy = host.busy
        database.died = self._died

    def make_runner(self) -> HostRunner:
        return HostRunner(lambda namespace: self.reconciler.configs.get(namespace), self.machine.busy)

    async def start(self) -> None:
        """What a node does first (``Membership.start``)."""
        await self.join()
        await self.ports.forget_elsewhere()
        await self.reconciler.run()

    def _died(self) -> None:
        self.alive, self.deaf = False, True

    async def _attend_names(self, configs: Mapping[str, WebRtcConfig]) -> None:
        desired = await self.namespaces.desired()
        now, domain = self.machine.clock.seconds, SETTINGS.base_domain
        await Names(self.database, self.registry, domain, lambda: desired, now, lambda: None).attend(configs)

    async def pulse(self) -> None:
        """What a heartbeat does; a node that is to be empty is so at once."""
        await self.registry.beat(Capacity(2, 0.0, 1000, 500))
        me = self.registry.get(self.node_id)
        if me is not None and me.state == DRAINING:
            await self.registry.drained()
        await self.reconciler.run()

    async def _ask(self, node: NodeRecord, namespace: str) -> Mapping[str, Any]:
        # Who gives up waiting does not end what he has asked for.
        answer: Deferred[Mapping[str, Any]] = Deferred()
        Deferred.fromCoroutine(super()._ask(node, namespace)).addBoth(answer.callback)
        answer.addTimeout(ANSWER, self.machine.clock)
        try:
            return await answer
        except TimeoutError:
            raise Unavailable("node_unreachable", f"node {node.node_id} does not answer") from None


class World:
    """:param size: how many nodes join, one after the other.

    :ivar nodes: the last life of each.
    """

    def __init__(self, size: int) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        self.store = Store()
        self.seal = Seal(new_key())
        self.nodes: dict[str, HostNode] = {}
        #: The same, for who asks them.
        self.asked: dict[str, StoredNode] = {}
        self._cleanups: list[Callable[[], object]] = []
        self._databases: list[MemoryDatabase] = []
        self.wrong: list[Failure] = []
        self._since = 0.0
        self.hosts = [
            Host(f"node-{number}", f"10.0.0.{number}", SkewedClock(self.clock, 5000.0 * (-1) ** number))
            for number in range(1, size + 1)
        ]
        for host in self.hosts:
            self.boot(host)

    def addCleanup(self, cleanup: Callable[[], object]) -> None:
        self._cleanups.append(cleanup)

    def close(self) -> None:
        for database in self._databases:
            database.close()
        for cleanup in self._cleanups:
            cleanup()
        self.store.close()

    # -- nodes ------------------------------------------------------------------------------------

    def node(self, index: int) -> HostNode:
        return self.nodes[self.hosts[index % len(self.hosts)].node_id]

    def boot(self, host: Host, keep: bool = False) -> None:
        """A new life of a node, unless it is alive.

        :param keep: what ran goes on meanwhile, as units of systemd do.
        """
        old = self.nodes.get(host.node_id)
        if old is not None and old.alive:
            return
        database = MemoryDatabase(self.store)
        self._databases.append(database)
        node = HostNode(self, host, database)
        if old is not None and keep:
            node.runner.up.update(old.runner.up)
        self.nodes[host.node_id] = node
        self.run(node, node.start())

    def run(self, node: HostNode, work: Coroutine[Deferred[Any], Any, Any]) -> str:
        """Wait for what *node* does: ``done``, the code of the error, or ``died``."""
        outcome = Deferred.fromCoroutine(work)
        found: list[str] = []
        outcome.addCallbacks(lambda _: found.append("done"), lambda failure: found.append(self._code(failure)))
        until = self.clock.seconds() + LONGEST
        while not found and node.alive:
            if self.clock.seconds() > until:
                raise AssertionError("whoever waits does so for ever")
            self.advance(TICK)
        return found[0] if found else "died"

    def _code(self, failure: Failure) -> str:
        if isinstance(failure.value, OramaError):
            return failure.value.code
        self.wrong.append(failure)
        return "wrong"

    def advance(self, seconds: float) -> None:
        """Time passes, with the heartbeats of all that live."""
        self.clock.advance(seconds)
        self._since += seconds
        if self._since >= SETTINGS.cluster.heartbeat:
            self._since = 0.0
            for node in list(self.nodes.values()):
                self.beat(node)

    def beat(self, node: HostNode) -> None:
        if not node.alive:
            return
        pulse = Deferred.fromCoroutine(node.pulse())
        pulse.addErrback(lambda failure: failure.trap(Unavailable))
        pulse.addErrback(self.wrong.append)

    # -- what stands in the tables ------------------------------------------------------------------

    def rows(self, table: Table) -> list[Any]:
        return list(self.store.run(lambda connection: connection.execute(select(table)).all()))
