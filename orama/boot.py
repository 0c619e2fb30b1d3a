"""Waiting for what a node needs before it can serve: the database first, then whatever else the settings name.

A node whose database is another process does not give up when that does not answer: it says what it waits for, on
``/ready`` and in its log, tries again, and goes on by itself. ``/health`` answers all the while.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET, Request

from orama.cluster.prerequisites import Prerequisite, require
from orama.errors import PreconditionFailed, StartError, Unavailable
from orama.rest.json_resource import JsonResource, error_reply, send
from orama.rest.origins import Origins
from orama.rest.resources import HealthResource, ReadyResource
from orama.rest.site import Site
from orama.settings import Settings
from orama.store.database import Database

#: Seconds between two attempts: the first pause, and the longest.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 5.0

_log = Logger()


async def wait_for_database(
    clock: IReactorTime, database: Database, waiting: Callable[[str], None], services: Sequence[str]
) -> None:
    """Have *database* open.

    :param waiting: told why we wait.
    :param services: what comes up only then, for the log.
    :raises StartError: it cannot be used, or is on this machine and does not answer.
    """

    async def attempt() -> None:
        try:
            await database.start()
        except Unavailable as error:
            if not database.remote:
                raise StartError(error.message) from None
            raise

    await _until(clock, attempt, waiting, services)


async def wait_for_prerequisites(
    clock: IReactorTime,
    probe: Callable[[], Awaitable[Sequence[Prerequisite]]],
    waiting: Callable[[str], None],
    services: Sequence[str],
) -> None:
    """Wait until everything that is required answers."""

    async def attempt() -> None:
        try:
            require(await probe())
        except PreconditionFailed as error:
            raise Unavailable(error.code, error.message) from None

    await _until(clock, attempt, waiting, services)


async def _until(
    clock: IReactorTime,
    attempt: Callable[[], Awaitable[None]],
    waiting: Callable[[str], None],
    services: Sequence[str],
) -> None:
    pause, told = FIRST_PAUSE, ""
    while True:
        try:
            await attempt()
        except Unavailable as error:
            if error.message != told:
                what = ", ".join(services) or "everything"
                _log.warn("waiting: {why}; {services} come up when it is there", why=error.message, services=what)
                told = error.message
            waiting(f"waiting: {error.message}")
            over: Deferred[None] = Deferred()
            clock.callLater(pause, over.callback, None)
            await over
            pause = min(LONGEST_PAUSE, 2 * pause)
        else:
            if told:
                _log.info("what the node waited for is there")
            return


def waiting_site(
    reactor: Any, settings: Settings, health: Callable[[], Mapping[str, Any]], ready: Callable[[], str]
) -> Site:
    """What answers on the HTTP endpoints until the node can."""
    origins = Origins(settings.limits.origins)
    root = _Waiting(origins, ready)
    root.putChild(b"health", HealthResource(origins, health))
    root.putChild(b"ready", ReadyResource(origins, settings.internal_ip, ready))
    site = Site(root, settings, reactor)
    site.noisy = False
    return site


class _Waiting(JsonResource):
    """503, whatever is asked for."""

    def __init__(self, origins: Origins, ready: Callable[[], str]) -> None:
        super().__init__(origins)
        self._ready = ready

    def getChild(self, path: bytes, request: Request) -> IResource:
        return self

    def render(self, request: Request) -> int:
        send(request, error_reply(Unavailable("not_ready", self._ready() or "the node is starting")))
        return NOT_DONE_YET
