"""A node's side of namespaces that run as units: the runner, the SFU processes and the TURN leases, put together.

In place of :class:`~orama.serving.ServedNamespaces` where ``cluster.runner`` is ``systemd``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.logger import LogPublisher
from twisted.web.resource import IResource

from orama.cluster.desired import WebRtcConfig
from orama.cluster.leases import Leases, Turn
from orama.cluster.placement import SFU
from orama.cluster.processes import Run
from orama.cluster.runner import SystemdRunner
from orama.cluster.workers import Assignment, Directory, Workers
from orama.rest.control_units import unit_resources
from orama.settings import Settings
from orama.turn.tenants import Tenant, Tenants


class Units:
    """:param settings: as they are now, with the ports that TURN really has.

    :param config: what this node has to know of a namespace; raises OramaError.
    :param tenant: makes the TURN tenant of a configuration that has a relay block.
    :param reconnect_url: where clients of this node go when it drains; None when there is nowhere else.
    :param run: runs ``systemctl``.
    """

    def __init__(
        self,
        reactor: Any,
        settings: Callable[[], Settings],
        directory: Directory,
        tenants: Tenants,
        turn: Turn,
        config: Callable[[str], Awaitable[WebRtcConfig]],
        tenant: Callable[[WebRtcConfig], Tenant],
        reconnect_url: Callable[[], str | None],
        publisher: LogPublisher,
        run: Run,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._config = config
        self._reconnect_url = reconnect_url
        self.workers = Workers(reactor, directory, self._assign)
        self.leases = Leases(
            reactor, tenants, turn, config, tenant, publisher, lambda: settings().signaling.drain_deadline
        )
        self.runner = SystemdRunner(run, self.serves, self.refresh, self._leave, self._taken)

    #: What runs goes on when the node ends.
    outlives = True

    def startService(self) -> None:
        self.leases.startService()

    def stopService(self) -> Deferred[None]:
        """Every holder of a lease is told; SFUs see by themselves that the node is gone."""
        return self.leases.stopService()

    def resources(self) -> dict[str, IResource]:
        """What is to be put under ``/v1/control``, by name."""
        return unit_resources(self.workers, self.leases)

    def serves(self, namespace: str, role: str) -> bool:
        return self.workers.serves(namespace) if role == SFU else self.leases.serves(namespace)

    async def refresh(self, namespace: str) -> None:
        """Tell whatever runs of *namespace* what it has to know now.

        :raises OramaError: that cannot be found out.
        """
        await self.leases.refresh(namespace)
        await self.workers.refresh(namespace)

    async def reloaded(self) -> None:
        """The settings are other ones."""
        await self.leases.refresh_all()
        await self.workers.refresh_all()

    async def _assign(self, namespace: str) -> Assignment:
        settings = self._settings()
        config = await self._config(namespace)
        # For the SFU every relay is another process's, ours as well.
        blocks = evolve(config.blocks, relay=None)
        return Assignment(self._directory.node_id, settings, evolve(config, blocks=blocks), self._reconnect_url())

    def _taken(self, namespace: str, role: str) -> str | None:
        return self.workers.taken(namespace) if role == SFU else None

    async def _leave(self, namespace: str, role: str) -> None:
        if role == SFU:
            await self.workers.leave(namespace)
