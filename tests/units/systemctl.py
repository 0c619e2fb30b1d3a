"""A systemctl of our own: the verbs that a node uses, over units that are remembered, or that are real processes."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define
from twisted.internet.defer import Deferred, succeed


@define
class UnitState:
    active: str = "inactive"
    sub: str = "dead"
    result: str = "success"


def _ignore(name: str) -> None:
    """Units are only remembered."""


class Systemctl:
    """
    :param begin: called with the unit's name when it is to be started.
    :param end: called with it when it is to be stopped; it says itself when it has.
    """

    def __init__(self, begin: Callable[[str], object] = _ignore, end: Callable[[str], object] = _ignore) -> None:
        self.begin = begin
        self.end = end
        self.units: dict[str, UnitState] = {}
        #: Every verb with its units.
        self.calls: list[tuple[str, ...]] = []
        #: Systemd cannot be spoken to.
        self.away = False

    def __call__(self, command: list[str]) -> Deferred[tuple[int, bytes]]:
        program, *arguments = command
        verb, *rest = [each for each in arguments if not each.startswith("--")]
        assert program == "systemctl"
        self.calls.append((verb, *rest))
        if self.away:
            return succeed((1, b"Failed to connect to bus: No such file or directory\n"))
        return succeed(getattr(self, "_" + verb.replace("-", "_"))(*rest))

    def unit(self, name: str) -> UnitState:
        return self.units.setdefault(name, UnitState())

    def _start(self, name: str) -> tuple[int, bytes]:
        unit = self.unit(name)
        if unit.active in ("inactive", "failed"):
            self.units[name] = UnitState("activating", "start")
            self.begin(name)
        return 0, b""

    def _stop(self, name: str) -> tuple[int, bytes]:
        unit = self.unit(name)
        if unit.active in ("active", "activating"):
            unit.active, unit.sub = "deactivating", "stop-sigterm"
            self.end(name)
        return 0, b""

    def _show(self, name: str) -> tuple[int, bytes]:
        unit = self.unit(name)
        return 0, f"Result={unit.result}\nActiveState={unit.active}\nSubState={unit.sub}\n".encode()

    def _reset_failed(self, name: str) -> tuple[int, bytes]:
        if self.unit(name).active == "failed":
            self.units[name] = UnitState()
        return 0, b""

    def _list_units(self, pattern: str) -> tuple[int, bytes]:
        assert pattern == "orama-namespace-*@*.service"
        shown = [
            f"{name} loaded {unit.active} {unit.sub} orama SFU of a namespace"
            for name, unit in self.units.items()
            if unit.active in ("active", "activating", "reloading", "deactivating")
        ]
        return 0, "\n".join(shown).encode()
