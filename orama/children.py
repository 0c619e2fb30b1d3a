"""A node's side of namespaces whose SFUs are its children: the runner and the SFU processes, put together.

In place of :class:`~orama.units.Units` where ``cluster.runner`` is ``processes``; TURN is served as with ``inline``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.web.resource import IResource

from orama.cluster.children import ChildRunner
from orama.cluster.desired import WebRtcConfig
from orama.cluster.runner import Runner
from orama.cluster.workers import Assignment, Directory, Workers
from orama.rest.control_units import unit_resources
from orama.settings import Settings


class Children:
    """:param settings: as they are now, with the ports that TURN really has.

    :param inline: serves TURN.
    :param config: what this node has to know of a namespace; raises OramaError.
    :param reconnect_url: where clients of this node go when it drains; None when there is nowhere else.
    """

    #: What runs ends with the node.
    outlives = False

    def __init__(
        self,
        reactor: Any,
        settings: Callable[[], Settings],
        directory: Directory,
        inline: Runner,
        config: Callable[[str], Awaitable[WebRtcConfig]],
        reconnect_url: Callable[[], str | None],
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._config = config
        self._reconnect_url = reconnect_url
        self.workers = Workers(reactor, directory, self._assign)
        self.runner = ChildRunner(
            reactor,
            self._arguments,
            inline,
            lambda: self._settings().signaling.drain_deadline,
            self.workers.serves,
            self.workers.refresh,
            self.workers.leave,
            self.workers.taken,
        )

    def startService(self) -> None:
        """Children are started as they are wanted."""

    def stopService(self) -> Deferred[None]:
        """Fires when no child is left."""
        return self.runner.stop_all()

    def resources(self) -> Mapping[str, IResource]:
        """What is to be put under ``/v1/control``, by name."""
        return unit_resources(self.workers, None)

    async def reloaded(self) -> None:
        """The settings are other ones."""

    def _arguments(self, namespace: str) -> list[str]:
        settings = self._settings()
        place = ["--data-dir", str(settings.data_dir.absolute()), "--log-format", settings.log_format]
        return ["-m", "orama.worker", "--attached", "--namespace", namespace, *place]

    async def _assign(self, namespace: str) -> Assignment:
        config = await self._config(namespace)
        # For the SFU every relay is another process's, ours as well.
        blocks = evolve(config.blocks, relay=None)
        settings = self._settings()
        return Assignment(self._directory.node_id, settings, evolve(config, blocks=blocks), self._reconnect_url())
