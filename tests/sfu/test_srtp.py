"""SRTP and SRTCP against libsrtp as an independent peer, in every profile and both directions."""

from __future__ import annotations

from collections import Counter
from random import Random

import pylibsrtp
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.sfu import srtp
from orama.sfu.values import SrtpKeys
from orama.wire.rtcp import PictureLoss, ReceiverReport
from orama.wire.rtp import RtpPacket
from tests.sfu.clients import CM, GCM_128, GCM_256, PROFILES, random_keys, session


def packet(index: int, payload: bytes = b"payload", ssrc: int = 1234) -> RtpPacket:
    return RtpPacket(96, index & 0xFFFF, index * 10, ssrc, payload, extensions=((1, b"x"),))


def seal(stream: srtp.Seal, made: RtpPacket, index: int) -> bytes:
    """Protect as the media path does: header and payload apart."""
    whole = made.serialize()
    head = len(whole) - len(made.payload)
    protected = stream(whole[:head], made.payload, index)
    assert protected is not None
    return protected


class Peer:
    """Our two halves, libsrtp's two, and what ours refused."""

    def __init__(self, profile: str) -> None:
        self.keys = random_keys(profile)
        self.dropped: Counter[str] = Counter()
        self.receiver = srtp.receiver(self.keys, self.dropped)
        self.sender = srtp.sender(self.keys)
        self.out = session(profile, self.keys.receive_key + self.keys.receive_salt, inbound=False)
        self.into = session(profile, self.keys.send_key + self.keys.send_salt, inbound=True)

    def plain(self, *packets: bytes) -> list[bytes]:
        """What came of them, header and payload together."""
        return [bytes(header) + bytes(payload) for header, payload in self.receiver.unprotect(list(packets))]


class AgainstLibsrtpTests(SynchronousTestCase):
    def test_theirs_to_us(self) -> None:
        """What libsrtp protects we read, over three wraps of the sequence number."""
        for profile in PROFILES:
            peer = Peer(profile)
            for index in range(65530, 3 * 65536 + 20, 997):
                made = packet(index).serialize()
                self.assertEqual(peer.plain(peer.out.protect(made)), [made], (profile, index))
            self.assertEqual(peer.dropped, {})

    def test_ours_to_them(self) -> None:
        """What we protect libsrtp reads, over three wraps of the sequence number."""
        for profile in PROFILES:
            peer = Peer(profile)
            stream = peer.sender.stream(1234)
            for index in range(32000, 3 * 65536 + 20, 997):
                made = packet(index)
                self.assertEqual(peer.into.unprotect(seal(stream, made, index)), made.serialize(), (profile, index))

    def test_every_size(self) -> None:
        """Empty payloads and large ones pass both ways."""
        for profile in PROFILES:
            peer = Peer(profile)
            stream = peer.sender.stream(1234)
            for index, size in enumerate((0, 1, 15, 16, 17, 160, 1200, 1300)):
                made = packet(index, bytes(size))
                self.assertEqual(peer.plain(peer.out.protect(made.serialize())), [made.serialize()])
                self.assertEqual(peer.into.unprotect(seal(stream, made, index)), made.serialize())

    def test_bursts_keep_order(self) -> None:
        """A burst with a broken packet in it gives the others, in order."""
        for profile in PROFILES:
            peer = Peer(profile)
            made = [packet(index).serialize() for index in range(5)]
            protected = [bytearray(peer.out.protect(each)) for each in made]
            protected[2][-1] ^= 1
            self.assertEqual(peer.plain(*map(bytes, protected)), made[:2] + made[3:])
            self.assertEqual(peer.dropped, {"not_authentic": 1})

    def test_rtcp_both_ways(self) -> None:
        """SRTCP passes both ways, and each packet once."""
        for profile in PROFILES:
            peer = Peer(profile)
            for number in range(5):
                made = ReceiverReport(number).serialize() + PictureLoss(number, 2).serialize()
                protected = peer.out.protect_rtcp(made)
                self.assertEqual(peer.receiver.unprotect_rtcp(protected), made, profile)
                self.assertIsNone(peer.receiver.unprotect_rtcp(protected))
                self.assertEqual(peer.into.unprotect_rtcp(peer.sender.protect_rtcp(made)), made, profile)
            self.assertEqual(peer.dropped, {"replayed": 5})

    def test_ours_to_us(self) -> None:
        """Two of ours understand each other: the receiver reads what the sender of the same keys writes."""
        for profile in PROFILES:
            keys = random_keys(profile)
            back = SrtpKeys(profile, keys.receive_key, keys.receive_salt, keys.send_key, keys.send_salt)
            made = packet(7)
            protected = seal(srtp.sender(keys).stream(1234), made, 7)
            ((header, payload),) = srtp.receiver(back).unprotect([protected])
            self.assertEqual(bytes(header) + bytes(payload), made.serialize())


