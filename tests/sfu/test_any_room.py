"""Rooms in which anything happens, in any order: nothing fails, and in the end everybody has what is due to them."""

from __future__ import annotations

from random import Random

from orama.errors import SignalError
from orama.settings import SfuSettings
from orama.sfu.events import Error, Slot
from tests.sfu.guests import Guest
from tests.sfu.test_subscriptions import SlotsCase

SEEDS, STEPS = 12, 50


class AnyRoomTests(SlotsCase):
    #: Nobody is too quiet to be forwarded.
    sfu = SfuSettings(loudest=64)

    def test_any_order(self) -> None:
        """Joining, publishing, muting, choosing, speaking, restarting, being away, leaving, also in mid-negotiation."""
        for seed in range(SEEDS):
            try:
                self.run_one(Random(seed), f"room{seed}")
            except Exception as error:
                raise AssertionError(f"with seed {seed}: {error}") from error

    def run_one(self, random: Random, room_id: str) -> None:
        self.random, self.room_id, self.made = random, room_id, 0
        self.guests: list[Guest] = [self.guest(room_id) for _ in range(3)]
        #: What each has asked for: slots by kind, and tracks that it does not want.
        self.slots: dict[tuple[Guest, str], int] = {}
        self.unwanted: dict[Guest, set[str]] = {}
        actions = [
            *(self.join, self.publish, self.publish, self.unpublish, self.choose, self.choose, self.drop, self.take),
            *(self.talk, self.mute, self.away, self.restart, self.deaf, self.leave),
        ]
        for _ in range(STEPS):
            random.choice(actions)()
            if random.random() < 0.5:
                self.reactor.advance(random.choice((0.01, 0.04, 0.2, 1.0)))
        for guest in self.guests:
            guest.deaf = False
            self.back(guest)
        for _ in range(3):
            self.wait(self.sfu.offer_timeout + 1)
        for guest in self.guests:
            self.assert_due(guest)
        for guest in self.guests:
            guest.peer.leave()

    def assert_due(self, guest: Guest) -> None:
        """Every m-line of the client's has a subscription, and they are those that it should have."""
        self.assertFalse(guest.peer.left)
        self.assertEqual([error.code for error in guest.told(Error)], [])
        media = guest.peer.connection.media
        room = guest.peer.room
        for kind in ("audio", "video"):
            others = {
                track_id
                for track_id, publication in room.tracks.items()
                if publication.kind == kind and publication.peer is not guest.peer
            } - self.unwanted.get(guest, set())
            lines = {line.msid[1] for line in guest.browser.lines if line.msid and line.kind == kind}
            forwarded = {key: each.track.track_id for key, each in media._downlinks.items() if each.track.kind == kind}
            self.assertEqual(lines, set(forwarded))
            count = self.slots.get((guest, kind))
            if count is None:
                self.assertEqual(lines, others)
                continue
            self.assertIn(len(lines), {count} if others else {0, count})
            shown = self.shown(guest, kind)
            self.assertEqual(set(shown.values()), set(forwarded.values()) - lines)
            self.assertLessEqual(set(shown.values()), others)
            self.assertEqual(len(shown), min(len(lines), len(others)))
            self.assertLessEqual(set(shown), set(guest.browser.receiving))

    # What may happen.

    def one(self) -> Guest:
        return self.random.choice(self.guests)

    def join(self) -> None:
        if len(self.guests) < 6:
            self.guests.append(self.guest(self.room_id))

    def leave(self) -> None:
        if len(self.guests) > 2:
            guest = self.one()
            self.guests.remove(guest)
            guest.peer.leave()

    def publish(self) -> None:
        guest = self.one()
        if guest.browser.offering or len(guest.peer.publications) > 3:
            return
        self.made += 1
        guest.publish(f"{self.random.choice(('audio', 'video'))}{self.room_id}.{self.made}")

    def unpublish(self) -> None:
        guest = self.one()
        if guest.browser.offering or not guest.peer.publications:
            return
        guest.browser.remove_track(self.random.choice(list(guest.peer.publications)))
        guest.peer.offer(guest.browser.offer())

    def choose(self) -> None:
        guest, kind = self.one(), self.random.choice(("audio", "video"))
        count = self.random.choice((None, 0, 1, 2, 3))
        page = self.random.sample(sorted(guest.peer.room.tracks), min(2, len(guest.peer.room.tracks)))
        if count is None:
            self.slots.pop((guest, kind), None)
            guest.peer.receive(kind)
        else:
            self.slots[guest, kind] = count
            guest.peer.receive(kind, count, page)

    def drop(self) -> None:
        guest = self.one()
        for track_id in self.random.sample(sorted(guest.peer.room.tracks), min(1, len(guest.peer.room.tracks))):
            try:
                guest.peer.unsubscribe(track_id)
            except SignalError:
                continue
            self.unwanted.setdefault(guest, set()).add(track_id)

    def take(self) -> None:
        guest = self.one()
        for track_id in self.unwanted.pop(guest, set()) & guest.peer.room.tracks.keys():
            guest.peer.subscribe(track_id, self.random.choice(("low", "auto")), 1)

    def talk(self) -> None:
        guest = self.one()
        for _ in range(2):
            guest.peer.room.ranking.speak([guest.peer.peer_id], self.reactor.seconds())

    def mute(self) -> None:
        guest = self.one()
        for track_id in guest.peer.publications:
            guest.peer.track_state(track_id, self.random.random() < 0.5)

    def away(self) -> None:
        guest = self.one()
        guest.peer.detach()
        self.reactor.advance(self.random.choice((0.0, 0.5, 5.0)))
        self.back(guest)

    def back(self, guest: Guest) -> None:
        """A new ``welcome``: what slots show is told anew."""
        guest.events = [event for event in guest.events if not isinstance(event, Slot)]
        guest.peer.attach(guest.hear)

    def restart(self) -> None:
        guest = self.one()
        if not guest.browser.offering and guest.browser.lines:
            guest.browser.restarting = True
            guest.peer.offer(guest.browser.offer())

    def deaf(self) -> None:
        guest = self.one()
        guest.deaf = not guest.deaf
