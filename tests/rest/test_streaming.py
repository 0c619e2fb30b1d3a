"""Answers in steps: one line each, and what becomes of errors and of readers that go away."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase
from twisted.web.server import Request

from orama.errors import Conflict
from orama.rest.json_resource import JsonResource
from orama.rest.origins import Origins
from orama.rest.site import Site
from orama.rest.streaming import KEEPALIVE, NDJSON, Progress, SteppedResource
from orama.settings import Settings
from tests.rest.service import Answer, Listener, ask, connect


class SteppedResourceTests(TestCase):
    timeout = 120

    def setUp(self) -> None:
        self.clock = Clock()
        #: Fires with the means to tell steps when a request has come.
        self.begun: Deferred[Progress] = Deferred()
        self.ending: Deferred[Mapping[str, Any]] = Deferred()
        self.gone: Deferred[None] = Deferred()
        self.ended: Deferred[None] = Deferred()
        root = JsonResource(Origins(()))
        root.putChild(b"work", SteppedResource(Origins(()), self.clock, self.work))
        self.listener = Listener(self, Site(root, Settings(), self.clock))  # type: ignore[arg-type]

    async def work(self, request: Request, progress: Progress) -> Mapping[str, Any]:
        request.notifyFinish().addErrback(lambda _: self.gone.callback(None))
        self.begun.callback(progress)
        try:
            return await self.ending
        finally:
            self.ended.callback(None)

    def ask(self, accept: str = NDJSON) -> Deferred[Answer]:
        return Deferred.fromCoroutine(ask("POST", f"{self.listener.base}/work", headers={"Accept": accept}))

    def lines(self, answer: Answer) -> list[Any]:
        self.assertEqual((answer.status, answer.header("Content-Type")), (200, NDJSON))
        self.assertTrue(answer.body.endswith(b"\n"))
        return [json.loads(line) for line in answer.body.splitlines() if line]

    async def test_steps(self) -> None:
        """Each step is a line when it is told, not at the end; the result is the last one."""
        raw = await connect(self.listener.port)
        raw.transport.write(f"POST /work HTTP/1.1\r\nHost: x\r\nAccept: {NDJSON}\r\n\r\n".encode())
        progress = await self.begun
        progress("config", "done", "ports are chosen")
        received = await raw.until(b"chosen")
        self.assertIn(b"200 OK", received)
        self.assertIn(b'{"step":"config","state":"done","text":"ports are chosen"}\n', received)
        self.ending.callback({"status": "ok"})
        self.assertIn(b'{"status":"ok"}\n', await raw.until(b"0\r\n\r\n"))
        raw.transport.loseConnection()
        await raw.closed

    async def test_told_too_late(self) -> None:
        """A step that is told when all is over is no error, and nobody's line."""
        asked = self.ask()
        progress = await self.begun
        self.ending.callback({"status": "ok"})
        self.assertEqual(self.lines(await asked), [{"status": "ok"}])
        progress("config", "done", "late")

    async def test_without_lines(self) -> None:
        """Who does not ask for lines gets one JSON answer, as from any other resource."""
        asked = self.ask("application/json")
        (await self.begun)("config", "done", "ports are chosen")
        self.ending.callback({"status": "ok"})
        answer = await asked
        self.assertEqual((answer.status, answer.header("Content-Type")), (200, "application/json"))
        self.assertEqual(answer.json, {"status": "ok"})

    async def test_no_steps(self) -> None:
        """Work without steps is one line."""
        self.ending.callback({"status": "ok"})
        self.assertEqual(self.lines(await self.ask()), [{"status": "ok"}])

    async def test_refused_at_once(self) -> None:
        """What fails before the first step has the status of its error."""
        self.ending.errback(Conflict("already_enabled", "it is enabled"))
        answer = await self.ask()
        self.assertEqual(answer.outcome, (409, "already_enabled"))
        self.assertEqual(answer.header("Content-Type"), "application/json")

    async def test_failed_later(self) -> None:
        """What fails after a step is the last line; the status has left already."""
        asked = self.ask()
        (await self.begun)("sfu", "waiting", "1 of 3")
        self.ending.errback(Conflict("already_enabled", "it is enabled"))
        _, last = self.lines(await asked)
        self.assertEqual(last, {"error": "it is enabled", "code": "already_enabled"})

    async def test_broken_later(self) -> None:
        """A bug after a step shows nothing of itself."""
        asked = self.ask()
        (await self.begun)("sfu", "waiting", "1 of 3")
        self.ending.errback(ZeroDivisionError("secret"))
        _, last = self.lines(await asked)
        self.assertEqual(last["code"], "internal")
        self.assertNotIn("secret", json.dumps(last))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_keepalive(self) -> None:
        """While nothing becomes true an empty line comes now and then, and none after the end."""
        asked = self.ask()
        await self.begun
        self.clock.advance(KEEPALIVE)
        self.clock.advance(KEEPALIVE)
        self.ending.callback({"status": "ok"})
        answer = await asked
        self.assertEqual(answer.body, b'\n\n{"status":"ok"}\n')
        self.assertEqual([call for call in self.clock.getDelayedCalls() if "LoopingCall" in str(call)], [])

    async def test_reader_goes_away(self) -> None:
        """A change that was begun is finished, whoever reads; steps that nobody hears are no error."""
        raw = await connect(self.listener.port)
        raw.transport.write(f"POST /work HTTP/1.1\r\nHost: x\r\nAccept: {NDJSON}\r\n\r\n".encode())
        progress = await self.begun
        progress("config", "done", "one")
        await raw.until(b"one")
        raw.transport.abortConnection()
        await self.gone
        progress("config", "done", "two")
        self.clock.advance(2 * KEEPALIVE)
        self.ending.callback({"status": "ok"})
        await self.ended
