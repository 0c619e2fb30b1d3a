"""The cluster key: what makes a machine one of ours, in ``DATA/cluster.key``.

One key per line, base64 of 32 bytes, then, where a rotation made it, when (Unix seconds). The first one signs and
seals, every one is taken. Keys have one order on all machines, oldest first, and a key that is in use only ever gives
way to a newer one; so rotations that were interrupted, repeated or begun twice end in the same key everywhere. What
each step of a rotation is for stands in :mod:`orama.cluster.rotation`. The node writes the file, and the processes of
its namespaces look at it too, so each use looks whether it has changed. No reactor in here: the command line reads it.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from base64 import b64decode, b64encode
from binascii import Error as BinasciiError
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

from attrs import field, frozen

from orama.errors import BadRequest, ConfigurationError, Conflict

KEY_FILE = "cluster.key"
KEY_BYTES = 32
#: Two are in use during a rotation; more only when rotations were begun and left.
MAX_KEYS = 8
#: Longer than any file that has keys in it, and not long enough to hurt.
_MAX_FILE = 4096
#: Sealing uses a key derived from the one that signs.
_SEALING = b"orama1 sealing"


@frozen(order=True)
class ClusterKey:
    """One key. The order is that of age; keys of the same second have an order too.

    :param made: Unix seconds of the rotation that made it; 0 for one that no rotation made.
    """

    made: int
    secret: bytes = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """What may be shown of it."""
        return fingerprint(self.secret)

    def text(self) -> str:
        """As it stands in the file, and travels sealed."""
        encoded = b64encode(self.secret).decode()
        return f"{encoded} {self.made}" if self.made else encoded

    @classmethod
    def parse(cls, text: str) -> ClusterKey:
        """:raises BadRequest: ``invalid_key``, without a word of what it was."""
        encoded, _, made = text.strip().partition(" ")
        try:
            secret = b64decode(encoded, validate=True)
        except (BinasciiError, ValueError):
            secret = b""
        if len(secret) != KEY_BYTES or not (made == "" or (made.isascii() and made.isdigit() and len(made) <= 12)):
            raise BadRequest("invalid_key", f"this is not base64 of {KEY_BYTES} bytes")
        return cls(int(made or 0), secret)


class Keyring:
    """The keys of this machine; whoever adds itself to ``changed`` is told after each change.

    :param keys: the one that is in use first.
    :param path: where changes are written, and found when somebody else makes them; None keeps the keys in memory.
    """

    def __init__(self, keys: Iterable[ClusterKey], path: Path | None = None) -> None:
        self._held = tuple(keys)
        self._path = path
        self._stamp = _stamp(path)
        self.changed: list[Callable[[], None]] = []
        if not self._held:
            raise ConfigurationError("a keyring has at least one key")

    @classmethod
    def load(cls, path: Path) -> Keyring:
        """The keys in the file *path*.

        :raises ConfigurationError: it is missing, damaged, or others can read it.
        """
        stamp = _stamp(path)
        ring = cls(_read(path), path)
        ring._stamp = stamp
        return ring

    @classmethod
    def keep(cls, path: Path) -> Keyring:
        """The keys in the file *path*, which is made when it is not there: the first start of the first node.

        :raises ConfigurationError: it is damaged, or cannot be read or written.
        """
        if not path.exists():
            cls((ClusterKey(0, new_key()),), path)._write()
        return cls.load(path)

    @property
    def _keys(self) -> tuple[ClusterKey, ...]:
        """The keys as the file has them now; while it cannot be read, as it had them."""
        stamp = _stamp(self._path)
        if self._path is not None and stamp is not None and stamp != self._stamp:
            self._stamp = stamp
            try:
                keys = _read(self._path)
            except ConfigurationError:  # it is being written by hand, perhaps
                return self._held
            if keys != self._held:
                self._held = keys
                self._tell()
        return self._held

    def _tell(self) -> None:
        for told in self.changed:
            told()

    @property
    def current(self) -> bytes:
        """What signs and seals."""
        return self._keys[0].secret

    @property
    def keys(self) -> tuple[bytes, ...]:
        """All that verify, the current one first."""
        return tuple(key.secret for key in self._keys)

    @property
    def sealing_keys(self) -> tuple[bytes, ...]:
        """What :class:`~orama.store.sealing.Seal` takes, derived from each key, the current one first."""
        return tuple(hmac.digest(key, _SEALING, "sha256") for key in self.keys)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        return tuple(key.fingerprint for key in self._keys)

    @property
    def newest(self) -> ClusterKey:
        """Where a rotation that is under way goes."""
        return max(self._keys)

    @property
    def in_use(self) -> ClusterKey:
        return self._keys[0]

    def accept(self, key: ClusterKey) -> None:
        """Take what is signed or sealed with *key* from now on.

        :raises Conflict: ``too_many_keys``.
        """
        if key not in self._keys:
            if len(self._keys) >= MAX_KEYS:
                raise Conflict("too_many_keys", f"there are {MAX_KEYS} cluster keys here already")
            self._become((*self._keys, key))

    def use(self, key: ClusterKey) -> None:
        """Sign and seal with *key* from now on.

        :raises Conflict: ``key_superseded``: a newer one is in use.
        """
        if key < self.in_use:
            raise Conflict("key_superseded", "a newer cluster key is in use here: another rotation came between")
        self.accept(key)
        self._become((key, *(other for other in self._keys if other != key)))

    def forget_before(self, key: ClusterKey) -> None:
        """Take no key any more that is older than *key*.

        :raises Conflict: ``key_not_in_use``: neither *key* nor a newer one is.
        """
        if key not in self._keys or self.in_use < key:
            raise Conflict("key_not_in_use", "this cluster key is not in use here, so no other can be forgotten for it")
        self._become(tuple(other for other in self._keys if other >= key))

    def forget_others(self) -> None:
        """Take the current key alone."""
        self._become(self._keys[:1])

    def withdraw(self, key: ClusterKey) -> None:
        """Undo :meth:`accept`.

        :raises Conflict: ``key_in_use``.
        """
        if key == self.in_use:
            raise Conflict("key_in_use", "this cluster key is in use here")
        self._become(tuple(other for other in self._keys if other != key))

    def _become(self, keys: tuple[ClusterKey, ...]) -> None:
        """Have *keys* from now on: on disk first, so that what was promised survives a crash."""
        if keys != self._held:
            before, self._held = self._held, keys
            try:
                self._write()
            except BaseException:
                self._held = before
                raise
            self._tell()

    def _write(self) -> None:
        if self._path is None:
            return
        draft = self._path.with_name(f".{self._path.name}.new")
        try:
            draft.unlink(missing_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.writelines(f"{key.text()}\n" for key in self._held)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
            self._stamp = _stamp(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise ConfigurationError(f"{self._path}: {error.strerror}") from None


def _read(path: Path) -> tuple[ClusterKey, ...]:
    """:raises ConfigurationError: the file is missing, damaged, or others can read it."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigurationError(f"{path}: other users can read it; chmod 600 {path}")
    keys: dict[ClusterKey, None] = {}
    for number, line in enumerate(content.decode("latin-1").splitlines(), 1):
        if line.strip():
            try:
                keys[ClusterKey.parse(line)] = None
            except BadRequest as error:
                raise ConfigurationError(f"{path}: line {number}: {error.message}") from None
    if not keys or len(keys) > MAX_KEYS or len(content) > _MAX_FILE:
        raise ConfigurationError(f"{path}: there are 1 to {MAX_KEYS} keys in such a file, one a line")
    return tuple(keys)


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_ctime_ns, found.st_ino, found.st_size)


def new_key() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


def fingerprint(key: bytes) -> str:
    """What may be shown of *key*: 64 bits of its digest."""
    return sha256(key).hexdigest()[:16]
