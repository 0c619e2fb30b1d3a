"""The cluster key in its file."""

from __future__ import annotations

import stat
from base64 import b64encode
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.keyring import MAX_KEYS, ClusterKey, Keyring, fingerprint, new_key
from orama.errors import BadRequest, ConfigurationError, Conflict

FIRST, SECOND, THIRD = (ClusterKey(made, bytes([made]) * 32) for made in (1, 2, 3))


class KeyFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.path = directory / "cluster.key"

    def put(self, content: bytes, mode: int = 0o600) -> None:
        self.path.write_bytes(content)
        self.path.chmod(mode)

    def refused(self) -> str:
        """What is said of the file as it is."""
        with self.assertRaises(ConfigurationError) as caught:
            Keyring.load(self.path)
        text = caught.exception.message
        self.assertIn(str(self.path), text)
        self.assertNotIn("\n", text)
        return text

    def test_first_start(self) -> None:
        """A key is made when there is no file, in one that nobody else can read; the next start finds it."""
        made = Keyring.keep(self.path)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(self.path.read_text(), b64encode(made.current).decode() + "\n")
        self.assertEqual(Keyring.keep(self.path).keys, made.keys)

    def test_by_hand(self) -> None:
        """What ``openssl rand -base64 32`` printed is a key; the first line is in use; empty lines are nothing."""
        one, other = new_key(), new_key()
        self.put(b"\n" + b64encode(one) + b"\r\n\n" + b64encode(other) + b" 1700000000\n")
        keyring = Keyring.load(self.path)
        self.assertEqual((keyring.current, keyring.keys), (one, (one, other)))

    def test_missing(self) -> None:
        """Where nothing is to be made, a missing file is an error that names it."""
        self.assertIn("No such file", self.refused())
        self.assertFalse(self.path.exists())

    def test_readable_by_others(self) -> None:
        """A key that other users can read is refused, with what to do."""
        for mode in (0o640, 0o604, 0o644):
            self.put(b64encode(new_key()), mode)
            self.assertIn("chmod 600", self.refused())

    def test_damaged(self) -> None:
        """What is no key is refused with its line, and without a word of what it was."""
        self.put(b64encode(new_key()) + b"\n" + b64encode(b"short") + b"\n")
        text = self.refused()
        self.assertIn("line 2", text)
        self.assertNotIn(b64encode(b"short").decode(), text)

    def test_number(self) -> None:
        """A file has one key at least, and no more than anybody needs."""
        for count in (0, MAX_KEYS + 1):
            self.put(b"".join(b64encode(new_key()) + b"\n" for _ in range(count)))
            self.assertIn("one a line", self.refused())

    @given(st.binary(max_size=200))
    def test_total(self, content: bytes) -> None:
        """Any bytes are a keyring or a ConfigurationError."""
        self.put(content)
        self.refused()

    def test_changes_stay(self) -> None:
        """What a keyring was told is in the file before it answers."""
        self.put(FIRST.text().encode() + b"\n")
        keyring = Keyring.load(self.path)
        for change in (
            lambda: keyring.accept(SECOND),
            lambda: keyring.accept(THIRD),
            lambda: keyring.withdraw(THIRD),
            lambda: keyring.use(SECOND),
            lambda: keyring.forget_before(SECOND),
        ):
            before = keyring.keys
            change()
            self.assertNotEqual(keyring.keys, before)
            self.assertEqual(Keyring.load(self.path).keys, keyring.keys)
        self.assertEqual(keyring.newest, SECOND)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual([entry.name for entry in self.path.parent.iterdir()], ["cluster.key"])

    def test_written_by_another(self) -> None:
        """What the node writes, the processes of its namespaces have at once; whoever is concerned is told."""
        self.put(FIRST.text().encode() + b"\n")
        writing, reading = Keyring.load(self.path), Keyring.load(self.path)
        told: list[None] = []
        reading.changed.append(lambda: told.append(None))
        for change in (
            lambda: writing.accept(SECOND),
            lambda: writing.use(SECOND),
            lambda: writing.forget_before(SECOND),
        ):
            change()
            self.assertEqual((reading.keys, reading.current), (writing.keys, writing.current))
        self.assertEqual(len(told), 3)

    def test_file_goes_bad(self) -> None:
        """While the file is missing or damaged, the keys that it had are good; when it is right again, the new ones."""
        self.put(FIRST.text().encode() + b"\n")
        keyring = Keyring.load(self.path)
        for breaking in (
            lambda: self.put(b"damaged"),
            lambda: self.put(SECOND.text().encode(), 0o644),
            self.path.unlink,
        ):
            breaking()
            self.assertEqual(keyring.keys, (FIRST.secret,))
        self.put(SECOND.text().encode() + b" \n")
        self.assertEqual(keyring.keys, (SECOND.secret,))

    def test_cannot_write(self) -> None:
        """A change that cannot be kept is not made."""
        keyring = Keyring([FIRST], self.path.parent / "missing" / "cluster.key")
        with self.assertRaises(ConfigurationError):
            keyring.accept(SECOND)
        self.assertEqual(keyring.keys, (FIRST.secret,))


