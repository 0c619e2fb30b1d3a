"""One client in a room: what it may say when, what it hears, and how it comes back."""

from __future__ import annotations

import re

from twisted.internet.defer import Deferred

from orama.errors import SignalError
from orama.settings import SfuSettings
from orama.sfu.connection import AFTER_WRONG_ANSWER, GIVING_WAY, MOST_DESCRIPTIONS, RESTART_AFTER
from orama.sfu.events import (
    Answer,
    Error,
    Kicked,
    Offer,
    PeerJoined,
    PeerLeft,
    Slot,
    TrackAdded,
    TrackRemoved,
    TrackState,
)
from orama.sfu.peer import MAX_WAITING
from tests.sfu.guests import Guest, RoomsCase
from tests.sfu.test_ice import check

CANDIDATE = "candidate:1 1 udp 2122252543 192.0.2.1 50000 typ {} raddr 0.0.0.0 rport 0"


class StartTests(RoomsCase):
    def test_nothing_before_start(self) -> None:
        """Until ``start`` nothing is said; what happened meanwhile comes first then."""
        one = self.guest()
        one.publish("audio1")
        two = Guest(self.rooms, "room")
        self.assertEqual(len(two.peer.others()), 1)
        three = self.guest()
        self.wait()
        self.assertEqual(two.events, [])
        two.peer.start()
        self.wait()
        self.assertEqual(two.events[0], PeerJoined(three.peer.peer_id, "user", {}))
        self.assertEqual([type(event) for event in two.events[1:]], [TrackAdded, Offer])

    def test_welcome_says_it_all(self) -> None:
        """What ``others`` has told before ``start`` is not told again."""
        two = Guest(self.rooms, "room")
        one = self.guest()
        self.assertEqual([info.peer_id for info in two.peer.others()], [one.peer.peer_id])
        two.peer.start()
        self.assertEqual(two.events, [])


class OfferTests(RoomsCase):
    def test_repeated(self) -> None:
        """An offer that is not answered in time is made again, word for word."""
        one, two = self.guest(), self.guest()
        two.deaf = True
        one.publish("audio1")
        self.wait()
        (first,) = two.told(Offer)
        self.wait(self.sfu.offer_timeout)
        self.assertEqual(two.told(Offer), [first, first])
        two.deaf = False
        self.wait(self.sfu.offer_timeout)
        self.assertEqual(two.tracks, {"audio1"})
        self.wait(20)
        self.assertEqual(len(two.told(Offer)), 3)

    def test_gathered(self) -> None:
        """What happens at once is one offer."""
        guests = [self.guest() for _ in range(4)]
        listener = self.guest()
        for guest in guests:
            guest.publish("audio1", "video1")
        self.wait()
        self.assertEqual(len(listener.tracks), 8)
        self.assertEqual(len(listener.told(Offer)), 1)

    def test_crossed(self) -> None:
        """When both offer at once and the client keeps to its own, that is answered, and ours made again."""
        one, two = self.guest(), self.guest()
        one.publish("audio1")
        two.browser.add_transceiver("video", "video2")
        theirs = two.browser.offer()
        self.wait()
        self.assertEqual(two.tracks, set())
        two.peer.offer(theirs)
        self.assertEqual([type(event) for event in two.events], [TrackAdded, Offer])
        self.wait(GIVING_WAY)
        self.wait()
        self.assertEqual([type(event) for event in two.events], [TrackAdded, Offer, Answer, Offer])
        self.assertEqual((two.tracks, two.browser.sending), ({"audio1"}, {"video2"}))
        self.wait()
        self.assertEqual(one.tracks, {"video2"})

    def test_crossed_and_said_again(self) -> None:
        """A client that offers once more instead of an answer to ours is answered at once, and once."""
        one, two = self.guest(), self.guest()
        one.publish("audio1")
        two.browser.add_transceiver("video", "video2")
        theirs = two.browser.offer()
        self.wait()
        two.peer.offer(theirs)
        two.peer.offer(theirs)
        self.assertEqual(two.browser.sending, {"video2"})
        self.wait(GIVING_WAY)
        self.assertEqual(len(two.told(Answer)), 1)
        self.assertEqual(two.tracks, {"audio1"})

    def test_gives_way(self) -> None:
        """A client that takes its own offer back for ours is agreed with on ours; what it took back never was."""
        one, two = self.guest(), self.guest()
        two.publish("audio2")
        self.wait()
        two.browser.yields = True
        two.browser.restarting = True
        theirs = two.browser.offer()
        one.publish("audio1")
        two.deaf = True
        self.wait()
        two.peer.offer(theirs)
        (ours,) = two.told(Offer)
        answer = two.browser.take_offer(ours.sdp)
        assert answer is not None
        two.peer.answer(answer)
        self.assertEqual(two.tracks, {"audio1"})
        self.wait(GIVING_WAY)
        self.assertEqual(len(two.told(Answer)), 1)
        two.deaf = False
        two.peer.offer(two.browser.offer())
        self.assertEqual(len(two.told(Answer)), 2)
        self.assertEqual((two.tracks, two.browser.sending), ({"audio1"}, {"audio2"}))

    def test_crossed_and_wrong(self) -> None:
        """An offer that crosses ours and cannot be used is an error, and ours goes on waiting."""
        one, two = self.guest(), self.guest()
        two.deaf = True
        one.publish("audio1")
        self.wait()
        two.peer.offer("nonsense")
        self.wait(GIVING_WAY)
        (error,) = two.told(Error)
        self.assertEqual((error.code, error.fatal), ("invalid_offer", False))
        two.deaf = False
        self.wait(self.sfu.offer_timeout)
        self.assertEqual(two.tracks, {"audio1"})

    def test_wrong_answer(self) -> None:
        """An answer that does not fit is an error, and the offer is made again."""
        one, two = self.guest(), self.guest()
        self.assert_refused("invalid_answer", two.peer.answer, "v=0")
        two.deaf = True
        one.publish("audio1")
        self.wait()
        self.assert_refused("invalid_answer", two.peer.answer, "nonsense")
        two.deaf = False
        self.wait(AFTER_WRONG_ANSWER)
        self.assertEqual(two.tracks, {"audio1"})

    def test_wrong_offer(self) -> None:
        """An offer that cannot be used is an error, and what was agreed goes on."""
        one, two = self.guest(), self.guest()
        one.publish("audio1")
        self.wait()
        self.assert_refused("invalid_offer", one.peer.offer, "nonsense")
        one.publish("video1")
        self.wait()
        self.assertEqual(two.tracks, {"audio1", "video1"})


