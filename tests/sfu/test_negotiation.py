"""Offer and answer with one client, without a network."""

from __future__ import annotations

import re

from attrs import evolve
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from orama.errors import SignalError
from orama.sfu import payloads
from orama.sfu.agreement import Agreement
from orama.sfu.negotiation import MAX_UPLINKS, OFFERED_LINES, Negotiator
from orama.sfu.payloads import Numbers
from orama.sfu.values import AUDIO_LEVEL, MID, RID, TRANSPORT_CC
from orama.wire import sdp
from tests.sfu.browser import Browser
from tests.sfu.negotiators import AV1, H264, VP9, audio, negotiator, recorded, video

#: What the recorded answers were made to.
H264_BASELINE = evolve(H264, fmtp=H264.fmtp.replace("42e01f", "42001f"))


def sections(text: str) -> dict[str, sdp.Media]:
    return {sdp.mid(media): media for media in sdp.parse(text).media}


def settle(table: Negotiator, browser: Browser) -> list[str]:
    """Negotiate until neither side has anything to say; gives the mids that were added, in order."""
    added: list[str] = []
    for _ in range(50):
        proposed = table.propose()
        if proposed is None:
            return added
        added.extend(proposed.added.values())
        answer = browser.take_offer(proposed.sdp)
        assert answer is not None
        table.remote_answer(answer)
    raise AssertionError("the SFU never stops offering")


def sdp_ssrcs(table: Negotiator) -> tuple[int, ...]:
    """What the agreement in force sends with."""
    return tuple(table._agreement(frozenset()).ssrcs)


def publish(table: Negotiator, browser: Browser) -> None:
    browser.take_answer(table.remote_offer(browser.offer()).sdp)