class KeyringTests(SynchronousTestCase):
    def test_steps(self) -> None:
        """Accepted behind, used in front, and the older ones forgotten; doing it again changes nothing."""
        keyring = Keyring([FIRST])
        told: list[tuple[bytes, ...]] = []
        keyring.changed.append(lambda: told.append(keyring.keys))
        for _ in range(2):
            keyring.accept(SECOND)
        self.assertEqual(keyring.keys, (FIRST.secret, SECOND.secret))
        for _ in range(2):
            keyring.use(SECOND)
        self.assertEqual(keyring.keys, (SECOND.secret, FIRST.secret))
        for _ in range(2):
            keyring.forget_before(SECOND)
        self.assertEqual(keyring.keys, (SECOND.secret,))
        self.assertEqual(len(told), 3)

    def test_out_of_turn(self) -> None:
        """An older key is never used again, none is forgotten for one that is not in use, and none in use withdrawn."""
        keyring = Keyring([SECOND, FIRST])
        for code, change in (
            ("key_superseded", lambda: keyring.use(FIRST)),
            ("key_not_in_use", lambda: keyring.forget_before(THIRD)),
            ("key_in_use", lambda: keyring.withdraw(SECOND)),
        ):
            with self.assertRaises(Conflict) as caught:
                change()
            self.assertEqual(caught.exception.code, code)
        self.assertEqual(keyring.keys, (SECOND.secret, FIRST.secret))

    def test_newer_stays(self) -> None:
        """Forgetting for one rotation leaves the key of a later one alone."""
        keyring = Keyring([SECOND, FIRST, THIRD])
        keyring.forget_before(SECOND)
        self.assertEqual(keyring.keys, (SECOND.secret, THIRD.secret))

    def test_bounded(self) -> None:
        """Rotations that were begun and left do not pile up without end."""
        keyring = Keyring([ClusterKey(made, bytes([made]) * 32) for made in range(MAX_KEYS)])
        with self.assertRaises(Conflict):
            keyring.accept(ClusterKey(99, bytes(32)))

    def test_sealing_keys(self) -> None:
        """Sealing and signing share no key; each has its sealing key, in the same order."""
        keyring = Keyring([FIRST, SECOND])
        self.assertEqual(keyring.sealing_keys, Keyring([FIRST]).sealing_keys + Keyring([SECOND]).sealing_keys)
        self.assertFalse(set(keyring.sealing_keys) & set(keyring.keys))

    def test_not_shown(self) -> None:
        """A key shows as its fingerprint, in no representation as itself."""
        text = f"{FIRST!r} {Keyring([FIRST])!r}"
        self.assertNotIn(repr(FIRST.secret), text)
        self.assertEqual(FIRST.fingerprint, fingerprint(FIRST.secret))
        self.assertEqual(len(FIRST.fingerprint), 16)

    @given(st.binary(min_size=32, max_size=32), st.integers(0, 10**12 - 1))
    def test_text(self, secret: bytes, made: int) -> None:
        """A key comes out of its text again."""
        key = ClusterKey(made, secret)
        self.assertEqual(ClusterKey.parse(key.text()), key)

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """Any other text is BadRequest."""
        with self.assertRaises(BadRequest):
            ClusterKey.parse(text)
