"""Which nodes do what for a namespace: pure decisions on who is there and what stands in the database.

A node's score is the share of it that is free, from 0 to 1: memory counts 0.35, processor 0.35, media streams 0.2
and namespaces 0.1. Whoever has more of it comes first; of two alike, the one that joined first. Roles that
run are left where they are: a better node that comes later changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import count, islice

from attrs import frozen

from orama.cluster.nodes import DRAINED, Capacity, NodeRecord

SFU = "sfu"
TURN = "turn"
ROLES = (SFU, TURN)

#: What a node with this much of something has nothing left of.
STREAMS_PER_CPU = 2000
FULL_NAMESPACES = 20
_MEMORY, _CPU, _STREAMS, _NAMESPACES = 0.35, 0.35, 0.2, 0.1


@frozen
class Role:
    """One row: *node_id* fills place *slot* of a role."""

    role: str
    slot: int
    node_id: str


@frozen
class Change:
    """A step towards what is wanted: a place gets a node (``after``), loses one (``before``), or changes it."""

    role: str
    slot: int
    before: str | None
    after: str | None


def score(capacity: Capacity) -> float:
    """The free share of a node, from 0 to 1."""
    memory = capacity.memory_free_mb / capacity.memory_mb if capacity.memory_mb else 0.5
    return (
        _MEMORY * _share(memory)
        + _CPU * _share(1 - capacity.load / max(1, capacity.cpus))
        + _STREAMS * _share(1 - capacity.streams / (STREAMS_PER_CPU * max(1, capacity.cpus)))
        + _NAMESPACES * _share(1 - capacity.namespaces / FULL_NAMESPACES)
    )


def best(nodes: Iterable[NodeRecord], pending: Counter[str] | None = None) -> list[NodeRecord]:
    """*nodes*, the one with most free capacity first.

    :param pending: roles that nodes have been given since they last told their capacity.
    """
    given: Counter[str] = Counter() if pending is None else pending

    def key(node: NodeRecord) -> tuple[float, float, str]:
        free = score(node.capacity) - _NAMESPACES * given[node.node_id] / FULL_NAMESPACES
        return -round(free, 2), node.joined_at, node.node_id

    return sorted(nodes, key=key)


def wanted(setting: int, nodes: Sequence[NodeRecord]) -> int:
    """How many nodes a role is to have: what the settings say, and never more than there are."""
    return max(1, min(setting, len(nodes)))


def place(counts: dict[str, int], active: Collection[NodeRecord]) -> list[Role]:
    """The roles of a namespace that has none yet; fewer than wanted when *active* are too few."""
    roles = []
    for role in ROLES:
        chosen = best(active)[: counts[role]]
        roles += [Role(role, slot, node.node_id) for slot, node in enumerate(chosen)]
    return roles


def repair(
    counts: dict[str, int],
    roles: Collection[Role],
    nodes: Sequence[NodeRecord],
    active: Sequence[NodeRecord],
    gone: Callable[[str], bool],
) -> list[Change]:
    """What has to change so that every role has its number of nodes that can fill it.

    A node is replaced when it is *gone* (dead for long, or removed) or drained. Where nobody can take over, a drained
    node loses the role all the same, and a dead one keeps it: it may come back. A node that is being emptied keeps it
    until it is drained, also where more have it than are wanted then: its people have the time that they were told.
    Where else more have it, those that cannot fill the role lose it first: whoever stays is left in peace. A place that
    a node can fill again is given to the best that has it not yet. There is at most one change a place.
    """
    changes: list[Change] = []
    known = {node.node_id: node for node in nodes}

    def fit(node_id: str) -> bool:
        """Whether a node can fill a role for now."""
        node = known.get(node_id)
        return node is not None and node.state != DRAINED and not gone(node_id)

    for role in ROLES:
        held = {each.slot: each.node_id for each in roles if each.role == role}
        free = [node for node in best(active) if node.node_id not in held.values()]
        settled = [slot for slot, node_id in held.items() if not (fit(node_id) and known[node_id].draining)]
        settled.sort(key=lambda slot: (fit(held[slot]), -slot))
        spare = settled[: max(0, len(settled) - counts[role])]
        for slot, node_id in sorted(held.items()):
            node = known.get(node_id)
            if slot in spare:
                changes.append(Change(role, slot, node_id, None))
            elif not fit(node_id):
                if free:
                    changes.append(Change(role, slot, node_id, free.pop(0).node_id))
                elif node is None or node.state == DRAINED:
                    changes.append(Change(role, slot, node_id, None))
        vacant = (slot for slot in count() if slot not in held)
        for slot in islice(vacant, max(0, counts[role] - len(held))):
            if free:
                changes.append(Change(role, slot, None, free.pop(0).node_id))
    return changes


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
