"""A client in a program of its own, and the signalling socket that it speaks by; see :mod:`tests.interop.callers`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.browser.stage import directory, node
from tests.contract.signalling import Client, connect
from tests.node import NodeProcess, environment

#: Seconds for what has to come.
PATIENCE = 60.0
TRANSPORTS = ("udp", "tcp", "tls")
_PAUSE = 0.03


class Foreign:
    """
    :param transport: to the relay: one of :data:`TRANSPORTS`. :param more: of the order.

    :ivar seen: what it has told last. :ivar told: all messages of the SFU. :ivar state: ``gone`` when it has ended.
    """

    def __init__(
        self,
        at: NodeProcess,
        room: str,
        name: str,
        command: Sequence[str],
        transport: str = "udp",
        more_environment: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        self.name = name
        self.seen: dict[str, Any] = {}
        self._client: Client = connect(at, room)
        self._client.say("join", userId=name)
        self.told = self._client.received
        self.welcome = self._client.until("welcome")
        given = self._client.until("turn-credentials")
        self._log = directory() / f"{name}-{time.monotonic_ns()}.log"
        self._process = subprocess.Popen(
            command,
            env={**environment(), **(more_environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
        )
        uri = given["uris"][TRANSPORTS.index(transport)]
        order = {"uri": uri, "username": given["username"], "password": given["password"], "name": name}
        self._tell({**order, "simulcast": False, **more})
        self._closing = False
        self._threads = [Thread(target=work, daemon=True) for work in (self._listen, self._speak)]
        for thread in self._threads:
            thread.start()

    def until(self, what: str, reached: Callable[[Foreign], object], seconds: float = PATIENCE) -> None:
        """Return once it has seen that."""
        deadline = time.monotonic() + seconds
        while not (self.seen and reached(self)):
            types = [message["type"] for message in self.told]
            errors = [message for message in self.told if message["type"] == "error"]
            said = self._log.read_text()[-3000:]
            report = f"{self.name}: {what}: {self.seen} {types} {errors} {said}"
            assert self._process.poll() is None, f"ended before {report}"
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {report}"
            time.sleep(_PAUSE)

    def until_in_call(self, other: Foreign, frames: int = 20) -> None:
        """Return once it is connected, receives both kinds of *other*, and has heard it on the data channel.

        :param frames: of video to be decoded; 0 where it decodes none, or *other* sends none to decode.
        """
        self.until("connected", lambda each: each.seen["state"] == "connected")
        self.until("sound", lambda each: each.seen["audio"] >= 50)
        self.until("pictures", lambda each: each.seen["video"] >= 30 and each.seen["frames"] >= frames)
        self.until_heard(other)

    def until_heard(self, other: Foreign) -> None:
        """Return once *other* was heard on the data channel."""
        self.until(f"data of {other.name}", lambda each: f"hello from {other.name}" in each.seen["heard"])

    def layers(self) -> list[str]:
        """Of the last video that somebody else has published."""
        added = [each for each in self.told if each["type"] == "track-added" and each["kind"] == "video"]
        return list(added[-1]["layers"]) if added else []

    def say(self, kind: str, **fields: Any) -> None:
        self._client.say(kind, **fields)

    def close(self) -> None:
        self._closing = True
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(PATIENCE)
        self._process.stdout.close()
        self._client.close()

    def _tell(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _listen(self) -> None:
        """What the SFU says goes to the program."""
        taken = 0
        while not self._closing and self._client.code is None:
            self._client._receive(time.monotonic() + 0.2)
            while taken < len(self.told):
                try:
                    self._tell(self.told[taken])
                except (OSError, ValueError):
                    return
                taken += 1

    def _speak(self) -> None:
        """What the program says goes to the SFU."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "seen" in message:
                self.seen = message["seen"]
            elif not self._closing:
                self._client.text(line)


def python(module: str) -> list[str]:
    """The command of a client of ours."""
    return [sys.executable, "-m", f"tests.interop.callers.{module}"]


class ForeignTestCase(SynchronousTestCase):
    """Calls between a client from other hands and aiortc, at a node that the tests share.

    :cvar command: of the client. :cvar decodes: whether it decodes video, and :cvar encodes: sends some to decode.
    """

    command: Sequence[str] = ()
    more_environment: Mapping[str, str] = {}
    decodes = True
    encodes = True

    def foreign(self, room: str, name: str, transport: str = "udp", **more: Any) -> Foreign:
        made = Foreign(node(), room, name, self.command, transport, self.more_environment, **more)
        self.addCleanup(made.close)
        return made

    def aiortc(self, room: str, name: str = "aiortc") -> Foreign:
        made = Foreign(node(), room, name, python("with_aiortc"))
        self.addCleanup(made.close)
        return made

    def meet(self, *transports: str) -> None:
        """One of them by each transport and one with aiortc, in one room: they see, hear and read each other."""
        room = f"{type(self).__name__}-{time.monotonic_ns()}"
        theirs = []
        for transport in transports:
            theirs.append(self.foreign(room, transport, transport))
            # werift does not bear another description while it connects.
            theirs[-1].until("connected", lambda each: each.seen["state"] == "connected")
        ours = self.aiortc(room)
        for each in theirs:
            each.until_in_call(ours, 20 if self.decodes else 0)
            for other in (*theirs, ours):
                if other is not each:
                    other.until_heard(each)
        ours.until_in_call(theirs[0], 20 if self.encodes else 0)
        everybody = {"audio": len(theirs), "video": len(theirs)}
        ours.until("everybody", lambda one: one.seen["flows"] == everybody)

    def call_by_layers(self) -> None:
        """One of them publishes three rids, and somebody with aiortc sees it."""
        room = f"{type(self).__name__}-{time.monotonic_ns()}"
        theirs, ours = self.foreign(room, "layered", simulcast=True), self.aiortc(room)
        ours.until_in_call(theirs, 20 if self.encodes else 0)
        self.assertEqual(ours.layers(), ["low", "mid", "high"])


def path_of(*parts: str) -> str:
    return str(Path(__file__).parent.joinpath(*parts))