class PublishingTests(SynchronousTestCase):
    def test_chromium(self) -> None:
        """Chromium's microphone and camera get one codec each, its own numbers, RED for sound, and RTX."""
        table, ice = negotiator()
        answered = table.remote_offer(recorded("chromium-offer"))
        microphone, camera = answered.agreement.uplinks
        self.assertEqual((microphone.mid, microphone.kind), ("0", "audio"))
        self.assertEqual([codec.mime for codec in microphone.codecs], ["audio/opus", "audio/red"])
        self.assertIn("useinbandfec=1", microphone.codecs[0].fmtp)
        (vp8,) = camera.codecs
        self.assertEqual((vp8.payload_type, vp8.mime, vp8.rtx_payload_type), (96, "video/VP8", 97))
        self.assertEqual(vp8.feedback, {"nack", "nack pli", "ccm fir", "transport-cc", "goog-remb"})
        self.assertEqual(camera.extensions[TRANSPORT_CC], 3)
        self.assertEqual(len(camera.ssrcs), 1)
        self.assertIsNotNone(camera.ssrcs[0][1])
        self.assertIsNotNone(ice.remote)
        answer = sdp.parse(answered.sdp)
        self.assertIn("ice-lite", answer.attributes)
        self.assertEqual(sdp.bundled(answer), ("0", "1"))
        for media in answer.media:
            self.assertEqual(media.attributes.get("setup"), "passive")
            self.assertEqual(sdp.direction(answer, media), "recvonly")
            self.assertIn("rtcp-mux", media.attributes)
            self.assertIn("end-of-candidates", media.attributes)
            self.assertIsNotNone(media.attributes.get("candidate"))

    def test_track_ids(self) -> None:
        """The track id is that of the client's msid, and stays while the m-line is in use."""
        table, _ = negotiator()
        text = recorded("firefox-offer")
        ids = [uplinked.track_id for uplinked in table.remote_offer(text).agreement.uplinks]
        self.assertEqual(ids, re.findall(r"a=msid:\S+ (\S+)", text))
        renamed = text.replace(ids[0], "other")
        self.assertEqual([each.track_id for each in table.remote_offer(renamed).agreement.uplinks], ids)

    def test_two_tracks_with_one_id(self) -> None:
        """Two m-lines with the same track id are two tracks."""
        table, _ = negotiator()
        browser = Browser()
        browser.add_transceiver("video", "same")
        browser.add_transceiver("video", "same")
        ids = [each.track_id for each in table.remote_offer(browser.offer()).agreement.uplinks]
        self.assertEqual(len(set(ids)), 2)

    def test_simulcast(self) -> None:
        """Rids are accepted in the answer, in the client's order, and named again in every later offer of ours."""
        for name in ("chromium", "firefox"):
            table, _ = negotiator()
            answered = table.remote_offer(recorded(f"{name}-simulcast"))
            (camera,) = [each for each in answered.agreement.uplinks if each.rids]
            self.assertEqual(camera.rids, ("q", "h", "f"))
            self.assertIn(RID, camera.extensions)
            table.want(video("theirs"))
            proposed = table.propose()
            assert proposed is not None
            for text in (answered.sdp, proposed.sdp):
                media = sections(text)[camera.mid]
                self.assertEqual(sdp.simulcast(media, "recv"), ("q", "h", "f"))

    def test_bitrate(self) -> None:
        """A highest bitrate is told to video publishers, in kbit/s."""
        table, _ = negotiator(max_bitrate=1_500_000)
        answer = sdp.parse(table.remote_offer(recorded("chromium-offer")).sdp)
        self.assertEqual([media.bandwidth for media in answer.media], [None, 1500])

    def test_extmap_allow_mixed(self) -> None:
        """Two-byte header extensions (RFC 8285, 6): our offers allow them, answers where the client's session does."""
        for name, allowed in (("chromium-offer", True), ("firefox-offer", False), ("chromium-offer", False)):
            table, _ = negotiator()
            text = recorded(name)
            if not allowed:
                text = text.replace("a=extmap-allow-mixed\r\n", "")
            answer = table.remote_offer(text).sdp
            self.assertEqual("extmap-allow-mixed" in sdp.parse(answer).attributes, allowed, name)
            table.want(video("theirs"))
            proposed = table.propose()
            assert proposed is not None
            self.assertIn("extmap-allow-mixed", sdp.parse(proposed.sdp).attributes)

    def test_too_many_tracks(self) -> None:
        """One client publishes no more than the limit: further m-lines stay, and nothing is taken on them."""
        table, _ = negotiator()
        browser = Browser()
        for i in range(MAX_UPLINKS + 3):
            browser.add_transceiver("audio", f"a{i}", receives=False)
        answered = table.remote_offer(browser.offer())
        self.assertEqual(answered.forbidden, {"tracks"})
        self.assertEqual(len(answered.agreement.uplinks), MAX_UPLINKS)
        browser.take_answer(answered.sdp)
        self.assertEqual(len(browser.sending), MAX_UPLINKS)

    def test_numbers_of_a_hostile_client(self) -> None:
        """A client that gives its payload types new meanings for ever makes us remember two of each."""
        numbers = Numbers()
        for i in range(50):
            lines = tuple(("rtpmap", f"{number} codec{i}/{i + 1}") for number in range(96, 128))
            formats = tuple(str(number) for number in range(96, 128))
            numbers.learn("video", sdp.Media("video", 9, "UDP/TLS/RTP/SAVPF", formats, lines))
        self.assertEqual({len(meanings) for meanings in numbers._meanings.values()}, {2})
        self.assertEqual(len(numbers._meanings), 32)

    def test_other_m_lines(self) -> None:
        """What we do not know is refused m-line by m-line: text, and audio without a codec of ours."""
        table, _ = negotiator()
        text = recorded("chromium-offer").replace("opus/48000/2", "speex/16000")
        answered = table.remote_offer(text)
        self.assertEqual([media.port for media in sdp.parse(answered.sdp).media], [0, 9])
        self.assertEqual([each.kind for each in answered.agreement.uplinks], ["video"])

    def test_ending(self) -> None:
        """A track that is no longer sent is no longer published; its m-line stays."""
        table, _ = negotiator()
        browser = Browser()
        browser.add_track("audio", "a")
        publish(table, browser)
        browser.remove_track("a")
        answered = table.remote_offer(browser.offer())
        self.assertEqual(answered.agreement.uplinks, ())
        self.assertEqual(len(sdp.parse(answered.sdp).media), 1)

    def test_without_permission(self) -> None:
        """Who may not publish gets an answer that takes nothing, and the reason; receiving goes on."""
        table, _ = negotiator(may_publish=lambda kind, mid: False, may_use_data=False)
        answered = table.remote_offer(recorded("chromium-takeover"))
        self.assertEqual(answered.forbidden, {"publish", "data"})
        self.assertEqual(answered.agreement.uplinks, ())
        self.assertIsNone(answered.agreement.data)


