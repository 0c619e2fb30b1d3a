"""Rooms as REST closes them: here, on another node, and on one that cannot be told."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import ensureDeferred

from orama.cluster.rooms import RoomRecord
from orama.errors import Unavailable
from orama.serving import LiveRooms
from orama.sfu.events import RoomClosed
from tests.sfu.guests import RoomsCase


class LiveRoomsTests(RoomsCase):
    def setUp(self) -> None:
        super().setUp()
        self.asked: list[tuple[str, str]] = []
        self.away = False
        self.live = LiveRooms(self.rooms, self.elsewhere, self.stats_elsewhere)

    async def elsewhere(self, record: RoomRecord, reason: str) -> None:
        if self.away:
            raise Unavailable("node_unreachable", "nobody answers")
        self.asked.append((record.room_id, reason))

    async def stats_elsewhere(self, record: RoomRecord, peer_id: str | None) -> Any:
        self.asked.append((record.room_id, str(peer_id)))
        return {"peers": [peer_id]}

    def stats(self, room_id: str, peer_id: str | None) -> Any:
        record = RoomRecord("default", room_id, "node-2", 100, 0, 0.0)
        return self.successResultOf(ensureDeferred(self.live.stats(record, peer_id)))

    def test_stats(self) -> None:
        """What goes on in a room that is here is told without asking anybody, of any other its node is asked."""
        guest = self.guest("r")
        found = self.stats("r", None)
        self.assertEqual([each["peer_id"] for each in found["peers"]], [guest.peer.peer_id])
        self.assertEqual(self.asked, [])
        self.assertEqual(self.stats("other", "p1"), {"peers": ["p1"]})
        self.assertEqual(self.asked, [("other", "p1")])
        self.assertIsNone(self.successResultOf(ensureDeferred(LiveRooms(self.rooms).stats_here("default", "x", None))))

    def close(self, room_id: str) -> None:
        record = RoomRecord("default", room_id, "node-2", 100, 0, 0.0)
        self.assertIsNone(self.successResultOf(ensureDeferred(self.live.close(record, "bye"))))

    def test_here(self) -> None:
        """A room that is here is closed here, and nobody else is asked."""
        guest = self.guest("r")
        self.assertEqual(self.live.participants("default", "r"), 1)
        self.close("r")
        self.assertEqual((guest.events[-1], self.asked), (RoomClosed("bye"), []))
        self.assertEqual(self.live.participants("default", "r"), 0)

    def test_elsewhere(self) -> None:
        """One that is not is closed by its node; one that cannot be told finds out by itself."""
        self.close("r")
        self.assertEqual(self.asked, [("r", "bye")])
        self.away = True
        self.close("r")

    def test_no_sfu_here(self) -> None:
        """Where the namespace has no SFU no room is made."""
        self.assertIsNone(self.live.create("nobody's", "r", 5))
        self.live.create("default", "r", 5)
        self.assertIsNotNone(self.rooms.get("default", "r"))
