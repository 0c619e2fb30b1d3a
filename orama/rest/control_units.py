"""What the units of namespaces ask of their node, on the control socket and nowhere else.

============================== =================================== ==================================================
``GET  …/control/worker``      ``?namespace=&worker=&run=``         the SFU's stream: what it has to know and do
``POST …/control/worker/report``  ``{namespace, report}``           ``{}``
``POST …/control/worker/occurrences``                               ``{}``; ``{namespace, occurrences}``: webhooks
``POST …/control/worker/answer`` ``{namespace, question, answer}``   ``{}``; what the node asked on the stream
``POST …/control/worker/taken``   ``{namespace, why}``              ``{}``; a port is somebody else's
``POST …/control/worker/claim``   ``{namespace, room_id}``          the room's record
``POST …/control/worker/release`` ``{namespace, room_id}``          ``{"released": bool}``
``GET  …/control/lease``       ``?namespace=``                      TURN's stream: registered while it is open
``POST …/control/lease/drain`` ``{namespace}``                      ``{}``; the stream ends when nothing is left
============================== =================================== ==================================================

Of several SFUs of a namespace each says its number as ``worker``, in all bodies but that of ``occurrences``; without it
that is 0. ``run`` is another one each time that it is started. A stream is JSON lines, ``{"event": …}``, until either
side ends it. A reader that stalls is cut off: it comes again and is told everything anew.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from attrs import asdict
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from orama.cluster.children import MAX_PROCESSES
from orama.cluster.leases import Leases
from orama.cluster.workers import Report, Workers
from orama.errors import BadRequest
from orama.rest.json_resource import JsonResource, Reply, failure_reply, json_object, query, send
from orama.rest.origins import Origins
from orama.rest.streaming import NDJSON

#: Bytes that may wait for a reader.
MAX_WAITING = 1 << 20
#: Events after which a stream ends.
_LAST = frozenset({"replaced", "drained", "stopped"})

_log = Logger()


@implementer(IPushProducer)
class Stream:
    """The lines of one answer. The transport says when its reader stalls; from then on lines are counted."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._waiting: int | None = None
        self._open = True
        request.setResponseCode(200)
        request.setHeader("Content-Type", NDJSON)
        request.registerProducer(self, True)
        #: Fires when the reader is gone, or the last line has been said.
        self.ended: Deferred[None] = Deferred()
        request.notifyFinish().addBoth(self._gone)

    def say(self, message: Mapping[str, Any]) -> bool:
        """False when the stream is over."""
        if not self._open:
            return False
        line = json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        if self._waiting is not None:
            self._waiting += len(line)
            if self._waiting > MAX_WAITING:
                _log.warn("a unit does not read what its node says, and is cut off")
                self._cut()
                return False
        self._request.write(line)
        if message["event"] in _LAST:
            self._finish()
        return True

    def pauseProducing(self) -> None:
        """The reader stalls."""
        self._waiting = self._waiting or 0

    def resumeProducing(self) -> None:
        self._waiting = None

    def stopProducing(self) -> None:
        """The connection is gone; ``notifyFinish`` says so, too."""

    def _finish(self) -> None:
        if self._open:
            self._open = False
            self._request.unregisterProducer()
            self._request.finish()

    def _cut(self) -> None:
        self._open = False
        self._request.unregisterProducer()
        channel: Any = self._request.channel
        channel.abortConnection() if hasattr(channel, "abortConnection") else channel.loseConnection()

    def _gone(self, _: object) -> None:
        self._open = False
        if not self.ended.called:
            self.ended.callback(None)


class _StreamResource(JsonResource):
    """A GET that stays open."""

    def __init__(
        self,
        attach: Callable[[Mapping[str, Any], Callable[[Mapping[str, Any]], bool]], Awaitable[Any]],
        detach: Callable[[Any], None],
    ) -> None:
        super().__init__(Origins(()))
        self._attach = attach
        self._detach = detach

    def render(self, request: Request) -> int:
        if request.method != b"GET":
            return super().render(request)
        opening = Deferred.fromCoroutine(self._open(request))
        opening.addErrback(lambda failure: _log.failure("a unit could not be served", failure=failure))
        return NOT_DONE_YET

    async def get(self, request: Request) -> Reply:  # what is allowed here; render never comes to it
        raise BadRequest("invalid_request", "this is a stream")

    async def _open(self, request: Request) -> None:
        early: list[Mapping[str, Any]] = []
        stream: Stream | None = None
        gone: list[object] = []
        request.notifyFinish().addBoth(gone.append)

        def say(message: Mapping[str, Any]) -> bool:
            if stream is not None:
                return stream.say(message)
            early.append(message)  # the status is not settled before the unit is let in
            return True

        try:
            attached = await self._attach(query(request), say)
        except Exception:
            if not gone:
                send(request, failure_reply(Failure()))
            return
        if gone:
            self._detach(attached)
            return
        stream = Stream(request)
        stream.ended.addCallback(lambda _: self._detach(attached))
        for message in early:
            stream.say(message)


