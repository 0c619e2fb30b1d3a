"""What happened in the rooms of a worker, until its node has it: the node tells the world (:mod:`orama.webhooks`).

The node is told at once, and again every second while it does not answer. An event keeps its id, so that one that was
told twice is one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import asdict
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from orama.attachment import Attachment
from orama.errors import OramaError
from orama.sfu.occurrences import Occurrence

#: Events that wait for a node that is away; beyond that the oldest are lost.
MOST = 10_000
#: Events in one message: with metadata of 4 KiB each that is 320 KiB.
AT_ONCE = 64

_log = Logger()


class Outward:
    """:param wanted: whether anybody is to be told."""

    def __init__(self, reactor: Any, namespace: str, attachment: Attachment, wanted: Callable[[], bool]) -> None:
        self._reactor = reactor
        self._namespace = namespace
        self._attachment = attachment
        self._wanted = wanted
        self._waiting: deque[Occurrence] = deque(maxlen=MOST)
        self._telling: Deferred[None] | None = None
        self._scheduled = False

    def note(self, occurrence: Occurrence) -> None:
        """As ``Rooms.on_occurrence``."""
        if not self._wanted():
            return
        self._waiting.append(occurrence)
        if not self._scheduled:
            self._scheduled = True
            self._reactor.callLater(0, self.tell)

    def tell(self) -> None:
        """Tell the node what it does not know yet, if there is anything and it is not being told."""
        self._scheduled = False
        if self._waiting and self._telling is None:
            self._telling = Deferred.fromCoroutine(self._tell())
            self._telling.addErrback(lambda failure: failure.trap(CancelledError)).addBoth(self._told)

    async def stop(self) -> None:
        """The last things, when the rooms are closed; returns when the node knows, or cannot be told."""
        if self._telling is not None:
            await self._telling
        self.tell()
        if self._telling is not None:
            await self._telling

    def _told(self, _: object) -> None:
        self._telling = None

    async def _tell(self) -> None:
        try:
            while self._waiting:
                some = [self._waiting[index] for index in range(min(AT_ONCE, len(self._waiting)))]
                body = {"namespace": self._namespace, "occurrences": [asdict(each) for each in some]}
                await self._attachment.post("worker/occurrences", body)
                # The queue may have lost some of them at its other end meanwhile.
                known = {each.id for each in some}
                while self._waiting and self._waiting[0].id in known:
                    self._waiting.popleft()
        except OramaError as error:
            _log.debug("the node is not told what happened: {why}", why=error.message)