class CandidateTests(RoomsCase):
    def test_relay_only(self) -> None:
        """Candidates are looked at: ``relay`` passes, an empty one ends, every other type is refused and counted."""
        peer = self.guest().peer
        peer.candidate(CANDIDATE.format("relay"), "0", 0, "abcd")
        peer.candidate("", None, None)
        for kind in ("host", "srflx", "prflx"):
            self.assert_refused("invalid_candidate", peer.candidate, CANDIDATE.format(kind))
        mdns = "candidate:1 1 udp 2113937151 e03366f6-5161-4287-aca2-f1f7411e81fe.local 50116 typ host"
        self.assert_refused("invalid_candidate", peer.candidate, mdns)
        self.assert_refused("invalid_candidate", peer.candidate, "x" * 1_000_000)
        samples = {(name, labels["namespace"]): value for name, labels, value in self.rooms.samples()}
        self.assertEqual(samples["orama_sfu_candidates_refused_total", "default"], 5)


class PermissionTests(RoomsCase):
    sfu = SfuSettings(max_tracks=20)

    def test_publish(self) -> None:
        """Who may not publish hears ``forbidden`` and is answered; nobody gets a track."""
        viewer, other = self.guest(permissions=frozenset({"subscribe"})), self.guest()
        viewer.publish("video1")
        self.wait()
        joined, error, answer = viewer.events
        self.assertEqual((type(joined), type(error), type(answer)), (PeerJoined, Error, Answer))
        self.assertEqual((error.code, error.fatal), ("forbidden", False))
        self.assertEqual(other.events, [])
        other.publish("audio1")
        self.wait()
        self.assertEqual(viewer.tracks, {"audio1"})

    def test_subscribe(self) -> None:
        """Who may not subscribe is offered nothing."""
        one, sender = self.guest(), self.guest(permissions=frozenset({"publish"}))
        one.publish("audio1")
        self.wait()
        self.assertEqual(sender.told(Offer), [])
        self.assert_refused("forbidden", sender.peer.subscribe, "audio1")

    def test_sources(self) -> None:
        """Who may publish some sources alone publishes these, whatever else it offers with them."""
        other = self.guest()
        for right, taken in (
            ("publish:screen", {"video2"}),
            ("publish:microphone", {"audio1"}),
            ("publish:video", {"video1", "video2"}),
        ):
            guest = self.guest(permissions=frozenset({right, "subscribe"}))
            guest.publish("audio1", "video1", "video2", sources={"2": "screen"})
            self.assertEqual(set(guest.peer.publications), taken)
            self.assertEqual([error.code for error in guest.told(Error)], ["forbidden"])
            guest.browser.restarting = True
            guest.peer.offer(guest.browser.offer())
            self.assertEqual(set(guest.peer.publications), taken)
            guest.peer.leave()
        self.wait()
        self.assertEqual(other.tracks, set())

    def test_kinds(self) -> None:
        """Who may receive sound alone is offered nothing else, on no slot and on no m-line."""
        listener, one = self.guest(permissions=frozenset({"subscribe:audio"})), self.guest()
        one.publish("audio1", "video1")
        self.wait()
        self.assertEqual(listener.tracks, {"audio1"})
        self.assert_refused("forbidden", listener.peer.subscribe, "video1")
        listener.peer.receive("video", 3)
        self.wait()
        self.assertEqual([event.track_id for event in listener.told(Slot)], [])

    def test_number_of_tracks(self) -> None:
        """Tracks beyond the limit are not taken, and the publisher hears it."""
        one, two = self.guest(), self.guest()
        one.publish(*(f"audio{number}" for number in range(self.sfu.max_tracks + 1)))
        self.assertEqual(len(one.peer.publications), self.sfu.max_tracks)
        self.assertEqual([error.code for error in one.told(Error)], ["forbidden"])
        self.wait()
        self.assertEqual(len(two.tracks), self.sfu.max_tracks)