class OurRestartTests(SynchronousTestCase):
    def test_answered(self) -> None:
        """We restart ICE by an offer with new credentials and nothing else new; before an agreement there is none."""
        table, ice = negotiator()
        table.restart()
        self.assertIsNone(table.propose())
        browser = Browser()
        browser.add_track("audio", "a")
        publish(table, browser)
        before = table._lines
        table.restart()
        proposed = table.propose()
        assert proposed is not None
        self.assertEqual((ice.restarts, dict(proposed.added)), (1, {}))
        self.assertIn(f"a=ice-ufrag:{ice.local_ufrag}\r\n", proposed.sdp)
        agreement = table.remote_answer(browser.take_offer(proposed.sdp) or "")
        assert agreement is not None
        self.assertEqual((browser.restarts, ice.restarts, table._lines), (1, 1, before))
        self.assertEqual(ice.remote and ice.remote[0], browser.ufrag)
        self.assertIsNone(table.propose())

    def test_crossed(self) -> None:
        """An offer of the client's that crosses ours is answered with the old credentials, and ours is made again."""
        table, _ = negotiator()
        browser = Browser()
        browser.add_track("audio", "a")
        publish(table, browser)
        table.restart()
        self.assertIsNotNone(table.propose())
        answered = table.remote_offer(browser.offer())
        self.assertIn("a=ice-ufrag:sfu0\r\n", answered.sdp)
        browser.take_answer(answered.sdp)
        proposed = table.propose()
        assert proposed is not None
        self.assertIn("a=ice-ufrag:sfu2\r\n", proposed.sdp)

    def test_both_restart(self) -> None:
        """A restart of the client's that crosses ours is one for both."""
        table, ice = negotiator()
        browser = Browser()
        browser.add_track("audio", "a")
        publish(table, browser)
        table.restart()
        self.assertIsNotNone(table.propose())
        browser.ufrag = "efgh"
        answered = table.remote_offer(browser.offer())
        self.assertIn(f"a=ice-ufrag:{ice.local_ufrag}\r\n", answered.sdp)
        self.assertEqual(ice.local_ufrag, "sfu2")
        self.assertIsNone(table.propose())


