"""The module ``wrtc``, libwebrtc for Python. ``callers/with_wrtc.py`` is the client."""

from __future__ import annotations

import importlib.util
import time

from twisted.trial.unittest import SkipTest

from tests.interop.foreign import ForeignTestCase, python


class WrtcTests(ForeignTestCase):
    command = python("with_wrtc")

    def setUp(self) -> None:
        if importlib.util.find_spec("webrtc") is None:
            raise SkipTest("the module webrtc is missing: pip install wrtc")

    def test_meeting(self) -> None:
        """By UDP and TCP in one room, with somebody else: sound, pictures and messages pass both ways."""
        self.meet("udp", "tcp")

    def test_simulcast(self) -> None:
        """Three rids are three layers, of which the others get one."""
        self.call_by_layers()

    def test_scalable(self) -> None:
        """VP9 in three spatial and three temporal layers (L3T3_KEY) is decoded by another one."""
        room = f"svc-{time.monotonic_ns()}"
        scalable, plain = self.foreign(room, "scalable", svc="L3T3_KEY"), self.foreign(room, "plain")
        plain.until_in_call(scalable)
        scalable.until_in_call(plain)
