"""A network of a test's own, in which datagrams are counted by leg: a Linux network namespace with iptables."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

#: The machine's address in there, beside 127.0.0.1.
ADDRESS = "10.99.0.1"
TURN_PORT = 3478
TURNS_PORT = 5349
_CLONE_NEWNET = 0x40000000
#: The first of the SFU's range, which is free in here. Browsers ask for names from ports all over the range.
_MEDIA_PORT = 20000
#: What is counted, and by which rule.
_LEGS = {
    "to the sfu": ("INPUT", "--dport", str(_MEDIA_PORT)),
    "from the sfu": ("OUTPUT", "--sport", str(_MEDIA_PORT)),
    "to turn": ("INPUT", "--dport", str(TURN_PORT)),
    "from turn": ("OUTPUT", "--sport", str(TURN_PORT)),
}
_names = count(1)


def missing() -> str:
    """Why there can be no such network here; empty when there can."""
    if os.geteuid() != 0:
        return "a network namespace needs root"
    lacking = [name for name in ("ip", "iptables") if not shutil.which(name)]
    return f"{' and '.join(lacking)} not installed" if lacking else ""


class Network:
    """The calling thread, and what it starts, is in there while :meth:`inside` lasts."""

    def __init__(self) -> None:
        self._name = f"orama-{os.getpid()}-{next(_names)}"
        self._run("ip", "netns", "add", self._name)
        try:
            with self.inside():
                self._run("ip", "link", "set", "lo", "up")
                self._run("ip", "link", "add", "wire0", "type", "veth", "peer", "name", "wire1")
                self._run("ip", "address", "add", f"{ADDRESS}/24", "dev", "wire0")
                for end in ("wire0", "wire1"):
                    self._run("ip", "link", "set", end, "up")
                self._run("ip", "route", "add", "default", "via", "10.99.0.254")
                for leg, (chain, side, ports) in _LEGS.items():
                    rule = ["-p", "udp", side, ports, "-m", "comment", "--comment", leg]
                    self._run("iptables", "-A", chain, *rule)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        libc = ctypes.CDLL(None, use_errno=True)
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self._name}", os.O_RDONLY)
        try:
            self._enter(libc, there)
            yield
        finally:
            self._enter(libc, home)
            os.close(there)
            os.close(home)

    def counts(self) -> dict[str, int]:
        """Datagrams on each leg so far."""
        with self.inside():
            table = self._run("iptables", "-nvxL")
        found = re.findall(r"^\s*(\d+)\s.*/\* (.+?) \*/", table, re.MULTILINE)
        return {leg: int(datagrams) for datagrams, leg in found}

    def close(self) -> None:
        self._run("ip", "netns", "delete", self._name)

    @staticmethod
    def _enter(libc: ctypes.CDLL, descriptor: int) -> None:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")

    @staticmethod
    def _run(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def node_options() -> tuple[str, ...]:
    """A node in there: TURN on its fixed ports, the SFU where a client that ignores the relay could reach it."""
    ports = ("--turn-port", str(TURN_PORT), "--turns-port", str(TURNS_PORT))
    return ("--public-ip", ADDRESS, "--internal-ip", ADDRESS, *ports)


def available() -> str:
    """As :func:`missing`, and tried: a container may be root and still not allowed."""
    if reason := missing():
        return reason
    try:
        Network().close()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespace here: {Path(str(error)).name}"
    return ""
