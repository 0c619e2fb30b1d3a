"""The nodes that these tests ask: each is started when it is first needed, and lives until the interpreter ends."""

from __future__ import annotations

import atexit
import shutil
import signal
import tempfile
from functools import cache
from pathlib import Path

from tests.node import NodeProcess
from tests.ports import free_port

#: The internal address of :func:`apart`.
INTERNAL = "127.0.0.2"
#: What every node of these tests is told, by table. A hundred tests from one address do not meet the limits, which have
#: nodes of their own.
_ROOMY = {
    "limits": 'request_rate = 100000\nrequest_burst = 100000\norigins = ["https://app.example"]\n',
    "turn": "unauthenticated_rate = 100000\nunauthenticated_burst = 100000\nallocations_per_namespace = 100\n"
    "unauthenticated_prefix_rate = 100000\nunauthenticated_prefix_burst = 100000\n",
}
#: And what all but the first one are told besides, since the ranges of ports are the whole machine's.
_NARROW = {"turn": "relay_block = 100\n", "sfu": "media_block = 20\n"}


def toml(**tables: str) -> str:
    """A configuration that is roomy but for what *tables* say; the blocks of ports are small."""
    said: dict[str, dict[str, str]] = {}
    for source in (_ROOMY, _NARROW, tables):
        for table, lines in source.items():
            said.setdefault(table, {}).update((line.partition(" = ")[0], line) for line in lines.splitlines())
    return "".join(f"[{table}]\n" + "".join(f"{line}\n" for line in lines.values()) for table, lines in said.items())


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


def started(*options: str, config: str | None = None) -> NodeProcess:
    """A node that is up, with :func:`toml` unless there is a *config*; whoever asked for it ends it."""
    config = toml() if config is None else config
    # One port in the URIs is for UDP and TCP, so the kernel cannot choose one for each.
    return NodeProcess(directory(), "--turn-port", str(free_port()), *options, config=config).start()


@cache
def shared() -> NodeProcess:
    """The node that most tests ask, with blocks of the size that the contract has."""
    made = started(config="".join(f"[{table}]\n{lines}" for table, lines in _ROOMY.items()))
    atexit.register(end, made)
    return made


@cache
def apart() -> NodeProcess:
    """A node with a base domain, whose internal address is another than the public one, and whose relays may reach
    loopback. Its second HTTP endpoint is on the internal address, and its empty rooms go at once."""
    options = ("--base-domain", "orama.example", "--internal-ip", INTERNAL)
    endpoints = ("--http", "tcp:0:interface=127.0.0.1", "--http", f"tcp:0:interface={INTERNAL}")
    config = toml(turn='allowed_peers = ["127.0.0.0/8"]', sfu="empty_room_timeout = 0.5")
    made = started(*options, *endpoints, config=config)
    atexit.register(end, made)
    return made


@cache
def strict() -> NodeProcess:
    """A node with every limit low. What is counted by address, tests try from addresses of their own."""
    made = started(
        config=toml(
            limits="request_rate = 5\nrequest_burst = 50",
            turn="unauthenticated_rate = 1\nunauthenticated_burst = 50\nallocations_per_user = 2\n"
            "allocations_per_namespace = 3\nmax_age = 30\ncredential_ttl = 3\nbandwidth_per_user = 70000\n"
            'allowed_peers = ["127.0.0.0/8"]',
            signaling="message_rate = 5\nmessage_burst = 20",
        )
    )
    atexit.register(end, made)
    return made
