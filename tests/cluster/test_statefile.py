"""``cluster_state.json``: what is in it, what never is, and when it is written."""

from __future__ import annotations

import json
import stat
import tempfile
from pathlib import Path
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.desired import Blocks, WebRtcConfig
from orama.cluster.statefile import FILE, StateFile
from orama.settings import Settings
from orama.store.directory import DataDirectory

SECRET = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IQ=="
CONFIG = WebRtcConfig(
    "tenant",
    (SECRET,),
    600,
    rooms_on_join=True,
    blocks=Blocks((30000, 30000), (20000, 20499), (49152, 49951)),
)
SFU_ONLY = evolve(CONFIG, namespace="other", blocks=Blocks((30001, 30001), (20500, 20999)))


class StateFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        self.data = DataDirectory(Path(tempfile.mkdtemp(dir=Path.cwd())))
        self.data.prepare()
        self.addCleanup(self.data.release)
        self.file = self.data / FILE
        self.state = StateFile(self.data, "node-1", self.clock)

    def read(self) -> Any:
        return json.loads(self.file.read_bytes())

    def test_content(self) -> None:
        """It has what is served with all ports, and is for this user alone."""
        self.state.save((CONFIG, SFU_ONLY), Settings(base_domain="example.test"))
        found = self.read()
        self.assertEqual((found["node_id"], found["has_sfu"], found["has_turn"]), ("node-1", True, True))
        self.assertEqual(
            found["namespaces"]["tenant"],
            {
                "has_sfu": True,
                "sfu_signaling_port": 30000,
                "sfu_media_port_start": 20000,
                "sfu_media_port_end": 20499,
                "has_turn": True,
                "turn_listen_port": 3478,
                "turn_tls_port": 5349,
                "turn_relay_port_start": 49152,
                "turn_relay_port_end": 49951,
            },
        )
        self.assertIsNone(found["namespaces"]["other"]["turn_listen_port"])
        self.assertEqual(stat.S_IMODE(self.file.stat().st_mode), 0o600)

    def test_no_secret(self) -> None:
        """There is no secret in it."""
        self.state.save((CONFIG,), Settings())
        self.assertNotIn(SECRET, self.file.read_text())

    def test_only_on_change(self) -> None:
        """It is written when something is different, and not because time has passed."""
        self.state.save((CONFIG,), Settings())
        first, saved_at = self.file.stat().st_ino, self.read()["saved_at"]
        self.clock.advance(60)
        self.state.save((CONFIG,), Settings())
        self.assertEqual((self.file.stat().st_ino, self.read()["saved_at"]), (first, saved_at))
        self.state.save((), Settings())
        self.assertEqual(self.read()["saved_at"], saved_at + 60)
        self.assertFalse(self.read()["has_sfu"])

    def test_replaced_in_one_step(self) -> None:
        """Who has the old one open reads it to its end: it is never changed in place."""
        self.state.save((CONFIG,), Settings())
        with self.file.open() as old:
            self.state.save((SFU_ONLY,), Settings())
            self.assertEqual(list(json.load(old)["namespaces"]), ["tenant"])
        self.assertEqual(list(self.read()["namespaces"]), ["other"])

    def test_no_room(self) -> None:
        """A file that cannot be written ends nothing, and is written when it can be."""
        blocker = self.data / f".{FILE}.new"
        blocker.mkdir()
        self.state.save((CONFIG,), Settings())
        self.assertFalse(self.file.exists())
        blocker.rmdir()
        self.state.save((CONFIG,), Settings())
        self.assertEqual(list(self.read()["namespaces"]), ["tenant"])

    def test_load(self) -> None:
        """The next process finds the namespaces with their roles."""
        self.assertEqual(self.state.load(), {})
        self.state.save((CONFIG, SFU_ONLY), Settings())
        again = StateFile(self.data, "node-1", self.clock)
        self.assertEqual(again.load(), {"tenant": ("sfu", "turn"), "other": ("sfu",)})

    @given(st.binary(max_size=60) | st.sampled_from([b"[]", b'{"namespaces": 1}', b'{"namespaces": {"a": []}}', b"1"]))
    def test_load_anything(self, content: bytes) -> None:
        """A file that is damaged is as good as none."""
        self.file.write_bytes(content)
        self.assertEqual(self.state.load(), {})