class SubscriptionTests(RoomsCase):
    def test_unsubscribe(self) -> None:
        """A track is taken away on request and comes back on request; what is unknown is ``unknown_track``."""
        one, two = self.guest(), self.guest()
        one.publish("audio1", "video1")
        self.wait()
        two.peer.unsubscribe("video1")
        self.wait()
        self.assertEqual(two.tracks, {"audio1"})
        two.peer.subscribe("video1", "low", 3)
        self.wait()
        self.assertEqual(two.tracks, {"audio1", "video1"})
        added = [event for event in two.told(TrackAdded) if event.track_id == "video1"]
        self.assertEqual(len(added), 2)
        for call in (two.peer.subscribe, two.peer.unsubscribe, one.peer.unsubscribe):
            self.assert_refused("unknown_track", call, "video9" if call != one.peer.unsubscribe else "audio1")
        self.assert_refused("invalid_message", two.peer.subscribe, "video1", "highest")

    def test_unsubscribed_track_ends(self) -> None:
        """The end of a track that was known is told even when it is not subscribed."""
        one, two = self.guest(), self.guest()
        one.publish("video1")
        self.wait()
        two.peer.unsubscribe("video1")
        self.wait()
        one.peer.leave()
        (removed,) = two.told(TrackRemoved)
        self.assertEqual((removed.track_id, removed.mid), ("video1", None))


class StateTests(RoomsCase):
    def test_by_id_and_by_mid(self) -> None:
        """A publisher names its track by id or by mid; the others hear the id."""
        one, two = self.guest(), self.guest()
        one.publish("audio1")
        self.wait()
        one.peer.track_state("0", True)
        one.peer.track_state("audio1", False)
        self.assertEqual(two.told(TrackState), [TrackState("audio1", True), TrackState("audio1", False)])
        self.assertEqual(one.told(TrackState), [])
        self.assert_refused("unknown_track", two.peer.track_state, "audio1", True)


