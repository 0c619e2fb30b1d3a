"""Waiting until the nodes are what they should be: after something was written, every node concerned is asked to look.

A node that is asked makes a pass at once and answers with what runs there. One that says that it cannot is given a few
more tries, since a port may come free; one that does not answer is asked again until its time is over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, FirstError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.cluster.enablement import Progress
from orama.cluster.nodes import NodeRecord, NodeRegistry
from orama.cluster.placement import ROLES, Role
from orama.errors import OramaError, Unavailable

#: Seconds until a node has to be what it should be, or to have ended what it has.
UP = 30.0
DOWN = 15.0
#: Seconds between two questions to the same node.
AGAIN = 0.25
#: Answers with an error after which a node is believed.
BELIEVED = 4

_log = Logger()

#: Makes a node reconcile a namespace, and gives what it then observes.
Ask = Callable[[NodeRecord, str], Awaitable[Mapping[str, Any]]]


class Settling:
    """:param ask: of this node or another."""

    def __init__(self, clock: IReactorTime, registry: NodeRegistry, ask: Ask) -> None:
        self._clock = clock
        self._registry = registry
        self._ask = ask

    async def up(self, namespace: str, roles: Collection[Role], progress: Progress) -> None:
        """:raises OramaError: a node cannot, or does not answer in time."""

        def there(observed: Mapping[str, Any], wanted: Collection[str]) -> bool:
            return all(observed.get(f"{role}_up") for role in wanted)

        outcomes = await self._all(namespace, roles, progress, there, UP, "running")
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def down(self, namespace: str, roles: Collection[Role], progress: Progress) -> None:
        """Done when every node that answers has stopped, or its time is over; the others follow when they are back."""

        def gone(observed: Mapping[str, Any], wanted: Collection[str]) -> bool:
            return not any(observed.get(f"{role}_up") for role in ROLES)

        for outcome in await self._all(namespace, roles, progress, gone, DOWN, "stopped"):
            if outcome is not None:
                _log.warn("{namespace} ends later on a node: {why}", namespace=namespace, why=outcome.message)

    async def _all(
        self,
        namespace: str,
        roles: Collection[Role],
        progress: Progress,
        done: Callable[[Mapping[str, Any], Collection[str]], bool],
        seconds: float,
        says: str,
    ) -> list[OramaError | None]:
        wanted: dict[str, list[str]] = {}
        for role in roles:
            wanted.setdefault(role.node_id, []).append(role.role)
        waits = []
        for node_id, mine in wanted.items():
            waits.append(Deferred.fromCoroutine(self._one(namespace, node_id, mine, progress, done, seconds, says)))
        try:
            return [result for _, result in await DeferredList(waits, fireOnOneErrback=True, consumeErrors=True)]
        except FirstError as error:
            error.subFailure.raiseException()

    async def _one(
        self,
        namespace: str,
        node_id: str,
        wanted: Collection[str],
        progress: Progress,
        done: Callable[[Mapping[str, Any], Collection[str]], bool],
        seconds: float,
        says: str,
    ) -> OramaError | None:
        """None when the node is what it should be, or why it is not."""
        step, what = f"node {node_id}", " and ".join(role.upper() for role in wanted)
        progress(step, "waiting", f"{what} on {node_id}")
        deadline, errors = self._clock.seconds() + seconds, 0
        why: OramaError = Unavailable("node_unreachable", f"node {node_id} is unknown")
        while True:
            node = self._registry.get(node_id)
            try:
                if node is not None:
                    observed = await self._ask(node, namespace)
                    if done(observed, wanted):
                        progress(step, "done", f"{what} {says} on {node_id}")
                        return None
                    error = observed.get("error")
                    errors += error is not None
                    why = Unavailable("node_failed", f"node {node_id}: {error or 'is not there yet'}")
            except OramaError as error:
                why = error
            if errors >= BELIEVED or self._clock.seconds() >= deadline or not self._registry.alive(node_id):
                progress(step, "failed", why.message)
                return why
            await _pause(self._clock, AGAIN)


async def _pause(clock: IReactorTime, seconds: float) -> None:
    over: Deferred[None] = Deferred()
    clock.callLater(seconds, over.callback, None)
    await over