class SubscribingTests(SynchronousTestCase):
    def test_offer(self) -> None:
        """Our offer: sendonly, msid of publisher and track, SSRC with its RTX in a FID group, actpass, ice-lite."""
        table, _ = negotiator()
        table.want(video("camera"))
        proposed = table.propose()
        assert proposed is not None
        session = sdp.parse(proposed.sdp)
        (media,) = session.media
        self.assertIn("ice-lite", session.attributes)
        self.assertEqual(media.attributes.get("setup"), "actpass")
        self.assertEqual(sdp.direction(session, media), "sendonly")
        self.assertEqual(sdp.msid(media), ("pub", "camera"))
        ((ssrc, rtx),) = sdp.ssrcs(media)
        self.assertIsNotNone(rtx)
        self.assertIn(("ssrc", f"{ssrc} cname:pub"), media.attributes.pairs)
        self.assertIsNone(table.propose())

    def test_recorded_answers(self) -> None:
        """The answers of real browsers to such offers are agreed on."""
        for name in ("chromium", "firefox"):
            table, _ = negotiator(2)
            table.want(audio("z1"))
            table.want(video("z2"))
            table.want(video("z3", codec=H264_BASELINE))
            table.want_data()
            table.propose()
            agreement = table.remote_answer(recorded(f"{name}-subscriber-answer"))
            assert agreement is not None
            taken = {each.track_id for each in agreement.downlinks}
            # This Firefox has no H.264: it refuses the m-line, and the track is not offered again.
            self.assertEqual(taken, {"z1", "z2"} if name == "firefox" else {"z1", "z2", "z3"})
            self.assertEqual(agreement.declined, {"z3"} - taken)
            self.assertIsNotNone(agreement.data)
            self.assertIsNone(table.propose())

    def test_gathered(self) -> None:
        """Many changes are one offer."""
        table, _ = negotiator()
        for i in range(10):
            table.want(audio(f"a{i}"))
        table.unwant("a3")
        proposed = table.propose()
        assert proposed is not None
        self.assertEqual(len(proposed.added), 9)
        self.assertEqual(len(sdp.parse(proposed.sdp).media), 9)

    def test_numbers_of_the_client(self) -> None:
        """Payload types and extension ids are those that the client uses, as far as it has named them."""
        table, _ = negotiator()
        table.remote_offer(recorded("firefox-offer"))
        table.want(audio("a"))
        table.want(video("v"))
        table.want(video("w", codec=AV1))
        proposed = table.propose()
        assert proposed is not None
        mids = sections(proposed.sdp)
        sound, picture, other = (mids[mid] for mid in proposed.added.values())
        self.assertEqual(sound.formats, ("109",))
        self.assertEqual(picture.formats, ("120", "124"))
        self.assertEqual(other.formats, ("99", "100"))
        ids = {extension.uri: extension.id for extension in sdp.extensions(sound)}
        self.assertEqual((ids[AUDIO_LEVEL], ids[MID], ids[TRANSPORT_CC]), (1, 3, 7))

    def test_renumbered_extension(self) -> None:
        """An id that we gave and Firefox never took, it gives to something else; then we follow."""
        table, _ = negotiator(2)
        for track in (audio("z1"), video("z2"), video("z3", codec=H264_BASELINE)):
            table.want(track)
        table.want_data()
        proposed = table.propose()
        assert proposed is not None
        ours = {each.uri: each.id for each in sdp.extensions(sections(proposed.sdp)[proposed.added["z2"]])}
        table.remote_answer(recorded("firefox-subscriber-answer"))
        table.remote_offer(recorded("firefox-simulcast"))
        table.want(video("z4"))
        proposed = table.propose()
        assert proposed is not None
        now = {each.uri: each.id for each in sdp.extensions(sections(proposed.sdp)[proposed.added["z4"]])}
        self.assertNotEqual(ours[RID], now[RID])
        ids: dict[int, set[str]] = {}
        for media in sdp.parse(proposed.sdp).media:
            for extension in sdp.extensions(media):
                ids.setdefault(extension.id, set()).add(extension.uri)
        self.assertEqual([uris for uris in ids.values() if len(uris) > 1], [])

    def test_payload_types_never_collide(self) -> None:
        """With every codec at once in one bundle, each payload type means one thing."""
        for before in (None, "chromium-offer", "firefox-offer"):
            table, _ = negotiator()
            if before is not None:
                table.remote_offer(recorded(before))
            for i, codec in enumerate((VP9, H264, AV1)):
                table.want(video(f"v{i}", codec=codec))
            table.want(audio("a"))
            proposed = table.propose()
            assert proposed is not None
            meanings: dict[int, set[object]] = {}
            for media in sdp.parse(proposed.sdp).media:
                for codec in payloads.offered(media.kind, media):
                    meanings.setdefault(codec.payload_type, set()).add(payloads.identity(codec))
                    if codec.rtx_payload_type is not None:
                        meanings.setdefault(codec.rtx_payload_type, set()).add(codec.payload_type)
            self.assertEqual([each for each in meanings.values() if len(each) > 1], [])

    def test_recycling(self) -> None:
        """An m-line whose track is gone is used again by the next of its kind: new SSRC, same mid."""
        table, _ = negotiator()
        browser = Browser()
        table.want(video("one"))
        (mid,) = settle(table, browser)
        before = browser.lines[0]
        table.unwant("one")
        settle(table, browser)
        self.assertEqual(browser.receiving, {})
        table.want(audio("other"))
        table.want(video("two"))
        self.assertEqual(len(settle(table, browser)), 2)
        self.assertEqual(browser.receiving[mid], ("pub", "two"))
        self.assertIs(browser.lines[0], before)

    def test_again_on_another_line(self) -> None:
        """A track that was taken away and comes back never stands on two m-lines."""
        table, _ = negotiator()
        browser = Browser()
        for track in ("one", "two"):
            table.want(video(track))
        settle(table, browser)
        for track in ("one", "two"):
            table.unwant(track)
        table.want(video("two"))
        settle(table, browser)
        table.want(video("one"))
        settle(table, browser)
        self.assertEqual(sorted(browser.receiving.values()), [("pub", "one"), ("pub", "two")])

    def test_taken_over(self) -> None:
        """``addTrack`` takes over our sendonly m-line, ``addTransceiver`` makes a new one; both work."""
        for name in ("chromium", "firefox"):
            table, _ = negotiator()
            table.remote_offer(recorded(f"{name}-offer"))
            table.want(audio("a"))
            table.want(video("v"))
            table.propose()
            table.remote_answer(recorded(f"{name}-answer"))
            answered = table.remote_offer(recorded(f"{name}-takeover"))
            mids = table.mids
            self.assertEqual([each.mid for each in answered.agreement.uplinks], ["0", "1", mids["v"], "2"])
            self.assertEqual({each.track_id for each in answered.agreement.downlinks}, {"a", "v"})
            session = sdp.parse(answered.sdp)
            directions = {sdp.mid(media): sdp.direction(session, media) for media in session.media}
            self.assertEqual(directions[mids["v"]], "sendrecv")
            self.assertEqual(directions[mids["a"]], "sendonly")
            self.assertIsNotNone(answered.agreement.data)

    def test_track_added_while_we_offer(self) -> None:
        """A track that a page adds while it takes our offer is invited by the next one, and published.

        The browser says of it only a=msid in its answer, and offers nothing by itself.
        """
        table, _ = negotiator()
        browser = Browser()
        table.want(audio("a"))
        settle(table, browser)
        browser.add_track("audio", "mine")
        table.want(video("v"))
        proposed = table.propose()
        assert proposed is not None
        answer = browser.take_offer(proposed.sdp)
        assert answer is not None
        self.assertFalse(browser.needs_negotiation)
        agreement = table.remote_answer(answer)
        assert agreement is not None
        self.assertEqual(agreement.uplinks, ())
        invitation = table.propose()
        assert invitation is not None
        self.assertEqual(invitation.added, {})
        answer = browser.take_offer(invitation.sdp)
        assert answer is not None
        agreement = table.remote_answer(answer)
        assert agreement is not None
        self.assertEqual([each.track_id for each in agreement.uplinks], ["mine"])
        self.assertEqual({each.track_id for each in agreement.downlinks}, {"a", "v"})
        self.assertEqual(browser.sending, {"mine"})
        self.assertIsNone(table.propose())

    def test_invited_once(self) -> None:
        """Who names a track in the answer but does not send it is asked once, and who may not publish never."""
        for may_publish, offers in ((True, 1), (False, 0)):
            table, _ = negotiator(may_publish=lambda kind, mid, may=may_publish: may)
            browser = Browser()
            table.want(audio("a"))
            proposed = table.propose()
            assert proposed is not None
            text = browser.take_offer(proposed.sdp)
            assert text is not None
            for _ in range(offers):
                table.remote_answer(text.replace("a=recvonly", "a=recvonly\r\na=msid:- mine"))
                self.assertIsNotNone(table.propose())
            agreement = table.remote_answer(text.replace("a=recvonly", "a=recvonly\r\na=msid:- mine"))
            assert agreement is not None
            self.assertEqual((agreement.uplinks, table.propose()), ((), None))

    def test_client_stops_a_line(self) -> None:
        """A transceiver that the client stops takes its track with it; the place is used again under a new mid."""
        table, _ = negotiator()
        browser = Browser()
        table.want(video("v"))
        (mid,) = settle(table, browser)
        browser.lines[0].stopped = True
        answered = table.remote_offer(browser.offer())
        browser.take_answer(answered.sdp)
        self.assertEqual(answered.agreement.declined, {"v"})
        self.assertIsNone(table.propose())
        table.want(audio("a"))
        (new,) = settle(table, browser)
        self.assertNotEqual(new, mid)
        self.assertEqual(len(browser.lines), 1)

    def test_client_pauses_a_line(self) -> None:
        """A client that turns to inactive is sent nothing until it turns back; nothing is negotiated on our side."""
        table, _ = negotiator()
        browser = Browser()
        table.want(video("v"))
        settle(table, browser)
        for receives in (False, True):
            browser.lines[0].receives = receives
            agreement = table.remote_offer(browser.offer()).agreement
            browser.rollback()
            self.assertEqual(bool(agreement.downlinks), receives)
            self.assertIsNone(table.propose())

    def test_publisher_changes_its_codec(self) -> None:
        """The same track in another codec is offered again on its m-line."""
        table, _ = negotiator()
        browser = Browser()
        table.want(video("v"))
        (mid,) = settle(table, browser)
        table.want(video("v", codec=H264))
        self.assertEqual(settle(table, browser), [])
        self.assertIn("H264/90000", [name for _, name in browser.lines[0].formats])
        self.assertEqual(browser.receiving, {mid: ("pub", "v")})

    def test_recvonly_transceivers_are_used(self) -> None:
        """An m-line that the client offers for receiving carries the next track of its kind."""
        table, _ = negotiator()
        browser = Browser()
        browser.add_transceiver("video", None)
        publish(table, browser)
        table.want(video("v"))
        self.assertEqual(settle(table, browser), ["0"])

    def test_no_ssrc_twice(self) -> None:
        """However often subscriptions come and go, no SSRC of one that has ended is given to another."""
        table, _ = negotiator()
        browser = Browser()
        seen: set[int] = set()
        for i in range(40):
            table.want(video(f"v{i}"))
            settle(table, browser)
            fresh = set(sdp_ssrcs(table))
            self.assertEqual((len(fresh), fresh & seen), (2, set()))
            seen |= fresh
            table.unwant(f"v{i}")
            settle(table, browser)
        self.assertEqual(list(sdp_ssrcs(table)), [])

    def test_not_too_many(self) -> None:
        """Beyond the limit tracks wait, and come when there is room."""
        table, _ = negotiator()
        browser = Browser()
        for i in range(OFFERED_LINES + 1):
            table.want(audio(f"a{i}"))
        self.assertEqual(len(settle(table, browser)), OFFERED_LINES)
        table.unwant("a0")
        settle(table, browser)
        self.assertIn(("pub", f"a{OFFERED_LINES}"), browser.receiving.values())