class _ReportResource(JsonResource):
    """``/v1/control/worker/report``"""

    def __init__(self, workers: Workers) -> None:
        super().__init__(Origins(()))
        self._workers = workers

    async def post(self, request: Request) -> Reply:
        body = json_object(request)
        try:
            report = Report.from_json(body.get("report"))
        except ValueError as error:
            raise BadRequest("invalid_request", str(error)) from None
        self._workers.reported(_namespace(body), report, _worker(body))
        return Reply(body={})


class _OccurrencesResource(JsonResource):
    """``/v1/control/worker/occurrences``"""

    def __init__(self, workers: Workers) -> None:
        super().__init__(Origins(()))
        self._workers = workers

    async def post(self, request: Request) -> Reply:
        body = json_object(request)
        try:
            self._workers.occurred(_namespace(body), body.get("occurrences"))
        except ValueError as error:
            raise BadRequest("invalid_request", str(error)) from None
        return Reply(body={})


class _AnswerResource(JsonResource):
    """``/v1/control/worker/answer``"""

    def __init__(self, workers: Workers) -> None:
        super().__init__(Origins(()))
        self._workers = workers

    async def post(self, request: Request) -> Reply:
        body = json_object(request)
        question = body.get("question")
        if not isinstance(question, int):
            raise BadRequest("invalid_request", "question is a number")
        self._workers.answered(_namespace(body), question, body.get("answer"), _worker(body))
        return Reply(body={})


class _TakenResource(JsonResource):
    """``/v1/control/worker/taken``"""

    def __init__(self, workers: Workers) -> None:
        super().__init__(Origins(()))
        self._workers = workers

    async def post(self, request: Request) -> Reply:
        body = json_object(request)
        self._workers.cannot_listen(_namespace(body), str(body.get("why", "")), _worker(body))
        return Reply(body={})


class _ClaimResource(JsonResource):
    """``/v1/control/worker/claim``"""

    def __init__(self, workers: Workers) -> None:
        super().__init__(Origins(()))
        self._workers = workers

    async def post(self, request: Request) -> Reply:
        body = json_object(request)
        return Reply(body=asdict(await self._workers.claim(_namespace(body), _room(body), _worker(body))))


class _ReleaseResource(JsonResource):
    """``/v1/control/worker/release``"""

    def __init__(self, workers: Workers) -> None:
        super().__init__(Origins(()))
        self._workers = workers

    async def post(self, request: Request) -> Reply:
        body = json_object(request)
        released = await self._workers.release(_namespace(body), _room(body), _worker(body))
        return Reply(body={"released": released})


class _DrainResource(JsonResource):
    """``/v1/control/lease/drain``"""

    def __init__(self, leases: Leases) -> None:
        super().__init__(Origins(()))
        self._leases = leases

    async def post(self, request: Request) -> Reply:
        self._leases.drain(_namespace(json_object(request)))
        return Reply(body={})


def unit_resources(workers: Workers, leases: Leases | None) -> dict[str, IResource]:
    """What is to be put under ``/v1/control``: ``worker``, and ``lease`` where TURN has units."""
    worker = _StreamResource(
        lambda found, say: workers.attach(_namespace(found), say, _worker(found), found.get("run")), workers.detach
    )
    worker.putChild(b"report", _ReportResource(workers))
    worker.putChild(b"occurrences", _OccurrencesResource(workers))
    worker.putChild(b"answer", _AnswerResource(workers))
    worker.putChild(b"taken", _TakenResource(workers))
    worker.putChild(b"claim", _ClaimResource(workers))
    worker.putChild(b"release", _ReleaseResource(workers))
    if leases is None:
        return {"worker": worker}
    lease = _StreamResource(lambda found, say: leases.attach(_namespace(found), say), leases.detach)
    lease.putChild(b"drain", _DrainResource(leases))
    return {"worker": worker, "lease": lease}


def _namespace(found: Mapping[str, Any]) -> str:
    namespace = found.get("namespace")
    if not isinstance(namespace, str) or not namespace:
        raise BadRequest("invalid_request", "namespace is missing")
    return namespace


def _worker(found: Mapping[str, Any]) -> int:
    """Which of the SFUs of the namespace it is, from a query or a body."""
    given = found.get("worker", 0)
    number = int(given) if isinstance(given, str) and given.isdecimal() and given.isascii() else given
    if type(number) is not int or not 0 <= number < MAX_PROCESSES:
        raise BadRequest("invalid_request", f"worker is a number below {MAX_PROCESSES}")
    return number


def _room(body: Mapping[str, Any]) -> str:
    room_id = body.get("room_id")
    if not isinstance(room_id, str) or not room_id:
        raise BadRequest("invalid_request", "room_id is missing")
    return room_id
