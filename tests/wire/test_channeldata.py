"""ChannelData and the framing of streams."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.wire import channeldata, stun
from orama.wire.channeldata import FrameError, frame_length, pack, unpack

channels = st.integers(channeldata.FIRST_CHANNEL, channeldata.LAST_CHANNEL)


class ChannelDataTests(SynchronousTestCase):
    @given(channels, st.binary(max_size=100), st.booleans())
    def test_round_trip(self, channel: int, payload: bytes, padded: bool) -> None:
        """Number and payload come back, with padding or without; padding is zero."""
        packet = pack(channel, payload, padded=padded)
        self.assertEqual(unpack(packet), (channel, payload))
        self.assertEqual(packet[4 + len(payload) :], bytes(-len(payload) % 4) if padded else b"")

    def test_refused(self) -> None:
        """Too short, shorter than it says, or no channel number: an error."""
        for packet in (b"", b"\x40\0\0", b"\x40\0\0\2x", b"\x3f\xff\0\0", b"\x80\0\0\0", b"\0\1\0\0"):
            with self.assertRaises(FrameError, msg=packet.hex()):
                unpack(packet)

    def test_payload_is_not_copied(self) -> None:
        """A memoryview gives a memoryview into the same buffer."""
        buffer = bytearray(pack(0x4000, b"abcd"))
        _, payload = unpack(memoryview(buffer))
        buffer[4] = ord("x")
        self.assertEqual(bytes(payload), b"xbcd")

    @given(st.binary(max_size=12))
    def test_any_bytes(self, data: bytes) -> None:
        """Any bytes give a value or a FrameError, from both functions."""
        for function in (unpack, frame_length):
            try:
                function(data)
            except FrameError:
                continue


class FrameTests(SynchronousTestCase):
    def test_lengths(self) -> None:
        """ChannelData counts its padding on a stream, STUN its header (RFC 8656, 12.5)."""
        self.assertEqual(frame_length(pack(0x4000, b"abcde", padded=True)), 12)
        self.assertEqual(frame_length(pack(0x4FFF, b"")), 4)
        binding = stun.build(stun.Method.BINDING, stun.Class.REQUEST, bytes(12))
        self.assertEqual(frame_length(binding), 20)
        self.assertEqual(frame_length(b"xx" + binding, 2), 20)

    def test_too_little(self) -> None:
        """Nothing is decided before the bytes that decide are there."""
        binding = stun.build(stun.Method.BINDING, stun.Class.REQUEST, bytes(12))
        for cut in range(channeldata.START_LENGTH):
            self.assertEqual(frame_length(binding[:cut]), 0)
        self.assertEqual(frame_length(b"\x40\0\0"), 0)

    def test_junk(self) -> None:
        """TLS, RTP and a wrong cookie are told at once."""
        for junk in (b"\x16\x03\x01\x02\0\x01", b"\x80\0\0\0", b"\0\1\0\0" + bytes(16), b"\0\1\0\3"):
            with self.assertRaises(FrameError, msg=junk.hex()):
                frame_length(junk)