class DataTests(SynchronousTestCase):
    def test_late(self) -> None:
        """A data m-line may come at any time, from either side, once."""
        table, _ = negotiator()
        table.remote_offer(recorded("chromium-offer"))
        table.want_data()
        proposed = table.propose()
        assert proposed is not None
        media = sdp.parse(proposed.sdp).media[-1]
        self.assertEqual(
            (media.kind, media.protocol, media.formats), ("application", "UDP/DTLS/SCTP", ("webrtc-datachannel",))
        )
        self.assertEqual(media.attributes.get("sctp-port"), "5000")
        self.assertEqual(media.attributes.get("max-message-size"), "262144")

    def test_refused(self) -> None:
        """A client that refuses its data m-line is not asked again."""
        table, _ = negotiator()
        browser = Browser()
        table.want_data()
        proposed = table.propose()
        assert proposed is not None
        text = browser.take_offer(proposed.sdp.replace("m=application 9", "m=application 0"))
        assert text is not None
        table.remote_answer(text)
        table.want_data()
        self.assertIsNone(table.propose())

    def test_sizes(self) -> None:
        """Port and longest message are the client's; what is missing has the default of its RFC."""
        table, _ = negotiator()
        text = recorded("chromium-takeover")
        self.assertEqual(table.remote_offer(text).agreement.data, (5000, 262144))
        table, _ = negotiator()
        bare = text.replace("a=max-message-size:262144\r\n", "").replace("a=sctp-port:5000", "a=sctp-port:5001")
        self.assertEqual(table.remote_offer(bare).agreement.data, (5001, 65536))
        table, _ = negotiator()
        endless = text.replace("a=max-message-size:262144", "a=max-message-size:0")
        self.assertEqual(table.remote_offer(endless).agreement.data, (5000, 262144))