class ResumeTests(RoomsCase):
    def test_taken_up_again(self) -> None:
        """While the socket is away nobody notices; what happened is told when it is back."""
        one, two = self.guest(), self.guest()
        one.publish("audio1")
        self.wait()
        two.peer.detach()
        heard = len(two.events)
        three = self.guest()
        three.publish("video3")
        self.wait(14)
        self.assertEqual(len(two.events), heard)
        self.assertEqual(one.told(PeerLeft), [])
        two.peer.attach(two.hear)
        self.wait()
        self.assertEqual([type(event) for event in two.events[heard:]], [PeerJoined, TrackAdded, Offer])
        self.assertEqual(two.tracks, {"audio1", "video3"})
        self.wait(30)
        self.assertFalse(two.peer.left)

    def test_too_late(self) -> None:
        """After the resume timeout the peer is gone."""
        one, two = self.guest(), self.guest()
        two.peer.detach()
        self.wait(self.sfu.resume_timeout)
        self.assertEqual(one.told(PeerLeft), [PeerLeft(two.peer.peer_id, "timeout")])
        two.peer.attach(two.hear)
        self.assertEqual(two.events[-1], Kicked("timeout"))

    def test_unanswered_offer(self) -> None:
        """An offer that was lost with the socket is made again on the new one."""
        one, two = self.guest(), self.guest()
        two.deaf = True
        one.publish("audio1")
        self.wait()
        two.peer.detach()
        two.deaf = False
        self.wait(10)
        two.peer.attach(two.hear)
        self.assertEqual(two.tracks, {"audio1"})

    def test_lost_answer(self) -> None:
        """An answer of ours that was lost with the socket is given again when the client says its offer again."""
        one, two = self.guest(), self.guest()
        one.browser.add_transceiver("audio", "audio1")
        offer = one.browser.offer()
        one.peer.attach(lambda event: None)
        one.peer.offer(offer)
        one.peer.detach()
        self.wait(5)
        one.peer.attach(one.hear)
        one.peer.offer(offer)
        self.wait()
        self.assertEqual((one.browser.sending, set(one.peer.publications)), ({"audio1"}, {"audio1"}))
        self.assertEqual((two.tracks, len(two.told(TrackAdded))), ({"audio1"}, 1))

    def test_bounded(self) -> None:
        """A peer that is away for too many events is gone."""
        one, two = self.guest(), self.guest()
        one.publish("audio1")
        self.wait()
        two.peer.detach()
        for i in range(MAX_WAITING):
            one.peer.track_state("audio1", bool(i % 2))
        self.assertFalse(two.peer.left)
        one.peer.track_state("audio1", True)
        self.assertTrue(two.peer.left)


class SilenceTests(RoomsCase):
    sfu = SfuSettings(media_timeout=10.0)

    def test_checks_stop(self) -> None:
        """A client whose connectivity checks stop is gone after the media timeout, whatever its socket does."""
        one, two = self.guest(), self.guest()
        two.publish("audio1")
        connection = two.peer.connection
        relay = ("127.0.0.1", 50001)
        for _ in range(5):
            self.fabric.deliver([check(connection._agent)], relay, connection._port.address)
            self.wait(9)
        self.assertFalse(two.peer.left)
        self.wait(3)
        self.assertEqual(one.told(PeerLeft), [PeerLeft(two.peer.peer_id, "timeout")])
        self.assertEqual(two.events[-1], Kicked("timeout"))

    def test_never_connected(self) -> None:
        """A client that has not got through yet keeps its place as long as its socket stands."""
        one = self.guest()
        one.publish("audio1")
        self.wait(60)
        self.assertFalse(one.peer.left)


class RestartTests(RoomsCase):
    def test_checks_stop(self) -> None:
        """A silent client is asked to restart ICE, once in a while, as long as its socket stands and no check comes."""
        one = self.guest()
        one.publish("audio1")
        connection = one.peer.connection
        relay, other = ("127.0.0.1", 50001), ("127.0.0.1", 50002)
        self.fabric.deliver([check(connection._agent)], relay, connection._port.address)
        ufrag = connection._agent.local_ufrag
        self.wait(RESTART_AFTER - 1)
        self.assertEqual(one.told(Offer), [])
        self.wait(2)
        (offer,) = one.told(Offer)
        self.assertNotIn(ufrag, offer.sdp)
        self.assertIn(connection._agent.local_ufrag, offer.sdp)
        one.browser.ufrag = "wxyz"
        self.fabric.deliver([check(connection._agent, nominate=True)], other, connection._port.address)
        self.assertEqual(connection._agent.selected, other)
        self.wait(RESTART_AFTER)
        self.assertEqual(len(one.told(Offer)), 1)
        one.peer.detach()
        self.wait(9)
        self.assertEqual(len(one.told(Offer)), 1)


