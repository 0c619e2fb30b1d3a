"""SFUs as children of the node: one process for each namespace, or several, on whatever cores are free.

For a machine without systemd's units (``cluster.runner = "processes"``). TURN of every namespace stays with the node,
or with its ``turn.workers``. A child that ends is started again, and who ends soon waits longer for it; when the node
goes away in whatever manner, its children see the end of their standard input and go too.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from orama.cluster.placement import SFU
from orama.cluster.runner import Runner
from orama.errors import Unavailable
from orama.spawning import ending, environment

#: Seconds before a child is started again: the first pause, and the longest that it grows to.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
#: A child that lived so many seconds did not end soon.
SOUND = 60.0
#: Seconds beyond its drain that a child gets to end.
GRACE = 10.0
#: Looks in a row, one a second, at which a child that serves was not heard of: then it is stuck. It reports every
#: second; looks are counted, and not the time, which goes by for a node that is stuck itself, too.
MOST_SILENT = 15
#: Children of one namespace.
MAX_PROCESSES = 64
#: Bytes of a child's line that are logged; the rest of it is lost.
MAX_LINE = 16_384

_log = Logger()


class Child(ProcessProtocol):
    """One process of a namespace; what it writes goes to our log.

    :param name: how a sentence about it begins; :param label: what stands before its lines in the log.
    :param arguments: of Python; :param index: which of those of its namespace it is.
    :ivar wanted: whether it is to be started again when it ends.
    """

    def __init__(self, reactor: Any, name: str, label: str, arguments: Sequence[str], index: int) -> None:
        self.index = index
        self._name = name
        self._label = label
        self.wanted = True
        self.running = False
        #: Why it is not running, while it waits to be started again.
        self.why = ""
        self._reactor = reactor
        self._arguments = list(arguments)
        self._began = 0.0
        self._pause = FIRST_PAUSE
        self._again: IDelayedCall | None = None
        self._impatience: IDelayedCall | None = None
        self._heard: float | None = None
        self._silent = 0
        #: Fires when the process has ended for good.
        self.ended: Deferred[None] = Deferred()

    def start(self) -> None:
        """Start the process."""
        self._again = None
        self._began = self._reactor.seconds()
        self._lines = [_Lines(self._label), _Lines(self._label)]
        self.running = True
        try:
            self._reactor.spawnProcess(self, sys.executable, [sys.executable, *self._arguments], environment())
        except OSError as error:
            self._ended(f"cannot be started: {error.strerror}")

    def stop(self, deadline: float | None) -> None:
        """Let it drain, for *deadline* seconds at the longest; None ends it at once."""
        self.wanted = False
        if self._again is not None:
            self._again.cancel()
            self._again = None
            self._over()
            return
        self._signal("TERM")
        if deadline is None:
            self._signal("INT")  # another one than the first: two of a kind that come together are one
        if self._impatience is not None and self._impatience.active():
            self._impatience.cancel()
        self._impatience = self._reactor.callLater((deadline or 0.0) + GRACE, self._signal, "KILL")

    def look(self, heard: float | None) -> None:
        """Look whether it is stuck, and end it then; to be called once a second.

        :param heard: when it was last heard of; None when it does not serve.
        """
        self._silent = self._silent + 1 if heard is not None and heard == self._heard else 0
        self._heard = heard
        if self._silent >= MOST_SILENT and self.running and self.wanted:
            self._silent = 0
            _log.error("{name} is not heard of", name=self._name)
            self._signal("KILL")

    def outReceived(self, data: bytes) -> None:
        self._lines[0].feed(data)

    def errReceived(self, data: bytes) -> None:
        self._lines[1].feed(data)

    def processEnded(self, reason: Failure) -> None:
        self._ended(ending(reason))

    def _ended(self, why: str) -> None:
        self.running = False
        if self._impatience is not None and self._impatience.active():
            self._impatience.cancel()
        if not self.wanted:
            self._over()
            return
        self.why = why
        lived = self._reactor.seconds() - self._began
        self._pause = FIRST_PAUSE if lived >= SOUND else self._pause
        _log.error(
            "{name} {why}, and is started again in {pause} s",
            name=self._name,
            why=self.why,
            pause=self._pause,
        )
        self._again = self._reactor.callLater(self._pause, self.start)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _signal(self, name: str) -> None:
        try:
            self.transport.signalProcess(name)  # type: ignore[union-attr]
        except ProcessExitedAlready:
            pass

    def _over(self) -> None:
        if not self.ended.called:
            self.ended.callback(None)


class ChildRunner:
    """SFUs in processes, TURN in here.

    :param arguments: of Python, for a namespace's SFU of that number.
    :param inline: serves TURN.
    :param deadline: seconds that an SFU may drain.
    :param serves: whether an SFU of the namespace has come to us and serves.
    :param tell: takes over what is to be known of a namespace now; raises OramaError.
    :param leave: called before SFUs are stopped, to say what is to become of their people.
    :param taken: why an SFU could not open its ports, if that is what it has said; once.
    :param count: how many each namespace has; they share its rooms.
    :param ended: called when the last of a namespace that was stopped is gone.
    :param heard: when an SFU of that number has reported last; None when it does not serve.
    """

    def __init__(
        self,
        reactor: Any,
        arguments: Callable[[str, int], Sequence[str]],
        inline: Runner,
        deadline: Callable[[], float],
        serves: Callable[[str], bool],
        tell: Callable[[str], Awaitable[None]],
        leave: Callable[[str], Awaitable[None]],
        taken: Callable[[str], str | None],
        count: int = 1,
        ended: Callable[[str], object] = lambda namespace: None,
        heard: Callable[[str, int], float | None] = lambda namespace, index: None,
    ) -> None:
        self._reactor = reactor
        self._arguments = arguments
        self._inline = inline
        self._deadline = deadline
        self._serves = serves
        self._tell = tell
        self._leave = leave
        self._taken = taken
        self._count = count
        self._ended = ended
        self._heard = heard
        self._children: dict[str, list[Child]] = {}
        self._stopped = False

    async def start(self, namespace: str, role: str) -> None:
        """
        :raises Unavailable: ``port_in_use``; or ``sfu_failed``: all have ended, and are going to be started again.
        """
        if role != SFU:
            await self._inline.start(namespace, role)
            return
        if self._stopped:
            return
        why = self._taken(namespace)
        if why is not None:
            raise Unavailable("port_in_use", f"{namespace} cannot be served: {why}")
        children = self._children.get(namespace)
        if children is None:
            await self._tell(namespace)
            self._begin(namespace)
        elif not any(child.wanted for child in children):
            raise Unavailable("sfu_draining", f"the last SFU of {namespace} still drains")
        elif not any(child.running for child in children):
            raise Unavailable("sfu_failed", f"the SFU of {namespace} {children[0].why}, and is started again")
        else:
            await self._tell(namespace)  # it runs and does not serve: it may know other ports than we do

    def _begin(self, namespace: str) -> None:
        several = self._count > 1
        self._children[namespace] = children = [
            Child(
                self._reactor,
                f"process {index} of the SFU of {namespace}" if several else f"the SFU of {namespace}",
                f"{namespace}/{index}" if several else namespace,
                self._arguments(namespace, index),
                index,
            )
            for index in range(self._count)
        ]
        for child in children:
            child.ended.addCallback(self._gone, namespace, child)
            child.start()

    async def stop(self, namespace: str, role: str) -> None:
        if role != SFU:
            await self._inline.stop(namespace, role)
            return
        children = [child for child in self._children.get(namespace, ()) if child.wanted]
        if children:
            await self._leave(namespace)
        for child in children:
            child.stop(self._deadline())

    async def refresh(self, namespace: str) -> None:
        await self._inline.refresh(namespace)
        await self._tell(namespace)

    def running(self, namespace: str, role: str) -> bool:
        return self._serves(namespace) if role == SFU else self._inline.running(namespace, role)

    async def survey(self) -> frozenset[tuple[str, str]]:
        return await self._inline.survey() | {(namespace, SFU) for namespace in self._children}

    def tick(self) -> None:
        """Look whether any is stuck; to be called once a second."""
        for namespace, children in self._children.items():
            for child in children:
                child.look(self._heard(namespace, child.index))

    def stop_all(self) -> Deferred[None]:
        """Fires when no child is left."""
        self._stopped = True
        leaving = [child for children in self._children.values() for child in children]
        ended = [_told(child.ended) for child in leaving]
        for child in leaving:
            child.stop(None)
        return DeferredList(ended).addCallback(lambda _: None)

    def _gone(self, _: None, namespace: str, child: Child) -> None:
        """*child* has ended, and stays so."""
        children = self._children[namespace]
        children.remove(child)
        if not children:
            del self._children[namespace]
            self._ended(namespace)


class _Lines:
    """A child's output, in our log."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._waiting = b""

    def feed(self, data: bytes) -> None:
        *lines, rest = (self._waiting + data).split(b"\n")
        self._waiting = rest[:MAX_LINE]
        for line in lines:
            _log.info("{namespace}: {text}", namespace=self._label, text=line[:MAX_LINE].decode("utf-8", "replace"))


def _told(event: Deferred[None]) -> Deferred[None]:
    """Fires with *event*, whose result stays."""
    told: Deferred[None] = Deferred()

    def tell(result: Any) -> Any:
        told.callback(None)
        return result

    event.addBoth(tell)
    return told