class RestartTests(SynchronousTestCase):
    def test_rotates(self) -> None:
        """A new ufrag is an ICE restart: we answer with new credentials. The same ufrag is none."""
        table, ice = negotiator()
        browser = Browser("first")
        browser.add_track("audio", "a")
        publish(table, browser)
        publish(table, browser)
        self.assertEqual(ice.restarts, 0)
        browser.ufrag = "second"
        answered = table.remote_offer(browser.offer())
        self.assertEqual(ice.restarts, 1)
        self.assertEqual(ice.remote, ("second", "p" * 24))
        self.assertEqual(sdp.parse(answered.sdp).media[0].attributes.get("ice-ufrag"), "sfu1")


class RefusalTests(SynchronousTestCase):
    def refused(self, table: Negotiator, text: str, code: str = "invalid_offer") -> None:
        mids, before = table.mids, table._lines
        with self.assertRaises(SignalError) as caught:
            if code == "invalid_offer":
                table.remote_offer(text)
            else:
                table.remote_answer(text)
        self.assertEqual(caught.exception.code, code)
        self.assertFalse(caught.exception.fatal)
        self.assertEqual((table.mids, table._lines), (mids, before))

    def test_offers(self) -> None:
        """What cannot be used is ``invalid_offer``, and the last agreement stays in force."""
        good = recorded("chromium-offer")
        for what, bad in {
            "empty": "",
            "no description": "v=1",
            "no m-line": "v=0\r\n",
            "without bundle": good.replace("a=group:BUNDLE 0 1\r\n", ""),
            "half bundled": good.replace("a=group:BUNDLE 0 1", "a=group:BUNDLE 0"),
            "without mid": good.replace("a=mid:0\r\n", ""),
            "a mid twice": good.replace("a=mid:1", "a=mid:0"),
            "a long mid": good.replace("a=mid:0", "a=mid:" + "0" * 17).replace("BUNDLE 0", "BUNDLE " + "0" * 17),
            "without rtcp-mux": good.replace("a=rtcp-mux\r\n", "", 1),
            "without fingerprint": re.sub(r"a=fingerprint:[^\r]*\r\n", "", good),
            "an old hash": good.replace("sha-256", "sha-1"),
            "a bent fingerprint": re.sub(r"a=fingerprint:sha-256 ..", "a=fingerprint:sha-256 XX", good),
            "no ufrag": re.sub(r"a=ice-ufrag:[^\r]*\r\n", "", good),
            "a short pwd": re.sub(r"a=ice-pwd:[^\r]*", "a=ice-pwd:short", good),
            "passive": good.replace("a=setup:actpass", "a=setup:passive"),
            "no setup": good.replace("a=setup:actpass\r\n", ""),
            "a bent rtpmap": good.replace("a=rtpmap:111 opus/48000/2", "a=rtpmap:111 opus/x/2"),
            "a bent payload type": good.replace("m=video 9 UDP/TLS/RTP/SAVPF 96", "m=video 9 UDP/TLS/RTP/SAVPF 300"),
            "two data m-lines": good
            + "".join(
                f"m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:d{i}\r\na=sctp-port:5000\r\n"
                for i in (1, 2)
            ).replace("\r\n\r\n", "\r\n"),
        }.items():
            table, _ = negotiator()
            table.remote_offer(good)
            text = bad.replace("BUNDLE 0 1", "BUNDLE 0 1 d1 d2") if what == "two data m-lines" else bad
            self.refused(table, text)
            self.refused(negotiator()[0], text)

    def test_another_certificate(self) -> None:
        """The client's certificate cannot change during a connection."""
        table, _ = negotiator()
        good = recorded("chromium-offer")
        table.remote_offer(good)
        self.refused(table, re.sub(r"a=fingerprint:sha-256 ..", "a=fingerprint:sha-256 00", good))

    def test_many_m_lines(self) -> None:
        """200 m-lines are refused before anything is looked at."""
        head, *media = re.split(r"(?m)^(?=m=)", recorded("chromium-offer"))
        self.refused(negotiator()[0], head + media[0] * 200)

    def test_lost_m_lines(self) -> None:
        """m-lines cannot vanish or change places (RFC 3264, 8)."""
        table, _ = negotiator()
        good = recorded("chromium-offer")
        head, sound, picture = re.split(r"(?m)^(?=m=)", good)
        table.remote_offer(good)
        self.refused(table, head + sound)
        self.refused(table, head + picture + sound)

    def test_answers(self) -> None:
        """An answer that does not fit is ``invalid_answer``; the right one is still taken after it."""
        table, _ = negotiator()
        table.remote_offer(recorded("chromium-offer"))
        self.refused(table, recorded("chromium-answer"), "invalid_answer")
        table.want(audio("a"))
        table.want(video("v"))
        offer = table.propose()
        assert offer is not None
        good = recorded("chromium-answer")
        for bad in (
            "",
            "nonsense",
            recorded("chromium-offer"),
            good.replace("BUNDLE 0 1 s1 s2", "BUNDLE 0 1 s1"),
            good.replace("a=mid:s1", "a=mid:s9"),
            good.replace("VP8/90000", "H263/90000"),
            good.replace("a=recvonly", "a=sendrecv"),
            re.split(r"(?m)^(?=m=video 9 UDP/TLS/RTP/SAVPF 96 97\r\n[\s\S]*a=mid:s2)", good)[0],
        ):
            self.refused(table, bad, "invalid_answer")
            self.assertEqual(table.repeat(), offer.sdp)
        # Of three late answers to the repeated offer nobody is told.
        agreement = table.remote_answer(good)
        assert agreement is not None
        self.assertEqual({each.track_id for each in agreement.downlinks}, {"a", "v"})

    def test_roles_stay(self) -> None:
        """The first answer must leave us the DTLS server; later ones may say what they like (Pion: passive)."""
        good = recorded("chromium-answer")
        for began in (False, True):
            table, _ = negotiator()
            if began:
                table.remote_offer(recorded("chromium-offer"))
            table.want(audio("a"))
            table.want(video("v"))
            table.propose()
            passive = good.replace("a=setup:active", "a=setup:passive")
            if began:
                self.assertIsNotNone(table.remote_answer(passive))
            else:
                self.refused(table, passive, "invalid_answer")