class ReplayTests(SynchronousTestCase):
    def test_replays_are_refused(self) -> None:
        """A packet counts once, also in another order and across a wrap (RFC 3711, 3.3.2)."""
        for profile in PROFILES:
            peer = Peer(profile)
            protected = [peer.out.protect(packet(index).serialize()) for index in range(65500, 65600)]
            order = protected[:]
            Random(7).shuffle(order[1:])
            order = [order[0], *order[2:50], order[1], *order[50:]]
            self.assertEqual(len(peer.plain(*order)), 100)
            self.assertEqual(peer.plain(*protected), [])
            self.assertEqual(peer.dropped, {"replayed": 100}, profile)

    def test_too_old(self) -> None:
        """What lies a whole window behind is refused, the last place in the window is not."""
        for profile in PROFILES:
            peer = Peer(profile)
            protected = {index: peer.out.protect(packet(index).serialize()) for index in range(2000, 4000)}
            self.assertEqual(len(peer.plain(protected[2000], protected[3500])), 2)
            self.assertEqual(len(peer.plain(protected[3500 - srtp.REPLAY_WINDOW])), 0)
            self.assertEqual(len(peer.plain(protected[3500 - srtp.REPLAY_WINDOW + 1])), 1)
            self.assertEqual(peer.dropped, {"replayed": 1}, profile)

    def test_nothing_changes_before_authentication(self) -> None:
        """A forged packet with a far number neither moves the window nor the rollover counter."""
        for profile in PROFILES:
            peer = Peer(profile)
            first, second = (peer.out.protect(packet(index).serialize()) for index in (100, 101))
            peer.plain(first)
            for far in (101, 30000, 60000):
                forged = bytearray(second)
                forged[2:4] = far.to_bytes(2, "big")
                forged[-1] ^= 1
                self.assertEqual(peer.plain(bytes(forged)), [])
            self.assertEqual(len(peer.plain(second)), 1)
            self.assertEqual(peer.dropped, {"not_authentic": 3}, profile)

    def test_forged_sources_cost_nothing(self) -> None:
        """Unauthentic packets of many SSRCs leave no state, and genuine ones only up to the limit."""
        peer = Peer(GCM_128)
        for ssrc in range(500):
            peer.plain(packet(1, ssrc=ssrc).serialize() + bytes(16))
        made = [peer.out.protect(packet(1, ssrc=ssrc).serialize()) for ssrc in range(srtp.MAX_SSRCS + 10)]
        self.assertEqual(len(peer.plain(*made)), srtp.MAX_SSRCS)
        self.assertEqual(peer.dropped, {"not_authentic": 500, "too_many_streams": 10})

    def test_streams_of_a_long_call(self) -> None:
        """A client may take new SSRCs again and again; of old ones nothing is taken twice, and each goes on."""
        peer = Peer(GCM_128)
        first = [peer.out.protect(packet(number, ssrc=7).serialize()) for number in (65534, 65535, 0, 1, 2)]
        self.assertEqual(len(peer.plain(*first[:4])), 4)
        others = range(1000, 1000 + 3 * srtp.MAX_STREAMS)
        made = [peer.out.protect(packet(1, ssrc=ssrc).serialize()) for ssrc in others]
        self.assertEqual(len(peer.plain(*made)), len(made))
        self.assertEqual(peer.plain(*first[:4], made[0]), [])
        self.assertEqual(len(peer.plain(first[4])), 1)
        self.assertEqual(peer.dropped, {"replayed": 5})


