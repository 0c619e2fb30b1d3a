"""Where keyframes begin, on the first bytes of payloads that Chromium 156, libvpx and OpenH264 made."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.wire import video
from orama.wire.video import Keyframe

NONE, PART, START = Keyframe.NONE, Keyframe.PART, Keyframe.START


class DetectionTests(SynchronousTestCase):
    def _each(self, detect: video.Detector, samples: dict[str, Keyframe]) -> None:
        for text, expected in samples.items():
            self.assertEqual(detect(bytes.fromhex(text)), expected, text)

    def test_vp8(self) -> None:
        """The first packet of a key frame, with and without picture ids; neither its others nor inter frames."""
        self._each(
            video.vp8,
            {
                "9080cba4b0ac009d012a4001": START,
                "8080cba43e1fb08ac282a8a3": NONE,
                "9077ff10": NONE,
                "9080cba5118000e4e0a8e69f": NONE,
                "9080a734f0bb009d012a4001f000": START,
                "1010": START,
                "1011": NONE,
                "90800510": START,
                "90e0cba40120b0ac": START,
                "90f0cba4012033b0ac": NONE,
                "": NONE,
                "10": NONE,
                "90": NONE,
                "9080": NONE,
                "9080cba4": NONE,
            },
        )

    def test_vp9(self) -> None:
        """Not predicted, start of a frame, lowest spatial layer; three layers of L3T3_KEY among them."""
        self._each(
            video.vp9,
            {
                "9b81f010014000f082498342": START,
                "9181f06be17fa5e5bac20e37": NONE,
                "bba6b31010014000f0834983": START,
                "b1a6b310ae475c76b12deba0": NONE,
                "f9a6b4500287000000027e01": NONE,
                "b9a6b3120102": NONE,
                "28100b": START,
                "2812": NONE,
                "28": NONE,
                "a8": NONE,
                "": NONE,
            },
        )

    def test_h264(self) -> None:
        """Parameter sets start a keyframe, an IDR slice belongs to one, whole, aggregated or fragmented."""
        self._each(
            video.h264,
            {
                "7800126742c0158c8d40a0f9": START,
                "7800176742c01fd90141fa100000": START,
                "7c85b800040000053f8f843f": PART,
                "7c05efb65d06a1b72a3f6788": NONE,
                "7c45777f0f9539a332053f02": NONE,
                "7c81e0004000be4053d83902": NONE,
                "5c81888820f0c6003c27593279f3": NONE,
                "6742c01f": START,
                "6588840a": PART,
                "419a": NONE,
                "78000268ce000365888440": PART,
                "780000": NONE,
                "78ffff": NONE,
                "67": NONE,
                "": NONE,
            },
        )

    def test_av1(self) -> None:
        """The first packet of a coded video sequence (N), neither continuations (Z) nor later frames."""
        self._each(
            video.av1,
            {
                "680b08000000043cffbc01a0": START,
                "d0961b45ddf11b8723b8824b": NONE,
                "90079f83bb91a225338bf03e": NONE,
                "503030c040fdf8013203403b": NONE,
                "680f0800210700818040410f": START,
                "": NONE,
            },
        )

    def test_dependency_descriptor(self) -> None:
        """The start of a frame that brings a template structure, as VP9 and AV1 in L3T3_KEY send it."""
        self._each(
            video.descriptor,
            {
                "800001800214eaa860414d1410208427013f00ef": START,
                "000001": NONE,
                "400001": NONE,
                "830002": NONE,
                "00000180": NONE,
                "": NONE,
            },
        )

    def test_detector_by_name(self) -> None:
        """The codecs of the contract, whatever their case; of others nothing is known."""
        self.assertIs(video.detector("video/VP8"), video.vp8)
        self.assertIs(video.detector("VIDEO/h264"), video.h264)
        self.assertIsNone(video.detector("video/H265"))
        self.assertIsNone(video.detector("audio/opus"))

    @given(st.binary(max_size=40))
    def test_total(self, payload: bytes) -> None:
        """Any bytes are some answer, for every codec."""
        for detect in (video.vp8, video.vp9, video.h264, video.av1, video.descriptor):
            self.assertIn(detect(payload), Keyframe)
            self.assertIn(detect(memoryview(payload)), Keyframe)
