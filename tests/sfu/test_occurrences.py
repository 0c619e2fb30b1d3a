"""What the world outside is told of rooms."""

from __future__ import annotations

from orama.configuration import EVENTS
from orama.sfu import occurrences
from orama.sfu.occurrences import Occurrence
from tests.sfu.guests import RoomsCase


class OccurrenceTests(RoomsCase):
    def setUp(self) -> None:
        super().setUp()
        self.seen: list[Occurrence] = []
        self.rooms.on_occurrence = self.seen.append

    def take(self) -> list[tuple[str, object]]:
        """Event and the track, peer or reason that it is about, since the last call."""
        found = [
            (each.event, each.about.get("track_id") or each.about.get("reason") or each.about.get("user_id"))
            for each in self.seen
        ]
        self.seen.clear()
        return found

    def test_names(self) -> None:
        """What can be told is what the settings can name."""
        names = {value for name, value in vars(occurrences).items() if name.isupper()}
        self.assertEqual(names, set(EVENTS))

    def test_life_of_a_room(self) -> None:
        """A room begins with its first guest, tracks come and go before who publishes them, and an empty one ends."""
        ada = self.guest("r", user_id="ada")
        ada.publish("audio1", "video1")
        self.assertEqual(
            self.take(),
            [
                ("room_started", None),
                ("participant_joined", "ada"),
                ("track_published", "audio1"),
                ("track_published", "video1"),
            ],
        )
        ada.peer.leave()
        self.assertEqual(
            self.take(),
            [("track_unpublished", "audio1"), ("track_unpublished", "video1"), ("participant_left", "left")],
        )
        self.wait(self.sfu.empty_room_timeout + 1)
        self.assertEqual(self.take(), [("room_finished", "empty")])

    def test_closed(self) -> None:
        """A room that is closed ends with the reason, after everybody in it has left."""
        self.guest("r")
        self.guest("r")
        self.seen.clear()
        self.rooms.close("default", "r", "over")
        self.assertEqual(
            self.take(),
            [("participant_left", "room-closed"), ("participant_left", "room-closed"), ("room_finished", "over")],
        )

    def test_what_is_told(self) -> None:
        """Each says when, of which life of which room, who, and what a track is."""
        ada = self.guest("r", user_id="ada", metadata={"name": "Ada"})
        self.reactor.advance(2)
        ada.publish("video1", sources={"0": "screen"})
        joined, track = self.seen[1], self.seen[-1]
        self.assertEqual((joined.namespace, joined.room_id, joined.room_created_at), ("default", "r", joined.at))
        self.assertEqual(joined.about["metadata"], {"name": "Ada"})
        self.assertEqual((track.room_created_at, track.at), (joined.at, joined.at + 2))
        self.assertEqual(
            track.about,
            {
                "peer_id": ada.peer.peer_id,
                "user_id": "ada",
                "track_id": "video1",
                "kind": "video",
                "source": "screen",
                "codec": "VP8",
                "layers": [],
                "muted": False,
            },
        )

    def test_deaf_world(self) -> None:
        """When telling fails the room goes on, and the log says so."""

        def fail(occurrence: Occurrence) -> None:
            raise OSError("no space left")

        self.rooms.on_occurrence = fail
        guest = self.guest("r")
        self.assertFalse(guest.peer.left)
        self.rooms.on_occurrence = self.seen.append
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 2)
