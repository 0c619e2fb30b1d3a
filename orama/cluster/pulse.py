"""What a node does with every heartbeat: it says that it lives, sees who else does, and makes itself what it should be.

Living and tending are two loops, so that a node which has much to do is not taken for dead. A third one looks for the
others several times a heartbeat, so that a node which is gone is missed early, and one that is slow not too early.

While the database is away the heart goes on beating into the void: what runs goes on, and one line of the log says when
that begins and one when it ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from orama.cluster.nodes import DRAINED, Capacity, NodeRegistry
from orama.cluster.reconciler import Reconciler
from orama.errors import Unavailable

#: Times that it is looked who lives, while one heartbeat passes.
LOOKS = 4

_log = Logger()


class Pulse(Service):
    """:param capacity: what this machine has now.

    :param drained: empties the node; called once when it is to be empty.
    :param activated: called when it is to be used again after that.
    """

    name = "pulse"

    def __init__(
        self,
        clock: IReactorTime,
        registry: NodeRegistry,
        reconciler: Reconciler,
        capacity: Callable[[], Capacity],
        drained: Callable[[], Awaitable[None]],
        activated: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._reconciler = reconciler
        self._capacity = capacity
        self._drained = drained
        self._activated = activated
        self._away = self._beating = False
        self._draining: Deferred[None] | None = None
        self._emptied = False
        beat = registry.heartbeat
        self._loops = tuple(
            (self._every(work, clock), seconds)
            for work, seconds in ((self.beat, beat), (self.tend, beat), (self.look, beat / LOOKS))
        )

    def startService(self) -> None:
        super().startService()
        for loop, seconds in self._loops:
            beating = loop.start(seconds, now=False)
            beating.addErrback(lambda failure: _log.failure("the heart stands still", failure))

    def stopService(self) -> Deferred[None]:
        """Fires when the beat that is under way is over."""
        super().stopService()
        if self._draining is not None:
            self._draining.cancel()
        for loop, _ in self._loops:
            if loop.running:
                loop.stop()
        return Deferred.fromCoroutine(self._reconciler.stop())

    @property
    def away(self) -> bool:
        """The database does not answer."""
        return self._away

    async def beat(self) -> None:
        """Say that we live, and see who else does. Never raises."""
        self._beating = True
        try:
            await self._registry.beat(self._capacity())
            self._follow()
        except Unavailable as error:
            if not self._away:
                _log.warn("{why}: calls go on, and nothing can be changed until it is back", why=error.message)
            self._away = True
        except Exception:
            _log.failure("a heartbeat went wrong")
        else:
            if self._away:
                _log.info("the database is back")
            self._away = False
        finally:
            self._beating = False

    async def look(self) -> None:
        """See who else lives, but not while nobody can say so: where we cannot write, nobody can. Never raises."""
        if self._away or self._beating:
            return
        try:
            await self._registry.read()
            self._follow()
        except Unavailable:
            pass  # the next beat finds out
        except Exception:
            _log.failure("it cannot be seen who lives")

    async def tend(self) -> None:
        """Be what we should be, however long that takes. Never raises."""
        try:
            await self._reconciler.run()
        except Unavailable:
            pass  # the heart has said so
        except Exception:
            _log.failure("this node cannot be made what it should be")

    @staticmethod
    def _every(work: Callable[[], Awaitable[None]], clock: IReactorTime) -> LoopingCall:
        async def once() -> None:
            await work()

        loop = LoopingCall(lambda: Deferred.fromCoroutine(once()))
        loop.clock = clock
        return loop

    def _follow(self) -> None:
        """Begin to drain, or take people again, as the registry has it."""
        if not self._registry.draining:
            if self._emptied or self._draining is not None:
                if self._draining is not None:
                    self._draining.cancel()
                self._draining, self._emptied = None, False
                _log.info("the node takes people again")
                self._activated()
        elif self._draining is None and not (self._emptied and self._told_drained()):
            draining = self._draining = Deferred.fromCoroutine(self._empty())
            draining.addErrback(self._not_drained).addBoth(lambda _: self._drain_over(draining))

    async def _empty(self) -> None:
        if not self._emptied:
            _log.info("the node is to be empty")
            await self._drained()
            self._emptied = True
        await self._registry.drained()
        _log.info("the node is empty")

    def _told_drained(self) -> bool:
        me = self._registry.get(self._registry.node_id)
        return me is not None and me.state == DRAINED

    def _not_drained(self, failure: Failure) -> None:
        """While the database is away nobody is told: then a later heartbeat does that."""
        if failure.check(CancelledError, Unavailable) is None:
            _log.failure("the node cannot be emptied", failure)

    def _drain_over(self, which: Deferred[None]) -> None:
        if self._draining is which:
            self._draining = None
