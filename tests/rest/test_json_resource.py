"""The base class: coroutines, errors, methods, CORS, and clients that go away."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.server import Request

from orama.errors import (
    Conflict,
    NotAuthenticated,
    OramaError,
    PreconditionFailed,
    RateLimited,
    SignalError,
    StartError,
    Unavailable,
)
from orama.rest.json_resource import JsonResource, Reply
from orama.rest.origins import Origins
from orama.rest.site import Site
from orama.settings import LimitSettings, Settings
from tests.rest.service import Answer, Listener, ask, connect


class Example(JsonResource):
    """Does what the test says.

    :ivar doing: what a request awaits; :ivar begun: a request came; :ivar left: its client has gone;
    :ivar ended: how it ended.
    """

    def __init__(self, origins: Origins) -> None:
        super().__init__(origins)
        self.raising: BaseException | None = None
        self.doing: Deferred[Any] | None = None
        self.begun: Deferred[None] = Deferred()
        self.ended: Deferred[str] = Deferred()
        self.left: Deferred[None] = Deferred()

    async def get(self, request: Request) -> Reply:
        return await self._do(request)

    async def post(self, request: Request) -> Reply:
        return await self._do(request)

    async def _do(self, request: Request) -> Reply:
        request.notifyFinish().addErrback(lambda _: self.left.callback(None))
        if self.raising is not None:
            raise self.raising
        if self.doing is not None:
            self.begun.callback(None)
            try:
                await self.doing
            except CancelledError:
                self.ended.callback("cancelled")
                raise
            self.ended.callback("done")
        return Reply(body={"said": "yes"})


class JsonResourceTests(TestCase):
    settings = evolve(Settings(), limits=LimitSettings(origins=("https://app.example.org",)))
    timeout = 120

    def setUp(self) -> None:
        origins = Origins(self.settings.limits.origins)
        root = JsonResource(origins)
        self.example = Example(origins)
        root.putChild(b"example", self.example)
        listener = Listener(self, Site(root, self.settings, Clock()))
        self.base, self.port = listener.base, listener.port

    async def call(self, method: str, **options: Any) -> Answer:
        return await ask(method, f"{self.base}/example", **options)

    async def test_answers(self) -> None:
        """What the coroutine returns goes out as JSON with its length and its exact type."""
        answer = await self.call("GET")
        self.assertEqual((answer.status, answer.body), (200, b'{"said":"yes"}'))
        self.assertEqual(answer.header("content-type"), "application/json")
        self.assertEqual(answer.length, 14)

    async def test_head(self) -> None:
        """HEAD is GET without the body."""
        answer = await self.call("HEAD")
        self.assertEqual((answer.status, answer.body, answer.header("content-length")), (200, b"", "14"))

    async def test_errors(self) -> None:
        """Each named error has its status, its code and its headers."""
        for error, status, extra in (
            (Conflict("room_exists", "text"), 409, {}),
            (PreconditionFailed("cluster_not_ready", "text"), 412, {}),
            (RateLimited("text", 7), 429, {"retry-after": "7"}),
            (
                NotAuthenticated("invalid_token", "text"),
                401,
                {"www-authenticate": 'ApiKey realm="orama", Bearer realm="orama"'},
            ),
            (Unavailable("store_unavailable", "text"), 503, {}),
            (SignalError("room_full", "text"), 400, {}),
        ):
            self.example.raising = error
            answer = await self.call("GET")
            self.assertEqual((answer.status, answer.json), (status, {"error": "text", "code": error.code}))
            self.assertEqual(answer.header("content-type"), "application/json")
            for name, value in extra.items():
                self.assertEqual(answer.header(name), value)

    async def test_unnamed_errors(self) -> None:
        """Anything else is a bare 500, logged and not shown."""
        for error in (ValueError("hidden"), StartError("hidden"), OramaError("hidden", "hidden")):
            self.example.raising = error
            answer = await self.call("POST")
            self.assertEqual(
                (answer.status, answer.json), (500, {"error": "something went wrong here", "code": "internal"})
            )
            self.assertEqual(len(self.flushLoggedErrors(type(error))), 1)

    async def test_other_methods(self) -> None:
        """A method that is not known here is 405 with those that are."""
        for method in ("PUT", "DELETE", "PATCH", "TRACE", "FOO"):
            answer = await self.call(method)
            self.assertEqual(answer.outcome, (405, "method_not_allowed"))
            self.assertEqual(answer.header("allow"), "GET, POST, HEAD, OPTIONS")

    async def test_below(self) -> None:
        """Nothing is below a leaf, whatever the method."""
        for method in ("GET", "OPTIONS", "POST"):
            answer = await ask(method, f"{self.base}/example/")
            self.assertEqual(answer.outcome, (404, "not_found"))

    async def test_preflight(self) -> None:
        """A configured origin may call with our headers; another learns nothing but the methods."""
        asked = {"Access-Control-Request-Method": "POST", "Origin": "https://app.example.org"}
        answer = await self.call("OPTIONS", headers=asked)
        self.assertEqual((answer.status, answer.body), (204, b""))
        self.assertEqual(answer.header("access-control-allow-origin"), "https://app.example.org")
        self.assertEqual(answer.header("access-control-allow-methods"), "GET, POST, HEAD, OPTIONS")
        self.assertEqual(answer.header("access-control-allow-headers"), "Authorization, Content-Type, X-API-Key")
        self.assertEqual(answer.header("vary"), "Origin")
        answer = await self.call("OPTIONS", headers={**asked, "Origin": "https://evil.example.org"})
        self.assertEqual((answer.status, answer.header("allow")), (204, "GET, POST, HEAD, OPTIONS"))
        self.assertIsNone(answer.header("access-control-allow-origin"))
        self.assertIsNone(answer.header("access-control-allow-methods"))

    async def test_cors_on_answers(self) -> None:
        """An allowed page may read answers and errors, and credentials of a browser are never invited."""
        self.example.raising = Conflict("room_exists", "text")
        answer = await self.call("GET", headers={"Origin": "https://app.example.org"})
        self.assertEqual(answer.header("access-control-allow-origin"), "https://app.example.org")
        self.assertIsNone(answer.header("access-control-allow-credentials"))
        self.assertEqual(answer.header("access-control-expose-headers"), "Retry-After, WWW-Authenticate")

    async def test_reader_goes_away(self) -> None:
        """A client that goes away cancels what it asked to read, without noise."""
        self.example.doing = Deferred()
        await self._ask_and_leave("GET")
        self.assertEqual(await self.example.ended, "cancelled")

    async def test_writer_goes_away(self) -> None:
        """What a client asked to change is finished though it goes away."""
        self.example.doing = doing = Deferred()
        await self._ask_and_leave("POST")
        self.assertNoResult(self.example.ended)
        doing.callback(None)
        self.assertEqual(await self.example.ended, "done")

    async def _ask_and_leave(self, method: str) -> None:
        raw = await connect(self.port)
        raw.transport.write(f"{method} /example HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await self.example.begun
        raw.transport.abortConnection()
        await self.example.left


class OriginsTests(SynchronousTestCase):
    def test_own(self) -> None:
        """Our own pages may call, whichever scheme a proxy speaks and with the default port or without."""
        origins = Origins(())
        for origin, host in (
            ("https://example.org", "example.org"),
            ("https://Example.org", "example.org:443"),
            ("http://example.org:80", "example.org"),
            ("http://127.0.0.1:6001", "127.0.0.1:6001"),
            ("http://[::1]:6001", "[::1]:6001"),
        ):
            self.assertTrue(origins.permits(origin, host), origin)
        for origin, host in (
            ("https://example.org", "example.com"),
            ("https://example.org:444", "example.org"),
            ("https://evil-example.org", "example.org"),
            ("null", "example.org"),
            ("null", "null"),
            ("", ""),
            ("https://", ""),
            ("ftp://example.org", "example.org"),
        ):
            self.assertFalse(origins.permits(origin, host), origin)

    def test_listed(self) -> None:
        """Listed origins may, exactly; a star is any."""
        origins = Origins(("https://app.example.org/", "null"))
        self.assertTrue(origins.permits("https://app.example.org", "node"))
        self.assertTrue(origins.permits("null", "node"))
        self.assertFalse(origins.permits("http://app.example.org", "node"))
        self.assertTrue(Origins(("*",)).permits("https://any.example", "node"))
