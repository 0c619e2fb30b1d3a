"""A room of a hundred, negotiated and spoken in, in virtual time."""

from __future__ import annotations

import gc

from orama.sfu.events import Offer, Slot
from orama.sfu.subscriptions import CAMERA_SLOTS, OWN_LINES
from tests.sfu.guests import Guest
from tests.sfu.test_subscriptions import MediaGuest, SlotsCase

PEERS = 100


class LargeRoomTests(SlotsCase):
    def enter(self, count: int, slots: bool = True) -> list[Guest]:
        """Peers with microphone and camera, five at a time; what they are told is counted and forgotten."""
        guests: list[Guest] = []
        for number in range(count):
            guest = Guest(self.rooms, "room").start()
            if slots:
                guest.peer.receive("video", 9)
                guest.peer.receive("audio", 4)
            guest.publish(f"audio{number}", f"video{number}")
            guests.append(guest)
            if (number + 1) % 5 and number + 1 < count:
                continue
            self.wait()
            for each in guests:
                self.offers += len(each.told(Offer))
                each.events.clear()
        return guests

    def setUp(self) -> None:
        super().setUp()
        self.offers = 0

    def test_joining(self) -> None:
        """With slots a hundred joins take a hundred offers of 14 m-lines, and each as much memory as the one before."""
        sizes = []
        for _ in range(2):
            gc.collect()
            before = len(gc.get_objects())
            guests = self.enter(PEERS // 2)
            gc.collect()
            sizes.append(len(gc.get_objects()) - before)
            del guests
        self.assertEqual(self.offers, PEERS)
        self.assertLess(sizes[1], 1.5 * sizes[0])

    def test_speaking(self) -> None:
        """Four speak and everybody hears these four, not the murmur of the others; a fifth is heard when one is silent.

        Nobody is offered anything for it, and the speakers' cameras are on everybody's slots.
        """
        guests = self.enter(PEERS)
        offers = self.offers
        listener = MediaGuest(guests[0])
        senders = {number: MediaGuest(guests[number]) for number in (10, 30, 50, 70, 90, 99)}

        def say(seconds: float, *speakers: int) -> list[bytes]:
            for _ in range(round(seconds * 50)):
                for number, sender in senders.items():
                    text = f"{number}".encode()
                    sender.send(f"audio{number}", text, 25 if number in speakers else 70)
                self.reactor.advance(0.02)
            return listener.take()

        say(0.6, 10, 30, 50, 70)
        self.assertEqual(set(say(1.0, 10, 30, 50, 70)), {b"10", b"30", b"50", b"70"})
        heard = say(1.0, 30, 50, 70, 90)
        self.assertEqual(heard.count(b"90"), 30 + 4)
        self.assertEqual(say(1.0, 30, 50, 70, 90).count(b"90"), 50)
        self.wait()
        shown = set(self.shown(guests[5]).values())
        self.assertEqual(shown, {f"video{number}" for number in (10, 30, 50, 70, 90)})
        self.assertEqual(sum(len(guest.told(Offer)) for guest in guests) + offers, self.offers)
        self.assertLess(len(guests[5].told(Slot)), 60)

    def test_without_slots(self) -> None:
        """Clients that ask for nothing get the first on m-lines of their own, and the rest on slots: 56 in all."""
        guests = self.enter(OWN_LINES + 6, slots=False)
        lines = [line for line in guests[0].browser.lines if line.msid]
        sound = [line for line in lines if line.kind == "audio"]
        self.assertEqual(len(sound), OWN_LINES + self.sfu.loudest)
        self.assertEqual(len(lines), len(sound) + OWN_LINES + CAMERA_SLOTS)
        listener, sender = MediaGuest(guests[0]), MediaGuest(guests[-1])
        sender.send(f"audio{OWN_LINES + 5}", b"last")
        self.reactor.advance(0)
        self.assertEqual(listener.take(), [b"last"])

    def test_many_at_once(self) -> None:
        """Fifty tracks at once are one offer to everybody else, and so is their end."""
        guests = self.enter(5, slots=False)
        offers = self.offers
        for guest in guests[:2]:
            slides = (f"video{guest.peer.peer_id}{number}" for number in range(25))
            guest.publish(*slides, sources={str(mid): "slide" for mid in range(64)})
        self.wait()
        for guest in guests[2:]:
            self.assertEqual(len(guest.told(Offer)), 1)
            self.assertEqual(len(guest.tracks), 8 + 50)
        for guest in guests[:2]:
            guest.peer.leave()
        self.wait()
        for guest in guests[2:]:
            self.assertEqual((len(guest.told(Offer)), len(guest.tracks)), (2, 4))
        self.assertEqual(self.offers, offers)
