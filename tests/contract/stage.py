"""The nodes that these tests ask: each is started when it is first needed, and lives until the interpreter ends."""

from __future__ import annotations

import atexit
import random
import shutil
import signal
import socket
import tempfile
from functools import cache
from pathlib import Path

from tests.node import NodeProcess

#: Ports below what the kernel gives to clients, and beside the ranges of media, relays and signalling.
_PORTS = range(14100, 14200)
#: So that a hundred tests from one address do not meet the limits, which have nodes of their own.
ROOMY = """
[limits]
request_rate = 100000
request_burst = 100000
origins = ["https://app.example"]
[turn]
unauthenticated_rate = 100000
unauthenticated_burst = 100000
allocations_per_namespace = 100
"""


def free_port() -> int:
    """A port on loopback that nobody has, neither for TCP nor for UDP."""
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free")


def directory() -> Path:
    """A fresh one, not in trial's: the address of a Unix socket has 108 bytes."""
    made = Path(tempfile.mkdtemp(prefix="orama-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def end(process: NodeProcess) -> None:
    """Stop a node without waiting for whoever is still in a room: a second signal says so.

    Another one than the first, as two of a kind that come together are one.
    """
    if process.process.poll() is None:
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGINT)
    process.wait()


def started(*options: str, config: str = "") -> NodeProcess:
    """A node that is up; whoever asked for it ends it."""
    # One port in the URIs is for UDP and TCP, so the kernel cannot choose one for each.
    return NodeProcess(directory(), "--turn-port", str(free_port()), *options, config=config).start()


@cache
def shared(*options: str, config: str = ROOMY) -> NodeProcess:
    """The node with these options and this configuration."""
    made = started(*options, config=config)
    atexit.register(end, made)
    return made
