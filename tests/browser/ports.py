"""Ports for servers that have to be told one."""

from __future__ import annotations

import random
import socket

#: Below what the kernel gives to clients, and beside the ranges of media and relays.
_RANGE = range(15000, 20000)


def free_port() -> int:
    """A port on loopback that nobody has at the moment, neither for TCP nor for UDP."""
    for port in random.sample(_RANGE, len(_RANGE)):
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free")
