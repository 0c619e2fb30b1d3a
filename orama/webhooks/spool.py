"""The file in which events wait, so that those that nobody has taken are there after a restart.

One JSON object a line: an event, or the id of one that is done with. A line costs one ``write``, which outlives the
process but not the machine: there is no ``fsync``, since no room is to wait for a disk. A line that was cut short, when
the disk was full or the machine lost its power, is as if it had not been.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from attrs import asdict

from orama.webhooks.letter import Letter

#: Bytes of lines that mean nothing any more at which the file is written anew. That takes 10 ms for 8 MiB of others.
WASTE = 8 << 20


class Spool:
    """:raises OSError: the file cannot be read or made; any method may, when the disk is full."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waste = 0
        self._sizes: dict[str, int] = {}
        self.found = self._read()
        self._file = self._renew(self.found)

    def add(self, letter: Letter) -> None:
        """Keep it."""
        line = _line(letter)
        self._sizes[letter.id] = len(line)
        os.write(self._file, line)

    def done(self, letter: Letter) -> None:
        """It need not be kept any longer."""
        line = b'\n{"done":"%b"}' % letter.id.encode()
        self._waste += self._sizes.pop(letter.id, 0) + len(line)
        if not self._sizes:
            os.ftruncate(self._file, 0)
            self._waste = 0
        else:
            os.write(self._file, line)

    def tidy(self, waiting: Iterable[Letter]) -> None:
        """Write the file anew when most of it is waste; *waiting* is what is to be in it."""
        if self._waste > WASTE:
            old, self._file = self._file, self._renew(waiting)
            os.close(old)

    def close(self) -> None:
        os.close(self._file)

    def _read(self) -> list[Letter]:
        found: dict[str, Letter] = {}
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            content = b""
        for line in content.split(b"\n"):
            try:
                value = json.loads(line)
                if "done" in value:
                    found.pop(value["done"], None)
                else:
                    found[value["id"]] = Letter(**value)
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
        return list(found.values())

    def _renew(self, letters: Iterable[Letter]) -> int:
        """A file with these and nothing else, open for more."""
        draft = self._path.with_name(f".{self._path.name}.new")
        draft.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(draft, flags, 0o600)  # users' metadata are in it
        lines = {letter.id: _line(letter) for letter in letters}
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.writelines(lines.values())
                file.write(b"\n")
            draft.replace(self._path)
        except BaseException:
            os.close(descriptor)
            raise
        self._sizes, self._waste = {name: len(line) for name, line in lines.items()}, 0
        return descriptor


def _line(letter: Letter) -> bytes:
    """Begins anew, whatever became of the line before."""
    return b"\n" + json.dumps(asdict(letter), separators=(",", ":")).encode()