class TamperTests(SynchronousTestCase):
    def test_any_changed_bit(self) -> None:
        """Header, payload and tag are authenticated alike."""
        for profile in PROFILES:
            peer = Peer(profile)
            protected = peer.out.protect(packet(1).serialize())
            for place in range(len(protected)):
                forged = bytearray(protected)
                forged[place] ^= 0x20 if place == 0 else 1
                self.assertEqual(peer.plain(bytes(forged)), [], (profile, place))
            self.assertEqual(len(peer.plain(protected)), 1)

    def test_any_length(self) -> None:
        """A packet cut anywhere is refused without an exception; so is SRTCP."""
        for profile in PROFILES:
            peer = Peer(profile)
            protected = peer.out.protect(packet(1).serialize())
            control = peer.out.protect_rtcp(PictureLoss(1, 2).serialize())
            for length in range(len(protected)):
                self.assertEqual(peer.plain(protected[:length]), [], profile)
            for length in range(len(control)):
                self.assertIsNone(peer.receiver.unprotect_rtcp(control[:length]), profile)
            self.assertEqual(peer.plain(bytes(3000)), [])

    @settings(deadline=None)
    @given(st.sampled_from(PROFILES), st.binary(max_size=120))
    def test_random(self, profile: str, data: bytes) -> None:
        """Random bytes are refused without an exception."""
        peer = Peer(profile)
        self.assertEqual(peer.plain(data, b"\x80" + data), [])
        self.assertIsNone(peer.receiver.unprotect_rtcp(data))


class KeyTests(SynchronousTestCase):
    def test_derivation(self) -> None:
        """The vectors of RFC 3711, B.3."""
        key = bytes.fromhex("E1F97A0D3E018BE0D64FA32C06DE4139")
        salt = bytes.fromhex("0EC675AD498AFEEBB6960B3AABE6")
        self.assertEqual(srtp.derive(key, salt, 0, 16).hex().upper(), "C61E7A93744F39EE10734AFE3FF7A087")
        self.assertEqual(srtp.derive(key, salt, 2, 14).hex().upper(), "30CBBC08863D8C85D49DB34A9AE1")
        self.assertEqual(srtp.derive(key, salt, 1, 16).hex().upper(), "CEBE321F6FF7716B6FD4AB49AF256A15")

    def test_unencrypted_rtcp(self) -> None:
        """SRTCP that is authenticated alone (E clear) is read too (RFC 7714, 9.3)."""
        for profile in (GCM_128, GCM_256):
            peer = Peer(profile)
            keys, made, word = peer.keys, PictureLoss(3, 4).serialize(), (5).to_bytes(4, "big")
            salt = int.from_bytes(srtp.derive(keys.receive_key, keys.receive_salt, 5, 12), "big")
            aead = AESGCM(srtp.derive(keys.receive_key, keys.receive_salt, 3, len(keys.receive_key)))
            tag = aead.encrypt((3 << 48 ^ 5 ^ salt).to_bytes(12, "big"), b"", made + word)
            self.assertEqual(peer.receiver.unprotect_rtcp(made + tag + word), made)
            self.assertIsNone(peer.receiver.unprotect_rtcp(made + tag[::-1] + word[:3] + b"\6"))

    def test_too_long_for_libsrtp(self) -> None:
        """What does not fit into pylibsrtp's buffer gives nothing, and no exception."""
        stream = srtp.sender(random_keys(CM)).stream(1)
        self.assertIsNone(stream(bytes(12), bytes(1400), 1))

    def test_behind_libsrtps_window(self) -> None:
        """A number that libsrtp would call a replay gives nothing, and no exception."""
        stream = srtp.sender(random_keys(CM)).stream(1234)
        header = RtpPacket(96, 5000, 0, 1234).serialize()
        self.assertIsNotNone(stream(header, b"x", 5000))
        self.assertIsNone(stream(header, b"x", 5000))

    def test_keys_are_not_shown(self) -> None:
        """The repr of keys does not hold them."""
        keys = random_keys()
        self.assertNotIn(repr(keys.send_key), repr(keys))
        self.assertNotIn("send_key", repr(keys))

    def test_libsrtp_is_what_the_tests_think(self) -> None:
        """pylibsrtp refuses our packets under other keys: the peer in these tests does check."""
        peer, other = Peer(GCM_128), Peer(GCM_128)
        protected = seal(peer.sender.stream(1234), packet(1), 1)
        self.assertRaises(pylibsrtp.Error, other.into.unprotect, protected)
