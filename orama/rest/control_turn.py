"""The allocations of this node's TURN server on the control socket: seen one by one, and ended.

``GET …/control/turn/sessions`` is JSON lines: one for each session, then ``{"sessions": how many, "time": Unix time}``.
With ``?watch=true`` they come again every :data:`PACE` seconds until the reader goes away. ``?namespace=`` takes those
of one namespace. ``POST …/control/turn/disconnect`` ends those for which all holds that the body says.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeAlias

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.task import deferLater
from twisted.web.resource import IResource
from twisted.web.server import Request
from zope.interface import implementer

from orama.errors import BadRequest, NotFound
from orama.rest.json_resource import JsonResource, Reply, json_object, query
from orama.rest.origins import Origins
from orama.rest.streaming import NDJSON
from orama.turn.sessions import Selection, Session

#: Namespace → nothing; raises NotFound when there is none.
Require: TypeAlias = Callable[[str], Awaitable[object]]
#: Seconds between two looks of a watch.
PACE = 2.0
#: Sessions that are written at once, about a millisecond.
AT_ONCE = 128


class TurnSessions(Protocol):
    """The TURN server of this node: ``turn.listeners.TurnService``."""

    async def sessions(self, selection: Selection) -> list[Session]: ...
    async def disconnect(self, selection: Selection) -> int: ...


def turn_resources(turn: TurnSessions, require: Require, clock: IReactorTime) -> dict[bytes, IResource]:
    """What is to be put under ``/v1/control/turn``."""
    return {
        b"sessions": _SessionsResource(turn, require, clock),
        b"disconnect": _DisconnectResource(turn, require),
    }


class _SessionsResource(JsonResource):
    def __init__(self, turn: TurnSessions, require: Require, clock: IReactorTime) -> None:
        super().__init__(Origins(()))
        self._turn = turn
        self._require = require
        self._clock = clock

    async def get(self, request: Request) -> Reply:
        asked = query(request)
        namespace, watch = asked.get("namespace"), asked.get("watch", "false")
        if watch not in ("true", "false"):
            raise BadRequest("invalid_request", "watch is true or false")
        if namespace is not None:
            await self._require(namespace)
        lines = _Lines(request)
        while True:
            sessions = await self._turn.sessions(Selection(namespace=namespace))
            for first in range(0, len(sessions), AT_ONCE):
                some = sessions[first : first + AT_ONCE]
                await lines.write(b"".join(_line(session.to_json()) for session in some))
                await deferLater(self._clock, 0)
            last = _line({"sessions": len(sessions), "time": self._clock.seconds()})
            if watch == "false":
                lines.stop()
                return Reply(body=last, content_type=NDJSON)
            await lines.write(last)
            await deferLater(self._clock, PACE)


class _DisconnectResource(JsonResource):
    def __init__(self, turn: TurnSessions, require: Require) -> None:
        super().__init__(Origins(()))
        self._turn = turn
        self._require = require

    async def post(self, request: Request) -> Reply:
        selection = _selection(json_object(request))
        if selection.namespace is not None:
            await self._require(selection.namespace)
        ended = await self._turn.disconnect(selection)
        if not ended:
            raise NotFound("session_not_found", "there is no such session")
        return Reply(body={"disconnected": ended})


@implementer(IPushProducer)
class _Lines:
    """What is written only as fast as it is read."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._begun = False
        self._resumed: Deferred[None] | None = None

    async def write(self, content: bytes) -> None:
        """Write *content*, once there is room for it."""
        if not self._begun:
            self._begun = True
            self._request.setResponseCode(200)
            self._request.setHeader("Content-Type", NDJSON)
            self._request.registerProducer(self, True)
        if self._resumed is not None:
            await self._resumed
        self._request.write(content)

    def stop(self) -> None:
        """What follows is the end."""
        if self._begun:
            self._request.unregisterProducer()

    def pauseProducing(self) -> None:
        if self._resumed is None:
            self._resumed = Deferred()

    def resumeProducing(self) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None and not resumed.called:
            resumed.callback(None)

    def stopProducing(self) -> None:
        """The reader is gone; the request is cancelled besides."""


def _selection(body: Mapping[str, Any]) -> Selection:
    """Whom the body of a disconnect means: an id alone, or a namespace and what narrows it down.

    :raises BadRequest: it does not say.
    """
    given = {name: value for name, value in body.items() if value is not None}
    kinds: dict[str, type] = {"id": str, "namespace": str, "user": str, "port": int}
    for name, value in given.items():
        if name not in kinds:
            raise BadRequest("invalid_request", f"there is no field {name[:40]!r} here")
        if not isinstance(value, kinds[name]) or isinstance(value, bool):
            raise BadRequest("invalid_request", f"{name} is {'a number' if kinds[name] is int else 'a text'}")
    if ("id" in given) == ("namespace" in given) or ("id" in given and len(given) > 1):
        raise BadRequest("invalid_request", "an id is needed, or a namespace with user and port as you like")
    return Selection(**given)


def _line(item: Mapping[str, Any]) -> bytes:
    return json.dumps(item, separators=(",", ":"), allow_nan=False).encode() + b"\n"
