"""The unit files of ``etc/systemd``, as systemd reads them."""

from __future__ import annotations

import re
from configparser import RawConfigParser
from pathlib import Path

import tests

UNITS = Path(tests.__file__).resolve().parent.parent / "etc" / "systemd"
NAMES = ("orama-webrtc.service", "orama-namespace-sfu@.service", "orama-namespace-turn@.service")
#: What stands in the files, and what is there in its place where the tests run.
INSTALLED = "/opt/orama/.venv/bin/"


class UnitFile(RawConfigParser):
    """One file; repeated keys are not joined, the last one counts.

    :param name: of a unit or of a template; ``%i`` becomes the instance.
    :raises FileNotFoundError: there is none for it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
        self.optionxform = str  # type: ignore[method-assign,assignment]
        self._instance = name.partition("@")[2].removesuffix(".service")
        self.read_string((UNITS / re.sub(r"@.*", "@.service", name)).read_text())

    def service(self, key: str) -> str:
        value = self["Service"][key]
        return value.replace("%i", self._instance) if self._instance else value

    @property
    def after(self) -> list[str]:
        return self["Unit"]["After"].split()
