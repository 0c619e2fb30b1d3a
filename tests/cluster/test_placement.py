"""Who does what: the written score, the first placing, and repairs that end."""

from __future__ import annotations

from collections import Counter

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.nodes import ACTIVE, DRAINED, DRAINING, Capacity, NodeRecord
from orama.cluster.placement import (
    FULL_NAMESPACES,
    ROLES,
    SFU,
    STREAMS_PER_CPU,
    TURN,
    Change,
    Role,
    best,
    place,
    repair,
    score,
    wanted,
)

IDLE = Capacity(cpus=2, load=0.0, memory_mb=1000, memory_free_mb=1000)
COUNTS = {SFU: 3, TURN: 2}


def node(name: str, capacity: Capacity = IDLE, state: str = ACTIVE, joined_at: float = 0.0) -> NodeRecord:
    ip = "10.0.0.1"
    return NodeRecord(name, ip, 6002, ip, ip, "", 3478, 5349, "", state, joined_at, capacity=capacity)


def after(roles: list[Role], changes: list[Change]) -> list[Role]:
    """*roles* when *changes* are made."""
    places = {(role.role, role.slot): role.node_id for role in roles}
    for change in changes:
        assert places.pop((change.role, change.slot), None) == change.before
        if change.after is not None:
            places[change.role, change.slot] = change.after
    return [Role(role, slot, node_id) for (role, slot), node_id in sorted(places.items())]


