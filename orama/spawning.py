"""What all processes that a node starts have in common: what they are given of its environment, and how they end."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet.error import ProcessDone
from twisted.python.failure import Failure

import orama

#: What systemd tells the node is not for its children.
_UNTOLD = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def environment() -> dict[str, str]:
    """Ours, with the place where this very package is."""
    ours = {name: value for name, value in os.environ.items() if name not in _UNTOLD}
    paths = [str(Path(orama.__file__).resolve().parents[1]), *filter(None, [ours.get("PYTHONPATH")])]
    return {**ours, "PYTHONPATH": os.pathsep.join(paths)}


def ending(reason: Failure) -> str:
    """How a process has ended, as the end of a sentence."""
    if reason.check(ProcessDone) is not None:
        return "has ended"
    number = getattr(reason.value, "signal", None)
    if number is not None:
        return f"was ended by signal {number}"
    return f"has ended with status {getattr(reason.value, 'exitCode', None)}"
