"""The signalling ports that a node has for the processes of its SFUs."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import IResource, Resource

from orama.errors import NotFound, Unavailable
from orama.fronts import Fronts
from orama.serving import Require
from orama.settings import Settings


class Port:
    """A port that is open until it is closed."""

    def __init__(self, reactor: Reactor, number: int) -> None:
        self._reactor, self._number = reactor, number

    def stopListening(self) -> None:
        del self._reactor.open[self._number]


class Reactor(MemoryReactorClock):
    """Has ports, of which some are somebody else's."""

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[int, Any] = {}
        self.busy: set[int] = set()

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        if port in self.busy or port in self.open:
            raise CannotListenError(interface, port, OSError(98, "Address already in use"))
        self.open[port] = factory
        return Port(self, port)


class FrontsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.settings = Settings(internal_ip="127.0.0.7")
        self.requires: list[Require] = []
        self.fronts = Fronts(self.reactor, lambda: self.settings, self.signal, self.require)

    def signal(self, settings: Settings, require: Require) -> IResource:
        self.requires.append(require)
        return Resource()

    async def require(self, namespace: str) -> None:
        """All of them have WebRTC."""

    def now(self, coroutine: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def test_moves(self) -> None:
        """Asked again for the same port nothing happens; asked for another, that one is open and the first is not."""
        for number, ports in ((30000, {30000}), (30000, {30000}), (30001, {30001})):
            self.now(self.fronts.open("demo", number))
            self.assertEqual(set(self.reactor.open), ports)
        self.assertEqual(len(self.requires), 2)
        self.now(self.fronts.open("other", 30000))
        self.now(self.fronts.close("demo"))
        self.now(self.fronts.close("demo"))
        self.assertEqual(set(self.reactor.open), {30000})
        self.now(self.fronts.open("demo", 30001))
        self.now(self.fronts.stop())
        self.assertEqual(set(self.reactor.open), set())

    def test_busy(self) -> None:
        """A port that is somebody else's is said to be, so that the namespace gets another."""
        self.reactor.busy.add(30000)
        failed = self.failureResultOf(Deferred.fromCoroutine(self.fronts.open("demo", 30000)), Unavailable)
        self.assertEqual(failed.value.code, "port_in_use")  # type: ignore[attr-defined]
        self.now(self.fronts.open("demo", 30001))
        self.assertEqual(set(self.reactor.open), {30001})

    def test_one_namespace(self) -> None:
        """The port of a namespace is nobody else's."""
        self.now(self.fronts.open("demo", 30000))
        self.now(self.requires[0]("demo"))
        self.failureResultOf(Deferred.fromCoroutine(self.requires[0]("other")), NotFound)

    def test_settings(self) -> None:
        """Other settings hold for what is open already."""
        self.now(self.fronts.open("demo", 30000))
        site = self.reactor.open[30000]
        self.settings = evolve(self.settings, limits=evolve(self.settings.limits, max_body=2048))
        self.fronts.configure()
        self.assertEqual((site.max_body, self.reactor.open[30000] is site), (2048, True))