class RepeatingTests(SynchronousTestCase):
    def test_word_for_word(self) -> None:
        """An offer that nobody answers is repeated as it was, whatever has changed since."""
        table, _ = negotiator()
        browser = Browser()
        table.want(audio("a"))
        proposed = table.propose()
        assert proposed is not None
        table.want(audio("b"))
        self.assertIsNone(table.propose())
        self.assertEqual(table.repeat(), proposed.sdp)
        text = browser.take_offer(proposed.sdp)
        assert text is not None
        agreement = table.remote_answer(text)
        self.assertEqual(table.remote_answer(text), agreement, "the answer to the repeated offer changes nothing")
        with self.assertRaises(SignalError):
            table.remote_answer(text)
        self.assertEqual(len(settle(table, browser)), 1)

    def test_crossed(self) -> None:
        """An offer of the client's that crosses ours comes first; ours is made again, on the same mid."""
        table, _ = negotiator()
        browser = Browser()
        browser.add_track("audio", "mine")
        theirs = browser.offer()
        table.want(video("v"))
        first = table.propose()
        assert first is not None
        self.assertIsNone(browser.take_offer(first.sdp))
        browser.take_answer(table.remote_offer(theirs).sdp)
        self.assertEqual(settle(table, browser), list(first.added.values()))
        self.assertEqual(browser.sending, {"mine"})
        self.assertEqual(browser.receiving, {first.added["v"]: ("pub", "v")})

    def test_numbers_of_an_offer_that_failed(self) -> None:
        """What an offer that was crossed has numbered counts for nothing: the client's numbers do."""
        table, _ = negotiator()
        table.want(video("v"))
        table.propose()
        table.remote_offer(recorded("firefox-offer"))
        proposed = table.propose()
        assert proposed is not None
        media = sections(proposed.sdp)[proposed.added["v"]]
        self.assertEqual(media.formats, ("120", "124"))
        self.assertEqual({each.id for each in sdp.extensions(media) if each.uri == MID}, {3})


