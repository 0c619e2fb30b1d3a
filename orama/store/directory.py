"""The data directory: 0700, one process at a time, and a version that says who can read it.

Files with secrets are written whole, with mode 0600 from their first byte on.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from orama.errors import StartError

#: Raised when the layout of the directory changes in a way that an older program cannot read.
VERSION = "1"
_VERSION_FILE = "VERSION"
#: A directory that has one of these but no version is damaged, not new.
_OURS = ("orama.db", "node.key")


class DataDirectory:
    """Where a node keeps what it must find again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def database_url(self) -> str:
        """The SQLite database of a node that was given no other."""
        return f"sqlite:///{(self.path / 'orama.db').absolute()}"

    def prepare(self) -> None:
        """Create it, or take the one that is there.

        :raises StartError: it is of another version, in use, or cannot be written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take()
            self._check_version()
        except OSError as error:
            self.release()
            raise StartError(f"data directory {self.path}: {error.strerror}") from None
        except StartError:
            self.release()
            raise

    def release(self) -> None:
        """Let another process have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(self, name: str, content: bytes) -> Path:
        """Put a file with mode 0600 there, whole or not at all, in place of an older one."""
        target = self.path / name
        draft = self.path / f".{name}.new"
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
        return target

    def keep(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The content of the file *name*, which *make* provides the first time.

        :raises StartError: it cannot be read or written.
        """
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            content = make()
            self._attempt(name, content)
            return content
        except OSError as error:
            raise StartError(f"{self.path / name}: {error.strerror}") from None

    def node_id(self) -> str:
        """This node's name among others: random, made once."""
        return self.keep("node.id", lambda: secrets.token_hex(8).encode()).decode().strip()

    def _attempt(self, name: str, content: bytes) -> None:
        try:
            self.write(name, content)
        except OSError as error:
            raise StartError(f"{self.path / name}: {error.strerror}") from None

    def _take(self) -> None:
        if self._lock is not None:
            return
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"data directory {self.path}: another process is using it") from None

    def _check_version(self) -> None:
        file = self.path / _VERSION_FILE
        if file.exists():
            found = file.read_text(errors="replace").strip()[:32]
            if found != VERSION:
                raise StartError(
                    f"data directory {self.path} is of version {found!r}, this program reads version {VERSION}"
                )
            return
        for name in _OURS:
            if (self.path / name).exists():
                raise StartError(f"data directory {self.path} has a {name} but no {_VERSION_FILE} file")
        self.path.chmod(0o700)
        self.write(_VERSION_FILE, VERSION.encode() + b"\n")
