"""The data directory."""

from __future__ import annotations

import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from orama.errors import StartError
from orama.store.directory import VERSION, DataDirectory


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class DataDirectoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "below" / "data"

    def prepared(self) -> DataDirectory:
        data = DataDirectory(self.path)
        data.prepare()
        self.addCleanup(data.release)
        return data

    def test_created(self) -> None:
        """It is created with its parents, for its owner alone, and says its version."""
        self.prepared()
        self.assertEqual(mode(self.path), 0o700)
        self.assertEqual((self.path / "VERSION").read_text(), VERSION + "\n")

    def test_narrowed(self) -> None:
        """An empty directory that others could read becomes its owner's alone."""
        self.path.mkdir(parents=True, mode=0o755)
        self.prepared()
        self.assertEqual(mode(self.path), 0o700)

    def test_again(self) -> None:
        """What is there is found again."""
        first = self.prepared()
        node = first.node_id()
        first.release()
        self.assertEqual(self.prepared().node_id(), node)

    def test_other_version(self) -> None:
        """A directory of another version is refused, naming both."""
        self.prepared().release()
        (self.path / "VERSION").write_text("7\n")
        with self.assertRaises(StartError) as caught:
            DataDirectory(self.path).prepare()
        self.assertIn("'7'", caught.exception.message)
        self.assertIn(f"version {VERSION}", caught.exception.message)

    def test_lost_version(self) -> None:
        """A directory with a database but no version is not taken for a new one."""
        self.path.mkdir(parents=True)
        (self.path / "orama.db").touch()
        with self.assertRaises(StartError):
            DataDirectory(self.path).prepare()
        self.assertFalse((self.path / "VERSION").exists())

    def test_in_use(self) -> None:
        """Two nodes cannot have one directory; after the first has gone, the second can."""
        first = self.prepared()
        second = DataDirectory(self.path)
        with self.assertRaises(StartError) as caught:
            second.prepare()
        self.assertIn("another process", caught.exception.message)
        first.release()
        second.prepare()
        second.release()

    def test_no_directory(self) -> None:
        """A file in its place is a StartError on one line."""
        self.path.parent.mkdir(parents=True)
        self.path.touch()
        with self.assertRaises(StartError) as caught:
            DataDirectory(self.path).prepare()
        self.assertNotIn("\n", caught.exception.message)

    def test_secrets_are_private(self) -> None:
        """A file that is written has mode 0600 and replaces the older one whole."""
        data = self.prepared()
        data.write("x.key", b"one")
        self.assertEqual(mode(data.write("x.key", b"two")), 0o600)
        self.assertEqual((self.path / "x.key").read_bytes(), b"two")
        self.assertEqual(sorted(p.name for p in self.path.iterdir()), [".lock", "VERSION", "x.key"])

    def test_keep(self) -> None:
        """Something is made once and found from then on."""
        data = self.prepared()
        self.assertEqual(data.keep("k", lambda: b"one"), b"one")
        self.assertEqual(data.keep("k", lambda: b"two"), b"one")
        self.assertEqual(mode(self.path / "k"), 0o600)
