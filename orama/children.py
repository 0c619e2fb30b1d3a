"""A node's side of namespaces whose SFUs are its children: the runner and the SFU processes, put together.

In place of :class:`~orama.units.Units` where ``cluster.runner`` is ``processes``; TURN is served as with ``inline``.
With several processes for each namespace (``sfu.workers``) the node has the signalling port, and each process a door.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any

from attrs import evolve
from twisted.application.internet import TimerService
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.resource import IResource

from orama.cluster.children import MAX_PROCESSES, ChildRunner
from orama.cluster.desired import WebRtcConfig
from orama.cluster.runner import Runner
from orama.cluster.workers import Assignment, Directory, Workers
from orama.fronts import Fronts
from orama.rest.control_units import unit_resources
from orama.settings import Settings, SfuSettings

#: Unix sockets of the processes in the data directory, with a number; no longer than the name of the control socket
#: as long as that has two digits, since their paths have room for 107 bytes (unix(7)).
DOOR = "sfu-{}.sock"

_log = Logger()


def process_count(settings: SfuSettings) -> int:
    """How many processes are to share the rooms of a namespace; each needs a media port of its own."""
    return settings.workers or min(len(os.sched_getaffinity(0)), settings.media_block, MAX_PROCESSES)


class Children:
    """:param settings: as they are now, with the ports that TURN really has.

    :param inline: serves TURN.
    :param config: what this node has to know of a namespace; raises OramaError.
    :param reconnect_url: where clients of this node go when it drains; None when there is nowhere else.
    :param fronts: the signalling ports of namespaces with several processes.
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
        fronts: Fronts,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._config = config
        self._reconnect_url = reconnect_url
        self._fronts = fronts
        #: Whether the rooms of a namespace are in several processes.
        self.several = (processes := process_count(settings().sfu)) > 1
        self._doors: dict[tuple[str, int], int] = {}
        self.workers = Workers(reactor, directory, self._assign, self._door, processes)
        self.runner = ChildRunner(
            reactor,
            self._arguments,
            inline,
            lambda: self._settings().signaling.drain_deadline,
            self.workers.serves,
            self._tell,
            self.workers.leave,
            self.workers.taken,
            processes,
            self._ended,
            self.workers.heard,
        )
        self._looks = TimerService(1.0, self.runner.tick)
        self._looks.clock = reactor

    def startService(self) -> None:
        """Children are started as they are wanted; those that are stuck are ended."""
        self._looks.startService()

    def stopService(self) -> Deferred[None]:
        """Fires when no child is left."""
        return Deferred.fromCoroutine(self._stop())

    def resources(self) -> Mapping[str, IResource]:
        """What is to be put under ``/v1/control``, by name."""
        return unit_resources(self.workers, None)

    async def reloaded(self) -> None:
        """The settings are other ones."""
        self._fronts.configure()
        await self.workers.refresh_all()

    async def _stop(self) -> None:
        await self._looks.stopService()
        await self._fronts.stop()
        await self.runner.stop_all()
        for number in self._doors.values():
            (self._settings().data_dir / DOOR.format(number)).unlink(missing_ok=True)

    def _arguments(self, namespace: str, index: int) -> list[str]:
        settings = self._settings()
        place = ["--data-dir", str(settings.data_dir.absolute()), "--log-format", settings.log_format]
        return ["-m", "orama.worker", "--attached", "--namespace", namespace, "--index", str(index), *place]

    def _door(self, namespace: str, index: int) -> str:
        """Where that process takes clients; empty where it is the only one, which has the signalling port."""
        if not self.several:
            return ""
        number = self._doors.get((namespace, index))
        if number is None:
            held = set(self._doors.values())
            number = self._doors[namespace, index] = next(each for each in count() if each not in held)
        return str(self._settings().data_dir.absolute() / DOOR.format(number))

    async def _tell(self, namespace: str) -> None:
        if self.several:
            signaling = (await self._config(namespace)).blocks.signaling
            if signaling is not None:
                await self._fronts.open(namespace, signaling[0])
        await self.workers.refresh(namespace)

    def _ended(self, namespace: str) -> None:
        """The last process of *namespace* has gone."""
        for key in [key for key in self._doors if key[0] == namespace]:
            (self._settings().data_dir / DOOR.format(self._doors.pop(key))).unlink(missing_ok=True)
        closing = Deferred.fromCoroutine(self._fronts.close(namespace))
        closing.addErrback(lambda failure: _log.failure("a signalling port stays open", failure=failure))

    async def _assign(self, namespace: str) -> Assignment:
        config = await self._config(namespace)
        # For the SFU every relay is another process's, ours as well.
        blocks = evolve(config.blocks, relay=None)
        settings = self._settings()
        return Assignment(self._directory.node_id, settings, evolve(config, blocks=blocks), self._reconnect_url())
