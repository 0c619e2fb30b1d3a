"""A POST whose work takes time: the answer of any other resource, or one line of JSON a step for who asks for lines.

With ``Accept: application/x-ndjson`` the answer is 200 and a line ``{"step", "state", "text"}`` as often as something
has become true; the last line is the result, or ``{"error", "code"}``. What fails before the first step is an answer
with the status of its error, as everywhere. Empty lines keep the reader from giving up, and mean nothing. A reader
that goes away changes nothing: the work is finished.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeAlias

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request

from orama.rest.json_resource import JsonResource, Reply, failure_reply, header
from orama.rest.origins import Origins

NDJSON = "application/x-ndjson"
#: Seconds between two lines at most.
KEEPALIVE = 10.0

_log = Logger()


class Progress(Protocol):
    """Where work tells how far it is.

    :param step: stable ``snake_case`` name of what this is about; it may be told several times, the last one counts.
    :param state: ``done``, ``waiting`` or ``failed``.
    :param text: one sentence for a person.
    """

    def __call__(self, step: str, state: str, text: str) -> None: ...


#: Does what the request asks for, and gives back the body of the answer.
Work: TypeAlias = Callable[[Request, Progress], Awaitable[Mapping[str, Any]]]


class SteppedResource(JsonResource):
    """Answers a POST with what *work* returns; *clock* is for the empty lines."""

    def __init__(self, origins: Origins, clock: IReactorTime, work: Work) -> None:
        super().__init__(origins)
        self._clock = clock
        self._work = work

    async def post(self, request: Request) -> Reply:
        if NDJSON not in (header(request, "accept") or "").lower():
            return Reply(body=dict(await self._work(request, _unheard)))
        lines = _Lines(request, self._clock)
        try:
            answer = dict(await self._work(request, lines.step))
        except Exception:
            if not lines.begun:
                raise
            answer = failure_reply(Failure()).body
        finally:
            lines.stop()
        return Reply(body=_line(answer), content_type=NDJSON)


class _Lines:
    """The lines of one answer that come before the last one."""

    def __init__(self, request: Request, clock: IReactorTime) -> None:
        #: Whether the status has left already.
        self.begun = False
        self._request = request
        self._open = True
        request.notifyFinish().addBoth(self._finished)
        self._keepalive = LoopingCall(self._write, b"\n")
        self._keepalive.clock = clock
        self._keepalive.start(KEEPALIVE, now=False).addErrback(
            lambda failure: _log.failure("no more empty lines are sent", failure=failure)
        )

    def step(self, step: str, state: str, text: str) -> None:
        self._write(_line({"step": step, "state": state, "text": text}))

    def stop(self) -> None:
        """No empty lines any more: the last one is about to be sent."""
        if self._keepalive.running:
            self._keepalive.stop()

    def _write(self, line: bytes) -> None:
        if not self._open:
            return
        if not self.begun:
            self.begun = True
            self._request.setResponseCode(200)
            self._request.setHeader("Content-Type", NDJSON)
        self._request.write(line)

    def _finished(self, _: object) -> None:
        self._open = False
        self.stop()


def _unheard(step: str, state: str, text: str) -> None:
    """For who wants the end alone."""


def _line(item: Mapping[str, Any]) -> bytes:
    return json.dumps(item, separators=(",", ":"), allow_nan=False).encode() + b"\n"
