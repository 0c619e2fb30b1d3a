"""Where certificates for TURN hosts lie on disk: a directory as lego leaves it, and Caddy's storage.

Finding and reading only; which of them is served is decided in ``certificates``. What cannot be listed or read
comes back as a text, since a storage that belongs to Caddy's user alone is a common mistake.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from orama.errors import ConfigurationError
from orama.net.certificate import Certificate

#: Files looked at in the directory; more than that is some other directory.
MAX_FILES = 1000

#: Certificate and private key.
Files = tuple[Path, Path]
_Stamp = tuple[int, int, int]


class CertificateFiles:
    """:param directory: holds NAME.crt beside NAME.key.
    :param storage: Caddy's data directory; certificates are in ``certificates/ISSUER/NAME/NAME.crt``.
    """

    def __init__(self, directory: Path | None, storage: Path | None) -> None:
        self._directory = directory
        self._storage = storage
        self._known: dict[Files, tuple[tuple[_Stamp | None, ...], Certificate | str]] = {}

    def in_directory(self, problems: list[str]) -> list[Files]:
        """All pairs in the directory, for whatever names."""
        if self._directory is None:
            return []
        files = [each for each in _listed(self._directory, problems) if each.suffix == ".crt"]
        if len(files) > MAX_FILES:
            problems.append(f"{self._directory}: more than {MAX_FILES} certificates, the rest is not looked at")
        # Beside NAME.crt lego leaves NAME.issuer.crt, which has no key.
        return [
            (file, file.with_suffix(".key"))
            for file in files[:MAX_FILES]
            if not file.stem.endswith(".issuer") or file.with_suffix(".key").exists()
        ]

    def from_caddy(self, host: str, problems: list[str]) -> list[Files]:
        """The pairs that are named after *host*, or the wildcard above it, from every issuer."""
        if self._storage is None:
            return []
        found = []
        issuers = self._storage / "certificates"
        for issuer in _listed(issuers, problems) if _exists(issuers, problems) else ():
            for name in (host, "wildcard_." + host.partition(".")[2]):
                file = issuer / name / f"{name}.crt"
                if _exists(file, problems):
                    found.append((file, file.with_suffix(".key")))
        return found

    def read(self, files: Files) -> Certificate | str:
        """What the files hold, or why they cannot be used; read again only when they have changed."""
        stamps = tuple(_stamp(file) for file in files)
        known = self._known.get(files)
        if known is not None and known[0] == stamps:
            return known[1]
        try:
            read: Certificate | str = Certificate.read(*files)
        except ConfigurationError as error:
            read = error.message
        self._known[files] = stamps, read
        return read

    def forget_all_but(self, kept: Iterable[Files]) -> None:
        """Remember what was read of *kept* alone."""
        kept = set(kept)
        self._known = {files: known for files, known in self._known.items() if files in kept}


def named_for(file: Path, host: str) -> bool:
    """Whether *file* is called after *host*, or after the wildcard above it as lego and Caddy write it."""
    parent = host.partition(".")[2]
    return file.stem in (host, f"_.{parent}", f"wildcard_.{parent}")


def _listed(directory: Path, problems: list[str]) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError as error:
        problems.append(f"{directory}: {error.strerror}")
        return []


def _exists(file: Path, problems: list[str]) -> bool:
    try:
        os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        problems.append(f"{file}: {error.strerror}")
        return False
    return True


def _stamp(file: Path) -> _Stamp | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
