"""The TURN lease of one namespace: ``python -m orama.lease --namespace N --data-dir DIR``.

It is what the unit ``orama-namespace-turn@N`` runs. All namespaces of a host share the node's TURN listener; while this
process holds its stream on the control socket open, its namespace is registered there. What the listener says about it
comes down the stream and out on stdout, which is the unit's journal. SIGTERM drains: the process ends when the last
allocation has, or when their time is over. When the node goes away, it is looked for until it is back. No reactor in
here: there is one of these for every namespace, and all it does is wait.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TextIO
from urllib.parse import urlencode

from orama.cli.control import SOCKET, UnixConnection
from orama.notify import Notifier

#: Seconds for the node to take a question; the stream itself has no limit.
TIMEOUT = 15.0
#: Seconds between two looks for the node: the first pause, and the longest that it grows to.
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 3.0

#: What comes in: a message of the node, the reason why its stream has ended, or that somebody wants us to stop.
Event = Mapping[str, Any]


class Away(Exception):
    """The node is not there, or does not let us in; the text says why."""


class NodeSocket:
    """The control socket of the node whose data directory is *data_dir*."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / SOCKET

    def follow(self, namespace: str, put: Callable[[Event], None]) -> None:
        """Begin a stream; its messages are *put* from another thread, the last one being ``lost``.

        :raises Away: there is no stream.
        """
        target = f"/v1/control/lease?{urlencode({'namespace': namespace})}"
        connection, response = self._ask("GET", target, None)
        if connection.sock is not None:
            connection.sock.settimeout(None)
        Thread(target=_read, args=(connection, response, put), daemon=True).start()

    def drain(self, namespace: str) -> None:
        """:raises Away: nobody heard it."""
        connection, response = self._ask("POST", "/v1/control/lease/drain", json.dumps({"namespace": namespace}))
        response.read()
        connection.close()

    def _ask(self, method: str, target: str, body: str | None) -> tuple[UnixConnection, HTTPResponse]:
        connection = UnixConnection(self._path, TIMEOUT)
        try:
            connection.request(method, target, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status >= 300:
                raise Away(_error(response))
        except (OSError, HTTPException) as error:
            connection.close()
            raise Away(f"{self._path}: {getattr(error, 'strerror', None) or error}") from None
        except Away:
            connection.close()
            raise
        return connection, response


class Lease:
    """Holds the lease of *namespace* from :meth:`run` until it is told to stop.

    :param out: the journal.
    :param monotonic: seconds.
    """

    def __init__(
        self, namespace: str, node: NodeSocket, notifier: Notifier, out: TextIO, monotonic: Callable[[], float]
    ) -> None:
        self._namespace = namespace
        self._node = node
        self._notifier = notifier
        self._out = out
        self._monotonic = monotonic
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._stopping = False
        self._held = False
        self._ready = False

    def stop(self) -> None:
        """To be called from anywhere, a signal handler included."""
        self._events.put({"event": "stop"})

    def run(self) -> None:
        """Returns when there is nothing to hold any more."""
        pause, why = FIRST_PAUSE, ""
        self._notifier.status("waiting for the node")
        while not self._stopping:
            try:
                self._node.follow(self._namespace, self._events.put)
            except Away as away:
                if str(away) != why:
                    self._say(f"waiting for the node: {away}")
                why = str(away)
                self._wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause, why = FIRST_PAUSE, ""
            if self._hold():
                return
            self._wait(pause)

    def _hold(self) -> bool:
        """Read the stream to its end; whether that was the end of all."""
        while True:
            event = self._next(None)
            kind, text = event.get("event"), str(event.get("text", ""))
            if kind == "stop":
                self._drain()
                if not self._held:
                    return True
            elif kind == "lost":
                self._held = False
                self._say("the node went away")
                return self._stopping
            elif kind in ("drained", "stopped", "replaced"):
                self._held = False
                self._say(text or f"this lease was {kind}")
                self._await_end()
                return self._stopping
            else:
                self._held = self._held or kind == "registered"
                self._say(text)
                if kind == "registered":
                    self._notify(text)

    def _drain(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._notifier.stopping("draining")
        try:
            self._node.drain(self._namespace)
        except Away as away:
            self._say(f"nothing to drain: {away}")
            self._held = False

    def _wait(self, seconds: float) -> None:
        """Let time go by, unless somebody wants us to stop."""
        until = self._monotonic() + seconds
        while not self._stopping and (left := until - self._monotonic()) > 0:
            event = self._next(left)
            self._stopping = self._stopping or event.get("event") == "stop"

    def _await_end(self) -> None:
        """The node ends the stream after its last message."""
        while self._next(TIMEOUT).get("event") not in ("lost", "late"):
            pass

    def _next(self, limit: float | None) -> Event:
        """The next event; systemd is told meanwhile that we live. ``late`` after *limit* seconds."""
        until = None if limit is None else self._monotonic() + limit
        while True:
            wait = self._notifier.interval
            if until is not None:
                wait = min(wait, until - self._monotonic())
            try:
                return self._events.get(timeout=max(0.0, wait))
            except Empty:
                self._pulse()
                if until is not None and self._monotonic() >= until:
                    return {"event": "late"}

    def _pulse(self) -> None:
        if self._stopping or not self._ready:
            self._notifier.extend()
        if self._notifier.watchdog:
            self._notifier.alive()

    def _notify(self, status: str) -> None:
        self._ready = True
        self._notifier.ready(status)

    def _say(self, text: str) -> None:
        if text:
            self._out.write(f"{' '.join(text.split())}\n")
            self._out.flush()
            if not self._stopping:
                self._notifier.status(text)


def _read(connection: HTTPConnection, response: HTTPResponse, put: Callable[[Event], None]) -> None:
    """The lines of a stream, in a thread of their own."""
    try:
        while line := response.readline():
            if line.strip():
                put(json.loads(line))
    except (OSError, HTTPException, ValueError):
        pass
    finally:
        connection.close()
        put({"event": "lost"})


def _error(response: HTTPResponse) -> str:
    try:
        return str(json.loads(response.read())["error"])
    except (ValueError, KeyError, TypeError):
        return f"the node answers {response.status}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m orama.lease", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--data-dir", required=True, type=Path, help="of the node of this host")
    options = parser.parse_args(arguments)
    notifier = Notifier.from_environment(os.environ, os.getpid())
    lease = Lease(options.namespace, NodeSocket(options.data_dir), notifier, sys.stdout, time.monotonic)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: lease.stop())
    lease.run()


if __name__ == "__main__":
    main()
