"""Ports for servers that have to be told one.

What a test asks for is its process's own until that ends: tests of several packages run side by side, and between the
moment that a port is seen to be free and the one that a server has it, another process may ask for the same.
"""

from __future__ import annotations

import random
import socket

#: Below what the kernel gives to clients, and beside the ranges of media, relays and those that tests name themselves.
RANGE = range(15200, 20000)

#: What this process has taken: an address that only one process of the machine can have, and that goes with it.
_taken: list[socket.socket] = []


def free_port() -> int:
    """A port that nobody has, neither for TCP nor for UDP, on any IPv4 address; no one else is given it meanwhile."""
    for port in random.sample(RANGE, len(RANGE)):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0orama-tests-port-{port}")
            with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
                tcp.bind(("0.0.0.0", port))
                udp.bind(("0.0.0.0", port))
        except OSError:
            claim.close()
            continue
        _taken.append(claim)
        return port
    raise OSError("no port is free")


def free_ports(count: int) -> list[int]:
    return [free_port() for _ in range(count)]
