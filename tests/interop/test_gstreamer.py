"""GStreamer's webrtcbin. ``callers/with_gstreamer.py`` is the client, for Debian's own Python."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache

from twisted.trial.unittest import SkipTest

from tests.interop.foreign import ForeignTestCase, path_of

PYTHON = "/usr/bin/python3"
_TRIED = """
import gi
gi.require_version("GstWebRTC", "1.0")
from gi.repository import Gst, GstWebRTC
Gst.init(None)
for name in ("webrtcbin", "nicesrc", "vp8enc", "opusenc", "rtpvp8pay", "dtlsdec", "srtpdec"):
    assert Gst.ElementFactory.find(name), f"{name} is not there"
"""


@cache
def missing() -> str:
    """Why there is none here; empty when there is."""
    if not shutil.which(PYTHON):
        return f"{PYTHON} is not there"
    tried = subprocess.run([PYTHON, "-I", "-c", _TRIED], capture_output=True, text=True)
    return tried.stderr.strip().rpartition("\n")[2] if tried.returncode else ""


class GstreamerTests(ForeignTestCase):
    # -I: nothing of our own virtual environment is in its way.
    command = (PYTHON, "-I", path_of("callers", "with_gstreamer.py"))

    def setUp(self) -> None:
        if reason := missing():
            raise SkipTest(f"no GStreamer with webrtcbin here: {reason}")

    def test_meeting(self) -> None:
        """By UDP and TCP in one room, with somebody else: sound, pictures and messages pass both ways."""
        self.meet("udp", "tcp")