class Glare(RuleBasedStateMachine):
    """A browser and the SFU, both changing their minds, with messages on the way in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.table, _ = negotiator()
        self.browser = Browser()
        self.up: list[tuple[str, str]] = []
        self.down: list[tuple[str, str]] = []
        self.wanted: dict[str, str] = {}
        self.names = 0
        self.busy = False
        self.published: set[str] = set()
        self.forwarded: set[str] = set()
        self.dirty = False
        #: An offer of the client's that has crossed ours.
        self.crossed: str | None = None

    @initialize(yields=st.booleans())
    def client_is(self, yields: bool) -> None:
        self.browser.yields = yields

    @precondition(lambda self: any(not each.stopped for each in self.browser.lines))
    @rule()
    def client_restarts_ice(self) -> None:
        self.browser.restarting = self.dirty = True

    def name(self, kind: str) -> str:
        self.names += 1
        return f"{kind}{self.names}"

    @precondition(lambda self: len(self.browser.tracks) < MAX_UPLINKS)
    @rule(kind=st.sampled_from(["audio", "video"]), added=st.booleans())
    def client_publishes(self, kind: str, added: bool) -> None:
        track = self.name(f"own-{kind}")
        (self.browser.add_track if added else self.browser.add_transceiver)(kind, track)
        self.dirty = True

    @precondition(lambda self: self.browser.tracks)
    @rule(data=st.data(), stop=st.booleans())
    def client_unpublishes(self, data: st.DataObject, stop: bool) -> None:
        track = data.draw(st.sampled_from(sorted(self.browser.tracks)))
        (self.browser.stop if stop else self.browser.remove_track)(track)
        self.dirty = True

    @precondition(lambda self: self.dirty and not self.browser.offering)
    @rule()
    def client_offers(self) -> None:
        self.dirty = False
        self.up.append(("offer", self.browser.offer()))

    @rule(kind=st.sampled_from(["audio", "video", "h264"]))
    def somebody_publishes(self, kind: str) -> None:
        track = self.name(kind)
        self.wanted[track] = kind
        self.table.want(audio(track) if kind == "audio" else video(track, codec=H264 if kind == "h264" else VP9))

    @precondition(lambda self: self.wanted)
    @rule(data=st.data())
    def somebody_unpublishes(self, data: st.DataObject) -> None:
        track = data.draw(st.sampled_from(sorted(self.wanted)))
        del self.wanted[track]
        self.table.unwant(track)

    @rule()
    def sfu_offers(self) -> None:
        proposed = self.table.propose()
        if proposed is not None:
            self.down.append(("offer", proposed.sdp))

    @precondition(lambda self: self.table.offering and self.crossed is None)
    @rule()
    def sfu_is_impatient(self) -> None:
        offer = self.table.repeat()
        assert offer is not None
        self.down.append(("offer", offer))

    @rule()
    def client_is_done(self) -> None:
        self.busy = False

    @precondition(lambda self: self.up)
    @rule()
    def sfu_hears(self) -> None:
        kind, text = self.up.pop(0)
        if kind == "answer":
            try:
                self.agree(self.table.remote_answer(text))
            except SignalError:
                # Who gives way may take an offer that we made again once more than we count. It is told, no more.
                assert self.browser.yields and not self.table.offering
            self.crossed = None
        elif (self.table.offering or self.table.repeated) and self.crossed is None:
            self.crossed = text
        else:
            self.answer(text)

    def settled(self) -> bool:
        """Whether time can tell that the client has not given way to an offer of ours."""
        return self.crossed is not None and not self.up and not self.down

    @precondition(settled)
    @rule()
    def client_has_not_given_way(self) -> None:
        assert self.crossed is not None
        self.answer(self.crossed)

    def answer(self, text: str) -> None:
        self.crossed = None
        answered = self.table.remote_offer(text)
        self.agree(answered.agreement)
        self.down.append(("answer", answered.sdp))

    def agree(self, agreement: Agreement | None) -> None:
        if agreement is not None:
            self.published = {each.track_id for each in agreement.uplinks}
            self.forwarded = {each.track_id for each in agreement.downlinks}
            for track in agreement.declined:
                self.wanted.pop(track, None)

    @precondition(lambda self: self.down)
    @rule()
    def client_hears(self) -> None:
        kind, text = self.down.pop(0)
        if kind == "answer":
            self.browser.take_answer(text)
            self.busy = True
        elif not self.busy:
            answer = self.browser.take_offer(text)
            if answer is not None:
                self.up.append(("answer", answer))
                self.dirty = self.browser.needs_negotiation

    def teardown(self) -> None:
        """When everybody has had their say, every track of either side is negotiated, and nothing else."""
        for _ in range(1000):
            self.busy = False
            if self.dirty and not self.browser.offering:
                self.client_offers()
            if self.up:
                self.sfu_hears()
            elif self.down:
                self.client_hears()
            elif self.crossed is not None:
                self.client_has_not_given_way()
            elif self.table.offering:
                self.sfu_is_impatient()
            else:
                self.sfu_offers()
                if not self.down and not self.dirty:
                    break
        else:
            raise AssertionError("it never settles")
        assert {track for _, track in self.browser.receiving.values()} == set(self.wanted) == self.forwarded
        assert self.browser.sending == self.browser.tracks == self.published
        assert all(self.browser.receiving[mid][1] == track for track, mid in self.table.mids.items())


class GlareTests(SynchronousTestCase):
    def test_any_interleaving(self) -> None:
        """Whatever both sides do, in whatever order messages arrive, every track ends up negotiated."""
        run_state_machine_as_test(
            Glare,
            settings=settings(
                max_examples=150,
                stateful_step_count=40,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                report_multiple_bugs=False,
            ),
        )