class BrokenTests(RoomsCase):
    def test_failed(self) -> None:
        """A handshake that fails is a fatal error with the code of the description that had the fingerprint."""
        one, two = self.guest(), self.guest()
        two.publish("audio1")
        dtls = two.peer.connection._dtls
        assert dtls is not None
        dtls.on_state("failed")
        error, kicked = two.events[-2:]
        self.assertEqual((error.code, error.fatal), ("invalid_offer", True))
        self.assertEqual(kicked, Kicked("timeout"))
        self.assertEqual(one.told(PeerLeft), [PeerLeft(two.peer.peer_id, "timeout")])

    def test_closed(self) -> Deferred[None]:
        """A client that closes its connection has left."""
        one, two = self.guest(), self.guest()
        two.publish("audio1")
        dtls = two.peer.connection._dtls
        assert dtls is not None
        dtls.on_state("closed")
        self.assertEqual(one.told(PeerLeft), [PeerLeft(two.peer.peer_id, "left")])
        self.assertEqual(two.events[-1], Kicked("left"))
        return self.rooms.stop()


class LimitTests(RoomsCase):
    def test_descriptions(self) -> None:
        """Descriptions come at a bounded rate; who is too fast is told, and goes on later."""
        one = self.guest()
        for _ in range(MOST_DESCRIPTIONS):
            self.assert_refused("invalid_offer", one.peer.offer, "v=0")
        self.assert_refused("rate_limited", one.peer.offer, "v=0")
        self.assert_refused("rate_limited", one.peer.answer, "v=0")
        self.wait(1)
        one.publish("audio1")
        self.assertEqual(len(one.told(Answer)), 1)

    def test_declined_and_gone(self) -> None:
        """A track that was declined while it went is not remembered: the next of that name is offered."""
        one, two = self.guest(), self.guest()
        two.deaf = True
        one.publish("audio1")
        self.wait()
        (offer,) = two.told(Offer)
        one.peer.leave()
        stopped = re.sub(r"m=audio \d+", "m=audio 0", two.browser.take_offer(offer.sdp) or "")
        two.peer.answer(re.sub("a=group:BUNDLE.*", "a=group:BUNDLE", stopped))
        self.assertEqual(two.peer.subscriptions._unsubscribed, set())

    def test_text_style(self) -> None:
        """Errors are worded as everywhere: no capital at the start, no full stop."""
        one = self.guest()
        for call, *arguments in (
            (one.peer.offer, "x"),
            (one.peer.answer, "x"),
            (one.peer.candidate, "x"),
            (one.peer.candidate, CANDIDATE.format("host")),
            (one.peer.subscribe, "x"),
            (one.peer.track_state, "x", True),
            (one.peer.kick, "x"),
        ):
            with self.assertRaises(SignalError) as caught:
                call(*arguments)  # type: ignore[operator]
            self.assertRegex(caught.exception.message, r"^[a-z].*[^.]$")


class DataLineTests(RoomsCase):
    DATA = "m=application {} UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:9\r\na=sctp-port:5000\r\n"

    def offer(self, guest: Guest, port: int) -> None:
        """The guest's offer with a data m-line at the end."""
        text = guest.browser.offer()
        transport = text[text.index("a=ice-ufrag") : text.index("a=mid:")]
        if port:
            text = re.sub("a=group:BUNDLE (.*)\r", "a=group:BUNDLE \\1 9\r", text)
        guest.peer.offer(text + self.DATA.format(port) + transport)

    def test_stopped(self) -> None:
        """A client that stops its data m-line ends its association; with a new one it has channels again."""
        one = self.guest()
        one.browser.add_transceiver("audio", "audio1")
        one.hear = one.events.append  # type: ignore[method-assign]
        one.peer._sink = one.events.append
        self.offer(one, 9)
        first = one.peer.connection._sctp
        assert first is not None
        self.assertTrue(one.peer.room.has_data)
        self.offer(one, 0)
        self.assertFalse(one.peer.room.has_data)
        self.assertIsNone(one.peer.connection._sctp)
        ended: Deferred[None] = first.close()

        def again(_: None) -> None:
            self.assertEqual(first.state, "closed")
            self.offer(one, 9)
            self.assertTrue(one.peer.room.has_data)
            self.assertIsNot(one.peer.connection._sctp, None)

        return ended.addCallback(again)  # type: ignore[return-value]
