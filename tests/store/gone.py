"""A program for a network namespace of its own: how long a write waits for a machine that has lost its power.

It prints the seconds twice: when the machine went before it was asked, and after it has taken the request.
"""

from __future__ import annotations

import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Timer

from orama.store.rqlite_cluster import Address, Cluster, NoAnswer, Session

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"results":[]}'


def silence(port: int) -> None:
    """Nothing that comes from or goes to *port* arrives any more."""
    for option in ("--dport", "--sport"):
        drop = ["iptables", "-A", "INPUT", "-p", "tcp", option, str(port), "-j", "DROP"]
        subprocess.run(drop, check=True)


def answering(listening: socket.socket) -> socket.socket:
    """Answer the first statement, and the question for the other nodes that comes with it."""
    accepted, _ = listening.accept()
    for _ in range(2):
        accepted.recv(4096)
        accepted.sendall(ANSWER)
    return accepted


def measured(before: bool) -> float:
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor() as threads:
        port = listening.getsockname()[1]
        accepted = threads.submit(answering, listening)
        session = Session(Cluster([Address("127.0.0.1", port)]))
        session.request("/db/execute", ["SELECT 1"], reads=False)
        accepted.result()
        if before:
            silence(port)
        else:
            Timer(0.3, silence, [port]).start()
        began = time.monotonic()
        try:
            session.request("/db/execute", ["SELECT 1"], reads=False)
        except NoAnswer:
            return time.monotonic() - began
        raise AssertionError("a machine without power has answered")


print(measured(before=True), measured(before=False))
