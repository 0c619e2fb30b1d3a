"""Rooms without a network, and guests whose browser is a model."""

from __future__ import annotations

import random
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import TestCase

from orama.errors import SignalError
from orama.net.fabric import Fabric
from orama.settings import Settings, SfuSettings
from orama.sfu._aiortc import DtlsCertificate
from orama.sfu.connection import AFTER_ANSWER, GATHER, GATHER_FIRST
from orama.sfu.events import Answer, Event, Offer
from orama.sfu.peer import Peer
from orama.sfu.rooms import Rooms
from tests.sfu.browser import Browser

EVERYTHING = frozenset({"publish", "subscribe", "data"})
RELAYS = (50000, 50799)
CERTIFICATE = DtlsCertificate()


class Guest:
    """A client: a model of a browser, and what the SFU told it.

    :ivar deaf: while true, offers are not answered.
    """

    def __init__(self, rooms: Rooms, room_id: str, namespace: str = "default", **options: Any) -> None:
        self.browser = Browser()
        self.events: list[Event] = []
        self.deaf = False
        options = {"user_id": "user", "metadata": {}, "permissions": EVERYTHING, "owner": False, **options}
        self.peer: Peer = rooms.join(namespace, room_id, send=self.hear, **options)

    def start(self) -> Guest:
        self.peer.others()
        self.peer.start()
        return self

    def hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Answer):
            self.browser.take_answer(event.sdp)
        elif isinstance(event, Offer) and not self.deaf:
            answer = self.browser.take_offer(event.sdp)
            if answer is not None:
                self.peer.answer(answer)

    def publish(self, *tracks: str, sources: dict[str, str] | None = None) -> None:
        """Publish tracks called after their kind, ``audio1`` or ``video1``."""
        for track in tracks:
            self.browser.add_transceiver(track[:5], track)
        self.peer.offer(self.browser.offer(), sources or {})

    def told(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def tracks(self) -> set[str]:
        """What the browser receives."""
        return {track for _, track in self.browser.receiving.values()}


class RoomsCase(TestCase):
    """One clock, one fabric, and the rooms of namespaces ``default`` and ``other``."""

    sfu = SfuSettings()

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.reactor.advance(1000)
        self.fabric = Fabric(self.reactor)
        settings = evolve(Settings(), sfu=self.sfu)
        self.rooms = Rooms(self.reactor, settings, self.fabric, random=random.Random(7), certificate=CERTIFICATE)
        for index, namespace in enumerate(("default", "other")):
            self.rooms.start_namespace(namespace, (13620 + 10 * index, 13629 + 10 * index), RELAYS)
        self.addCleanup(self.stop)

    def stop(self) -> Deferred[None]:
        return self.rooms.stop()

    def guest(self, room_id: str = "room", namespace: str = "default", **options: Any) -> Guest:
        return Guest(self.rooms, room_id, namespace, **options).start()

    def wait(self, seconds: float = 0.0) -> None:
        """Let time pass, at least as much as offers wait to be gathered."""
        for _ in range(round(max(seconds, AFTER_ANSWER + GATHER_FIRST + GATHER) / 0.05) + 1):
            self.reactor.advance(0.05)

    def assert_refused(self, code: str, call: Any, *arguments: Any) -> None:
        with self.assertRaises(SignalError) as caught:
            call(*arguments)
        self.assertEqual(caught.exception.code, code)