class ScoreTests(SynchronousTestCase):
    def test_weights(self) -> None:
        """Memory and processor count 0.35 each, streams 0.2 and namespaces 0.1 of a node's free share."""
        self.assertAlmostEqual(score(IDLE), 1.0)
        for used, share in (
            ({"memory_free_mb": 0}, 0.35),
            ({"load": 2.0}, 0.35),
            ({"streams": 2 * STREAMS_PER_CPU}, 0.2),
            ({"namespaces": FULL_NAMESPACES}, 0.1),
            ({"memory_free_mb": 500, "namespaces": FULL_NAMESPACES // 2}, 0.225),
        ):
            self.assertAlmostEqual(score(evolve(IDLE, **used)), 1.0 - share)

    @given(
        st.builds(
            Capacity,
            cpus=st.integers(-1, 999),
            load=st.floats(0, 1e6),
            memory_mb=st.integers(0, 10**7),
            memory_free_mb=st.integers(0, 10**8),
            namespaces=st.integers(0, 10**5),
            streams=st.integers(0, 10**8),
        )
    )
    def test_is_a_share(self, capacity: Capacity) -> None:
        """Whatever a node says of itself, the score is from 0 to 1."""
        self.assertTrue(-1e-9 <= score(capacity) <= 1 + 1e-9)

    def test_order(self) -> None:
        """The freest comes first; of two alike, who joined first, also when they differ by less than a hundredth."""
        nodes = [
            node("late", joined_at=3),
            node("early", evolve(IDLE, memory_free_mb=995), joined_at=1),
            node("full", evolve(IDLE, load=2.0), joined_at=0),
        ]
        self.assertEqual([each.node_id for each in best(nodes)], ["early", "late", "full"])

    def test_pending(self) -> None:
        """What a node has just been given counts, though it has not said so yet."""
        nodes = [node("one", joined_at=1), node("two", joined_at=2)]
        self.assertEqual([each.node_id for each in best(nodes, Counter({"one": 4}))], ["two", "one"])


class PlaceTests(SynchronousTestCase):
    def test_sfu_on_three_turn_on_the_freest_two(self) -> None:
        """With the numbers of the settings, SFU is on three nodes and TURN on the two with most free."""
        nodes = [
            node("busy", evolve(IDLE, load=1.5), joined_at=1),
            node("free", joined_at=2),
            node("half", evolve(IDLE, load=0.5), joined_at=3),
        ]
        roles = place(COUNTS, nodes)
        self.assertEqual({role.node_id for role in roles if role.role == SFU}, {"busy", "free", "half"})
        self.assertEqual([role.node_id for role in roles if role.role == TURN], ["free", "half"])
        self.assertEqual([role.slot for role in roles], [0, 1, 2, 0, 1])

    def test_wanted(self) -> None:
        """Never more than there are, and at least one."""
        nodes = [node(str(number)) for number in range(3)]
        self.assertEqual([wanted(setting, nodes) for setting in (1, 3, 5)], [1, 3, 3])
        self.assertEqual(wanted(2, []), 1)


class RepairTests(SynchronousTestCase):
    """*gone* is dead for long, or unknown."""

    def changes(self, roles: list[Role], nodes: list[NodeRecord], dead: tuple[str, ...] = ()) -> list[Change]:
        active = [each for each in nodes if each.state == ACTIVE and each.node_id not in dead]
        known = {each.node_id for each in nodes} - set(dead)
        counts = {SFU: 1, TURN: 1}
        return repair(counts, roles, nodes, active, lambda node_id: node_id not in known)

    def test_dead(self) -> None:
        """A dead node's role goes to another; where there is none it keeps it, since it may come back."""
        roles = [Role(SFU, 0, "a"), Role(TURN, 0, "a")]
        moved = [Change(SFU, 0, "a", "b"), Change(TURN, 0, "a", "b")]
        self.assertEqual(self.changes(roles, [node("a"), node("b")], ("a",)), moved)
        self.assertEqual(self.changes(roles, [node("a")], ("a",)), [])

    def test_drained(self) -> None:
        """A drained node's role goes, whether anybody takes it or not; one that is still being emptied keeps it."""
        roles = [Role(SFU, 0, "a"), Role(TURN, 0, "b")]
        self.assertEqual(self.changes(roles, [node("a", state=DRAINING), node("b")]), [])
        self.assertEqual(self.changes(roles, [node("a", state=DRAINED), node("b")]), [Change(SFU, 0, "a", "b")])
        self.assertEqual(self.changes(roles[:1], [node("a", state=DRAINED)]), [Change(SFU, 0, "a", None)])

    def test_being_emptied(self) -> None:
        """Where fewer are wanted because a node is taken out of use, it keeps its role until it is drained: its people
        have been given time; then it is the one that loses it."""
        roles = [Role(SFU, 0, "a"), Role(SFU, 1, "b"), Role(TURN, 0, "b")]
        self.assertEqual(self.changes(roles, [node("a"), node("b", state=DRAINING)]), [])
        self.assertEqual(self.changes(roles[:2], [node("a", state=DRAINING), node("b", state=DRAINING)]), [])
        drained = [Change(SFU, 1, "b", None), Change(TURN, 0, "b", "a")]
        self.assertEqual(self.changes(roles, [node("a"), node("b", state=DRAINED)]), drained)

    def test_removed(self) -> None:
        """The role of a node that nobody knows goes."""
        self.assertEqual(self.changes([Role(SFU, 0, "x")], []), [Change(SFU, 0, "x", None)])

    def test_better_node(self) -> None:
        """A better node that comes later changes nothing."""
        roles = [Role(SFU, 0, "a"), Role(TURN, 0, "a")]
        self.assertEqual(self.changes(roles, [node("a", evolve(IDLE, load=9.0)), node("b")]), [])

    @settings(deadline=None, max_examples=150)
    @given(st.data())
    def test_ends(self, data: st.DataObject) -> None:
        """At most one change a place, never a role twice on a node, and after a second step nothing is left."""
        names = [f"node-{number}" for number in range(data.draw(st.integers(0, 5)))]
        states = st.sampled_from((ACTIVE, ACTIVE, DRAINING, DRAINED))
        nodes = [node(name, evolve(IDLE, load=data.draw(st.floats(0, 3))), data.draw(states)) for name in names]
        dead = data.draw(st.sets(st.sampled_from(names))) if names else set()
        counts = {role: data.draw(st.integers(1, 3)) for role in ROLES}
        roles = []
        for role in ROLES:
            holders = data.draw(st.lists(st.sampled_from([*names, "unknown"]), unique=True, max_size=4))
            slots = data.draw(st.permutations(range(4)))
            roles += [Role(role, slot, name) for slot, name in zip(slots, holders, strict=False)]
        active = [each for each in nodes if each.state == ACTIVE and each.node_id not in dead]

        def gone(node_id: str) -> bool:
            return node_id in dead or node_id not in names

        for _ in range(2):
            changes = repair(counts, roles, nodes, active, gone)
            self.assertEqual(len({(change.role, change.slot) for change in changes}), len(changes))
            roles = after(roles, changes)
            for role in ROLES:
                held = [each.node_id for each in roles if each.role == role]
                self.assertEqual(len(set(held)), len(held))
        self.assertEqual(repair(counts, roles, nodes, active, gone), [])
        for role in ROLES:
            held = {each.node_id for each in roles if each.role == role}
            emptied = {each.node_id for each in nodes if each.state == DRAINING} - dead
            self.assertLessEqual(len(held - emptied), counts[role])
            self.assertLessEqual(held, {each.node_id for each in nodes if each.state != DRAINED})
            if len(active) >= counts[role]:
                self.assertGreaterEqual(len(held), counts[role])
                self.assertFalse(held & dead)
