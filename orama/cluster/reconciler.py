"""The loop that makes this node what the database says it should be, and keeps it so.

One pass reads what is wanted, starts what is missing and stops what is not wanted (TURN before the SFU that is reached
through it), and then sees to what goes with it: names, firewall, certificates, the state file. What fails is tried
again later and later, and keeps nothing else from being done. Enabling, cold boot, a node's replacement, a rule that
somebody has removed and a database that was away are all this loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.cluster.backoff import Backoff
from orama.cluster.desired import DesiredNamespace, WebRtcConfig
from orama.cluster.placement import SFU, TURN
from orama.cluster.runner import Runner
from orama.errors import OramaError

_log = Logger()

#: Does what goes along with the namespaces that this node serves; raises OramaError.
Attend = Callable[[Mapping[str, WebRtcConfig]], Awaitable[None]]


@frozen
class Wanted:
    """What :class:`Reconciler` is told by the rest of the node.

    :param desired: reads what is wanted.
    :param config_of: what follows for this node; raises OramaError when a secret cannot be read.
    :param stopped: this node has ended its part of a namespace that is disabled.
    :param repair: what is unfinished, and what the leading node does for all; asked in every pass.
    """

    desired: Callable[[], Awaitable[Mapping[str, DesiredNamespace]]]
    config_of: Callable[[DesiredNamespace], WebRtcConfig]
    stopped: Callable[[str], Awaitable[None]]
    repair: Callable[[Mapping[str, DesiredNamespace]], Awaitable[None]]


class Reconciler:
    """:param attend: name → what is seen to after the services, in this order.

    :param moved: gives a namespace other ports in place of those that cannot be bound.
    """

    def __init__(
        self,
        clock: IReactorTime,
        node_id: str,
        runner: Runner,
        wanted: Wanted,
        attend: Mapping[str, Attend],
        moved: Callable[[str], Awaitable[None]],
    ) -> None:
        self._node_id = node_id
        self._runner = runner
        self._wanted = wanted
        self._attend = attend
        self._moved = moved
        self._lock = DeferredLock()
        #: Who waits for the next pass.
        self._waiting: list[Deferred[None]] | None = None
        self._urgent: set[str] = set()
        self._told: dict[str, WebRtcConfig] = {}
        self._stopped = False
        self.backoff = Backoff(clock)
        #: What this node serves, or tries to, as of the last pass.
        self.configs: dict[str, WebRtcConfig] = {}
        #: The roles that it should have.
        self.roles: dict[str, tuple[str, ...]] = {}

    async def run(self, urgent: str | None = None) -> None:
        """One pass, after the one that may be under way; several calls meanwhile share one.

        :param urgent: a namespace that somebody waits for: it is tried even where it has just failed.
        :raises Unavailable: the database does not answer; what runs goes on.
        """
        if urgent is not None:
            self._urgent.add(urgent)
        mine: Deferred[None] = Deferred()
        if self._waiting is None:
            self._waiting = [mine]
            Deferred.fromCoroutine(self._turn(self._waiting))
        else:
            self._waiting.append(mine)
        await mine

    async def _turn(self, sharing: list[Deferred[None]]) -> None:
        """One pass for those who share it. It goes on to its end also when they are cancelled."""
        try:
            async with self._lock:
                self._waiting = None
                await self._pass()
        except Exception as error:
            for each in sharing:
                each.errback(error)
        else:
            for each in sharing:
                each.callback(None)

    async def stop(self) -> None:
        """No more passes; one that is under way is waited for."""
        self._stopped = True
        async with self._lock:
            pass

    def observed(self, namespace: str) -> dict[str, Any]:
        """What is, and what should be, of *namespace* on this node."""
        return {
            "node_id": self._node_id,
            "roles": list(self.roles.get(namespace, ())),
            "sfu_up": self._runner.running(namespace, SFU),
            "turn_up": self._runner.running(namespace, TURN),
            "error": self.backoff.why(namespace),
        }

    @property
    def settled(self) -> bool:
        """Whether everything that should run here does."""
        return all(self._runner.running(namespace, role) for namespace, roles in self.roles.items() for role in roles)

    async def _pass(self) -> None:
        if self._stopped:
            return
        urgent, self._urgent = self._urgent, set()
        desired = await self._wanted.desired()
        for namespace in urgent:
            self.backoff.retry(namespace)
        configs, roles = self._mine(desired)
        self.configs, self.roles = configs, roles
        held = await self._runner.survey()
        names = sorted({namespace for namespace, _ in held} | set(roles))
        due = [namespace for namespace in names if self.backoff.due(namespace)]
        there = {namespace: {role for name, role in held if name == namespace} for namespace in due}
        # What begins or moves may have been given the ports of what ends or moves away: one after the other.
        for step in (self._end, self._adapt):
            due = [namespace for namespace in due if await self._try(namespace, partial(step, namespace, there))]
        for namespace in due:
            await self._tend(namespace, partial(self._begin, namespace))
        for namespace, each in desired.items():
            concerned = self._node_id in {*each.blocks, *(role.node_id for role in each.roles)}
            if concerned and not each.enabled and not self._holds(namespace):
                await self._wanted.stopped(namespace)
        for name, attend in self._attend.items():
            if self.backoff.due(f"/{name}"):
                await self._tend(f"/{name}", partial(attend, configs))
        if self.backoff.due("/repair"):
            await self._tend("/repair", partial(self._wanted.repair, desired))

    def _mine(
        self, desired: Mapping[str, DesiredNamespace]
    ) -> tuple[dict[str, WebRtcConfig], dict[str, tuple[str, ...]]]:
        configs, roles = {}, {}
        for namespace, each in desired.items():
            mine = each.of(self._node_id).roles
            if not each.enabled or not mine:
                continue
            roles[namespace] = mine
            try:
                configs[namespace] = self._wanted.config_of(each)
            except OramaError as error:
                self._complain(namespace, error)
        return configs, roles

    async def _end(self, namespace: str, there: Mapping[str, set[str]]) -> None:
        """Stop what is not wanted of what runs, or is about to, of *namespace*."""
        wanted = self.roles.get(namespace, ())
        for role in (SFU, TURN):
            if role in there[namespace] and role not in wanted:
                await self._runner.stop(namespace, role)

    async def _adapt(self, namespace: str, there: Mapping[str, set[str]]) -> None:
        """Tell what runs on what has changed. Without a secret that can be read it goes on as it is."""
        wanted, config = self.roles.get(namespace, ()), self.configs.get(namespace)
        if not wanted:
            self._told.pop(namespace, None)
        elif config is not None and config != self._told.get(namespace) and there[namespace] & set(wanted):
            await self._runner.refresh(namespace)
            self._told[namespace] = config

    async def _begin(self, namespace: str) -> None:
        """Start what is wanted and does not run."""
        config = self.configs.get(namespace)
        if config is None:
            return
        for role in (TURN, SFU):
            if role in self.roles[namespace] and not self._runner.running(namespace, role):
                await self._start(namespace, role)
        self._told[namespace] = config  # if it has moved meanwhile, what runs already is told in the next pass

    async def _start(self, namespace: str, role: str) -> None:
        try:
            await self._runner.start(namespace, role)
        except OramaError as error:
            if error.code != "port_in_use":
                raise
            _log.warn("{namespace} moves to other ports: {why}", namespace=namespace, why=error.message)
            await self._moved(namespace)
            each = (await self._wanted.desired())[namespace]
            self.configs[namespace] = self._wanted.config_of(each)
            await self._runner.start(namespace, role)

    def _holds(self, namespace: str) -> bool:
        return any(self._runner.running(namespace, role) for role in (SFU, TURN))

    async def _tend(self, key: str, work: Callable[[], Awaitable[None]]) -> None:
        if await self._try(key, work) and self.backoff.succeeded(key):
            _log.info("{key} is as it should be again", key=key.lstrip("/"))

    async def _try(self, key: str, work: Callable[[], Awaitable[None]]) -> bool:
        """Whether it went well; otherwise it is tried again later."""
        try:
            await work()
        except OramaError as error:
            self._complain(key, error)
        except Exception as error:
            _log.failure("{key} cannot be made what it should be", key=key)
            self.backoff.failed(key, f"{type(error).__name__}: {error}")
        else:
            return True
        return False

    def _complain(self, key: str, error: OramaError) -> None:
        if self.backoff.failed(key, error.message):
            _log.error("{key} is not as it should be: {why}", key=key.lstrip("/"), why=error.message)
