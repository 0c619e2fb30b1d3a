"""The one place where an ``async def`` becomes an HTTP answer and an error becomes JSON.

A resource subclasses :class:`JsonResource` and has a coroutine method per HTTP method that it knows
(``get``, ``post``, ``put``, ``delete``), which returns a :class:`Reply` or raises an
:class:`~orama.errors.OramaError`. ``HEAD``, ``OPTIONS``, CORS preflight, 405 with ``Allow``, and the
mapping of errors follow from that. Body size, rates and the safe headers belong to
:mod:`orama.rest.site`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request

from orama.errors import BadRequest, NotAuthenticated, NotFound, OramaError, RateLimited
from orama.rest.origins import Origins

JSON = "application/json"
#: What a 401 asks for (RFC 9110, 11.6.1): the two schemes of the contract, section 2.
CHALLENGE = 'ApiKey realm="orama", Bearer realm="orama"'
#: Seconds that a browser may remember a preflight.
PREFLIGHT_AGE = 600

_METHODS = ("GET", "POST", "PUT", "DELETE")
_log = Logger()


@frozen
class Reply:
    """One answer.

    :param body: what goes out as JSON; bytes go out as they are (say what they are in
        *content_type*); None is an answer without a body.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(factory=dict)
    content_type: str = JSON


def error_reply(error: OramaError) -> Reply:
    """*error* as the contract has it: ``{"error", "code"}``, and the headers that go with its status."""
    headers: dict[str, str] = {}
    if isinstance(error, NotAuthenticated):
        headers["WWW-Authenticate"] = CHALLENGE
    elif isinstance(error, RateLimited):
        headers["Retry-After"] = str(error.retry_after)
    return Reply(error.status, {"error": error.message, "code": error.code}, headers)


def failure_reply(failure: Failure) -> Reply:
    """The answer to any *failure*: one with a name is told, any other is logged and told as a bare 500."""
    error = failure.value
    if isinstance(error, OramaError) and error.status != 500:
        return error_reply(error)
    _log.failure("a request failed", failure=failure)
    return Reply(500, {"error": "something went wrong here", "code": "internal"})


def send(request: Request, reply: Reply, finish: bool = True) -> None:
    """Write *reply* and finish *request*; on HEAD the body is counted and left out."""
    body = reply.body
    if body is None:
        content = b""
    elif isinstance(body, bytes):
        content = body
    else:
        content = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    request.setResponseCode(reply.status)
    for name, value in reply.headers.items():
        request.setHeader(name, value)
    if reply.status not in (204, 304):
        request.setHeader("Content-Length", str(len(content)))
        if body is not None:
            request.setHeader("Content-Type", reply.content_type)
    request.write(content)
    if finish:
        request.finish()


def header(request: Request, name: str) -> str | None:
    """The value of the request header *name*; several of one name come joined by a comma."""
    values = request.requestHeaders.getRawHeaders(name.encode())
    return None if values is None else b",".join(values).decode("latin-1")


def headers(request: Request) -> dict[str, str]:
    """All request headers under their lower-case names, as the authenticator takes them."""
    return {
        name.decode("latin-1").lower(): ",".join(value.decode("latin-1") for value in values)
        for name, values in request.requestHeaders.getAllRawHeaders()
    }


def query(request: Request) -> dict[str, str]:
    """The decoded query.

    :raises BadRequest: a name occurs twice, or something is not UTF-8.
    """
    found: dict[str, str] = {}
    for name, values in (request.args or {}).items():
        try:
            text, value = name.decode(), values[0].decode()
        except UnicodeDecodeError:
            raise BadRequest("invalid_request", "the query is not UTF-8") from None
        if len(values) > 1:
            raise BadRequest("invalid_request", "a query parameter occurs twice")
        found[text] = value
    return found


