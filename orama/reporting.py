"""What a node sees of itself, for other nodes, the monitor and the inspector; and what all nodes see, asked at once.

The forms are those of ``docs/operate.rst``; keys are stable. There is no secret in any of it, only a fingerprint by
which two nodes can be seen to have the same one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime

from orama import __version__
from orama.cluster.desired import DesiredNamespace, WebRtcConfig
from orama.cluster.neighbours import Neighbours
from orama.cluster.nodes import Capacity, NodeRecord, NodeRegistry
from orama.cluster.placement import SFU, TURN
from orama.cluster.prerequisites import Prerequisite
from orama.cluster.reconciler import Reconciler
from orama.errors import OramaError
from orama.settings import Settings

#: Seconds that another node gets for its report.
TIMEOUT = 4.0
#: Seconds for which an answer of what we need is good.
FRESH = 3.0

Report = Mapping[str, Any]


class Live(Protocol):
    """How many are where, of one namespace on this node."""

    def room_count(self, namespace: str) -> int: ...
    def participants(self, namespace: str) -> int: ...
    def allocations(self, namespace: str) -> int: ...
    def capacity(self) -> Capacity: ...


class SelfReport:
    """The report of this node.

    :param ready: why it takes no calls, empty when it does.
    :param probe: asks for what it needs.
    :param parts: key → what another part says of itself.
    """

    def __init__(
        self,
        clock: IReactorTime,
        settings: Callable[[], Settings],
        registry: NodeRegistry,
        reconciler: Reconciler,
        desired: Callable[[], Mapping[str, DesiredNamespace]],
        live: Live,
        ready: Callable[[], str],
        probe: Callable[[], Awaitable[Sequence[Prerequisite]]],
        parts: Mapping[str, Callable[[], Any]],
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._registry = registry
        self._reconciler = reconciler
        self._desired = desired
        self._live = live
        self._ready = ready
        self._probe = probe
        self._parts = parts
        self._started = clock.seconds()
        self._probed: tuple[float, Sequence[Prerequisite]] = (float("-inf"), ())

    async def make(self) -> Report:
        """The report as it is now."""
        settings, registry, now = self._settings(), self._registry, self._clock.seconds()
        if now - self._probed[0] > FRESH:
            self._probed = now, await self._probe()
        me, capacity = registry.get(registry.node_id), self._live.capacity()
        return {
            "node": {
                "node_id": registry.node_id,
                "version": __version__,
                "state": "active" if me is None else me.state,
                "ready": self._ready(),
                "public_ip": settings.public_ip,
                "internal_ip": settings.internal_ip,
                "now": self._clock.seconds(),
                "uptime": now - self._started,
                "started_at": self._started,
            },
            "capacity": {
                "cpus": capacity.cpus,
                "load": round(capacity.load, 2),
                "memory_mb": capacity.memory_mb,
                "memory_free_mb": capacity.memory_free_mb,
                "namespaces": capacity.namespaces,
                "streams": capacity.streams,
            },
            "prerequisites": [each.as_report() for each in self._probed[1]],
            "namespaces": [self._namespace(each) for _, each in sorted(self._desired().items())],
            "runner": settings.cluster.runner,
            **{name: part() for name, part in self._parts.items()},
        }

    def observed(self, namespace: str) -> dict[str, Any]:
        """What runs of *namespace* here, and what should."""
        return {
            **self._reconciler.observed(namespace),
            "rooms": self._live.room_count(namespace),
            "participants": self._live.participants(namespace),
            "allocations": self._live.allocations(namespace),
        }

    def _namespace(self, each: DesiredNamespace) -> Report:
        config = self._reconciler.configs.get(each.namespace)
        seen = self.observed(each.namespace)
        seen.pop("node_id")
        return {
            "namespace": each.namespace,
            "enabled": each.enabled,
            "sfu_wanted": each.sfu_nodes if each.enabled else 0,
            "turn_wanted": each.turn_nodes if each.enabled else 0,
            "sfu_nodes": list(each.nodes(SFU)),
            "turn_nodes": list(each.nodes(TURN)),
            **seen,
            "secret": None if config is None else fingerprint(config),
            "ports": {} if config is None else _ports(config),
        }


class Everybody:
    """All nodes, asked at once."""

    def __init__(self, registry: NodeRegistry, neighbours: Neighbours, own: Callable[[], Awaitable[Report]]) -> None:
        self._registry = registry
        self._neighbours = neighbours
        self._own = own

    async def reports(self) -> list[dict[str, Any]]:
        """One mapping a node, in the order of their joining: ``node_id``, ``internal_ip``, ``report`` or ``error``."""
        asked = [Deferred.fromCoroutine(self._report(node)) for node in self._registry.nodes]
        return [answer for _, answer in await DeferredList(asked, fireOnOneErrback=True)]

    async def _report(self, node: NodeRecord) -> dict[str, Any]:
        found: dict[str, Any] = {
            "node_id": node.node_id,
            "internal_ip": node.internal_ip,
            "report": None,
            "error": None,
        }
        try:
            if node.node_id == self._registry.node_id:
                found["report"] = dict(await self._own())
            else:
                found["report"] = await self._neighbours.get(node, "/v1/internal/report", timeout=TIMEOUT)
        except OramaError as error:
            found["error"] = error.message
        return found

    async def observed(self, namespace: str) -> Iterable[dict[str, Any]]:
        """What runs for *namespace*, one mapping a node that answers or should."""
        found = []
        for each in await self.reports():
            node = self._registry.get(each["node_id"])
            mine = (each["report"] or {}).get("namespaces", ())
            seen: Mapping[str, Any] = next((entry for entry in mine if entry["namespace"] == namespace), {})
            found.append(
                {
                    "node_id": each["node_id"],
                    "state": "unknown" if node is None else node.state,
                    "roles": seen.get("roles", []),
                    "sfu_up": seen.get("sfu_up", False),
                    "turn_up": seen.get("turn_up", False),
                    "rooms": seen.get("rooms", 0),
                    "participants": seen.get("participants", 0),
                    "error": each["error"] or seen.get("error"),
                }
            )
        return found


def listed(node: NodeRecord, alive: bool, answer: Report, desired: Iterable[DesiredNamespace]) -> Report:
    """One node for ``orama node list``; *answer* is what :meth:`Everybody.reports` has of it."""
    report, capacity = answer.get("report"), node.capacity
    ready = answer.get("error") or "unknown" if report is None else report["node"]["ready"] or "ready"
    return {
        "node_id": node.node_id,
        "status": node.state if ready == "ready" and node.draining else ready,
        "state": node.state,
        "alive": alive,
        "public_ip": node.public_ip,
        "internal_ip": node.internal_ip,
        "version": node.version,
        "cpus": capacity.cpus,
        "load": round(capacity.load, 2),
        "memory_mb": capacity.memory_mb,
        "memory_free_mb": capacity.memory_free_mb,
        "namespaces": sum(any(role.node_id == node.node_id for role in each.roles) for each in desired),
        "streams": capacity.streams,
    }


def fingerprint(config: WebRtcConfig) -> str:
    """What shows that two nodes have the same TURN secret, and nothing else of it."""
    return sha256(b"orama turn secret\n" + config.turn_secret.encode()).hexdigest()[:8]


def _ports(config: WebRtcConfig) -> dict[str, Any]:
    blocks = config.blocks
    return {
        name: None if block is None else list(block)
        for name, block in (("signaling", blocks.signaling), ("media", blocks.media), ("relay", blocks.relay))
    }
