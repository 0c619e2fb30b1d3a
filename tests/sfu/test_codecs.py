"""Whose payload format is whose."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.codecs import decodes, payload_types
from orama.sfu.values import Codec


def h264(payload_type: int, profile: str, mode: str = "1") -> Codec:
    fmtp = f"level-asymmetry-allowed=1;packetization-mode={mode};profile-level-id={profile}"
    return Codec(payload_type, "video/H264", 90000, fmtp=fmtp)


class MatchTests(SynchronousTestCase):
    def test_by_name_clock_and_channels(self) -> None:
        """Names compare without case; clock rate and channels count."""
        opus = Codec(111, "audio/opus", 48000, 2, "minptime=10")
        self.assertTrue(decodes(opus, Codec(109, "AUDIO/OPUS", 48000, 2)))
        self.assertFalse(decodes(opus, Codec(109, "audio/opus", 48000, 1)))
        self.assertFalse(decodes(Codec(96, "video/VP8", 90000), Codec(96, "video/VP9", 90000)))

    def test_h264(self) -> None:
        """Packetization mode and profile count, the level does not; constrained baseline suits larger profiles."""
        self.assertTrue(decodes(h264(1, "42e01f"), h264(2, "42e034")))
        self.assertTrue(decodes(h264(1, "42c01f"), h264(2, "42e01f")))
        self.assertFalse(decodes(h264(1, "42e01f"), h264(2, "42e01f", "0")))
        self.assertFalse(decodes(h264(1, "640c1f"), h264(2, "42e01f")))
        self.assertTrue(decodes(h264(1, "42e01f"), h264(2, "640c1f")))
        self.assertFalse(decodes(h264(1, "42001f"), h264(2, "42e01f")))
        self.assertFalse(decodes(h264(1, "zz"), h264(2, "42e01f")))

    def test_the_same_profile_first(self) -> None:
        """Of several that fit, the one of the same profile is taken."""
        found = payload_types([h264(1, "42e01f")], [h264(2, "640c1f"), h264(3, "42e01f")])
        self.assertEqual(found[1].payload_type, 3)

    def test_vp9_and_av1_profiles(self) -> None:
        """Their profiles count, and are 0 when nothing is said."""
        for name, key in (("video/VP9", "profile-id"), ("video/AV1", "profile")):
            self.assertTrue(decodes(Codec(1, name, 90000), Codec(2, name, 90000, fmtp=f"{key}=0")))
            self.assertFalse(decodes(Codec(1, name, 90000, fmtp=f"{key}=2"), Codec(2, name, 90000)))

    def test_carriers_never_match(self) -> None:
        """RED and FEC carry payload types inside: they are not forwarded."""
        for name in ("audio/red", "video/ulpfec", "video/rtx"):
            self.assertFalse(decodes(Codec(1, name, 90000), Codec(1, name, 90000)))

    def test_formats_without_a_match_are_missing(self) -> None:
        """What the subscriber did not accept has no number."""
        self.assertEqual(payload_types([Codec(96, "video/AV1", 90000)], [Codec(96, "video/VP8", 90000)]), {})