def json_object(request: Request) -> dict[str, Any]:
    """The request's body, which must be one JSON object.

    :raises BadRequest: ``invalid_json`` when it is no JSON, ``invalid_request`` when it is no object.
    """
    content = request.content
    body = content.read() if content is not None else b""
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise BadRequest("invalid_json", "the body is not JSON") from None
    if not isinstance(value, dict):
        raise BadRequest("invalid_request", "the body is not a JSON object")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON (RFC 8259, 6)")


class JsonResource(Resource):
    """A leaf with coroutine methods, or an inner node without any, where 404 is the answer to everything.

    :param origins: who may call from a page of another origin.
    """

    def __init__(self, origins: Origins) -> None:
        super().__init__()
        self.origins = origins
        self._known: dict[str, Callable[[Request], Awaitable[Reply]]] = {
            method: getattr(self, method.lower()) for method in _METHODS if hasattr(self, method.lower())
        }

    @property
    def allowed(self) -> list[str]:
        """Methods of the ``Allow`` header."""
        extra = ["HEAD"] if "GET" in self._known else []
        return [*self._known, *extra, "OPTIONS"]

    def getChild(self, path: bytes, request: Request) -> IResource:
        return JsonResource(self.origins)

    def render(self, request: Request) -> int:
        """Answer *request*, now or later."""
        method = request.method.decode("latin-1")
        self._allow_origin(request)
        coroutine = self._known.get("GET" if method == "HEAD" else method)
        if method == "OPTIONS" and self._known:
            send(request, Reply(204, headers=self._preflight(request)))
        elif not self._known:
            self.missing(request)
        elif coroutine is None:
            reply = {"error": f"{method} is not possible here", "code": "method_not_allowed"}
            send(request, Reply(405, reply, {"Allow": ", ".join(self.allowed)}))
        else:
            self._run(request, coroutine, cancellable=method in ("GET", "HEAD"))
        return NOT_DONE_YET

    def missing(self, request: Request) -> int:
        """Answer that there is nothing here."""
        send(request, error_reply(NotFound("not_found", "there is nothing at this address")))
        return NOT_DONE_YET

    def _run(self, request: Request, coroutine: Callable[[Request], Awaitable[Reply]], cancellable: bool) -> None:
        """Answer with what *coroutine* returns. A reader that goes away is cancelled; a change is finished."""
        gone = False
        answer: Deferred[Reply] | None = None

        def disconnected(_: Failure) -> None:
            nonlocal gone
            gone = True
            if cancellable and answer is not None:
                answer.cancel()

        def failed(failure: Failure) -> Reply | None:
            if gone and failure.check(CancelledError) is not None:
                return None
            return failure_reply(failure)

        def answered(reply: Reply | None) -> None:
            if reply is not None and not gone:
                send(request, reply)

        request.notifyFinish().addErrback(disconnected)
        answer = Deferred.fromCoroutine(_awaited(coroutine, request))
        answer.addErrback(failed).addCallback(answered).addErrback(
            lambda failure: _log.failure("an answer could not be sent", failure=failure)
        )

    def _allow_origin(self, request: Request) -> None:
        """CORS (Fetch, 3.2): name the page's origin when it may read the answer."""
        request.responseHeaders.addRawHeader("Vary", "Origin")
        origin = header(request, "origin")
        if origin is not None and self.origins.permits(origin, header(request, "host") or ""):
            request.setHeader("Access-Control-Allow-Origin", origin)
            request.setHeader("Access-Control-Expose-Headers", "Retry-After, WWW-Authenticate")

    def _preflight(self, request: Request) -> dict[str, str]:
        answer = {"Allow": ", ".join(self.allowed)}
        if request.responseHeaders.hasHeader("Access-Control-Allow-Origin"):
            answer["Access-Control-Allow-Methods"] = ", ".join(self.allowed)
            answer["Access-Control-Allow-Headers"] = "Authorization, Content-Type, X-API-Key"
            answer["Access-Control-Max-Age"] = str(PREFLIGHT_AGE)
        return answer


async def _awaited(coroutine: Callable[[Request], Awaitable[Reply]], request: Request) -> Reply:
    return await coroutine(request)
