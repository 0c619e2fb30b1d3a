"""Applications that are told what happens in rooms: real HTTP servers on a loopback port."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import time
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from orama.webhooks.signature import HEADER, verify

reactor: Any = _reactor
SECRET = "0123456789abcdef" * 2
#: What to do with a request: a status to answer, or None for no answer at all.
Manner = Callable[[dict[str, Any]], int | None]


class Receiver(Resource):
    """An application that is told; it accepts what is signed with ``SECRET``.

    :ivar taken: the events that it said yes to.
    :ivar tries: the ids of all that came.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.manner: Manner = lambda event: 204
        self.taken: list[dict[str, Any]] = []
        self.tries: list[str] = []
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    def render_POST(self, request: Request) -> Any:
        assert request.content is not None
        body = request.content.read()
        verify(SECRET, str(request.getHeader(HEADER)), body, reactor.seconds())
        event = json.loads(body)
        assert request.getHeader("Orama-Event-Id") == event["id"]
        assert request.getHeader("Content-Type") == "application/json"
        self.tries.append(event["id"])
        status = self.manner(event)
        if status is None:
            request.notifyFinish().addErrback(lambda failure: None)
        else:
            request.setResponseCode(status)
            if status // 100 == 3:
                request.setHeader("Location", "/elsewhere")
            if status // 100 == 2:
                self.taken.append(event)
        reactor.callLater(0, self._look)
        return NOT_DONE_YET if status is None else b"ok"

    def until(self, done: Callable[[], bool]) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self._waiting.append((done, waiting))
        self._look()
        return waiting

    def _look(self) -> None:
        for done, waiting in self._waiting[:]:
            if done():
                self._waiting.remove((done, waiting))
                waiting.callback(None)

    @property
    def ids(self) -> list[str]:
        return [event["id"] for event in self.taken]


class ReceiverThread:
    """An application of its own, for tests that block: it takes everything that is signed.

    :ivar taken: the events, as they came.
    """

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        taken = self.taken

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                verify(SECRET, self.headers[HEADER], body, time())
                taken.append(json.loads(body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nobody reads that."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
