"""HTTP over the control socket of a node, with nothing but the standard library: the command line has to start fast."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

SOCKET = "control.sock"
#: Seconds within which something of the answer comes. Work that takes longer sends lines while it goes on.
TIMEOUT = 60.0
#: What an answer in steps is asked for with.
NDJSON = "application/x-ndjson"


class Failed(Exception):
    """It did not work; the message is for the person in front of the terminal.

    :param code: stable name of what went wrong, of the node or of ours.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class UnixConnection(HTTPConnection):
    """HTTP to the socket at *path*; *timeout* is in seconds, for each wait."""

    def __init__(self, path: Path, timeout: float = TIMEOUT) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Control:
    """The node whose data directory is *data_dir*."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._path = data_dir / SOCKET

    def get(self, address: str, query: Mapping[str, str] | None = None, *, namespace: str | None = None) -> Any:
        """The JSON of the answer, None when there is none.

        :param namespace: whose owner we are in this.
        :raises Failed: the node refuses, or there is none.
        """
        return self._ask("GET", address, query, None, namespace)

    def post(self, address: str, body: Mapping[str, Any] | None = None, *, namespace: str | None = None) -> Any:
        return self._ask("POST", address, None, body or {}, namespace)

    def delete(self, address: str, query: Mapping[str, str]) -> Any:
        return self._ask("DELETE", address, query, None, None)

    def follow(
        self,
        address: str,
        body: Mapping[str, Any] | None = None,
        *,
        namespace: str | None = None,
        step: Callable[[Mapping[str, str]], None],
    ) -> Any:
        """As :meth:`post`, and *step* is told what becomes true meanwhile.

        :param step: takes ``step``, ``state`` and ``text``.
        """
        for answer in self._lines("POST", address, None, body or {}, namespace):
            if isinstance(answer, dict) and "step" in answer:
                step(answer)
            elif isinstance(answer, dict) and "code" in answer and "error" in answer:
                raise Failed(answer["code"], answer["error"])
            else:
                return answer
        raise Failed("broken_off", "the node went away before it was done: ask webrtc-status how far it came")

    def stream(self, address: str, query: Mapping[str, str] | None = None) -> Iterator[Any]:
        """As :meth:`get`, line by line, as they come; it ends where the node ends it, or goes away."""
        return self._lines("GET", address, query, None, None)

    def _ask(self, method: str, address: str, query: Mapping[str, str] | None, body: Any, namespace: str | None) -> Any:
        with self._request(method, address, query, body, namespace, "application/json") as response:
            status, content = response.status, response.read()
        return self._read(status, content)

    def _lines(
        self, method: str, address: str, query: Mapping[str, str] | None, body: Any, namespace: str | None
    ) -> Iterator[Any]:
        """The answer line by line; as one line when the node does not answer in steps."""
        with self._request(method, address, query, body, namespace, NDJSON) as response:
            if response.headers.get_content_type() != NDJSON:
                content = response.read()
                yield self._read(response.status, content)
                return
            try:
                for line in response:
                    if line.strip():
                        yield json.loads(line)
            except IncompleteRead:
                return

    @contextmanager
    def _request(
        self,
        method: str,
        address: str,
        query: Mapping[str, str] | None,
        body: Any,
        namespace: str | None,
        accept: str,
    ) -> Iterator[HTTPResponse]:
        """The answer to a request, to be read inside."""
        target = f"/v1/control/{address}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if namespace is not None:
            if not namespace.isascii() or not namespace.isprintable():
                raise Failed("namespace_not_found", "there is no such namespace")
            headers["X-Namespace"] = namespace
        connection = UnixConnection(self._path)
        try:
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            yield connection.getresponse()
        except TimeoutError:
            raise Failed("timeout", f"the node did not answer within {TIMEOUT:.0f} s") from None
        except OSError as error:
            raise self._unreachable(error) from None
        except (HTTPException, ValueError) as error:
            raise Failed("bad_answer", f"{self._path} does not answer as a node does: {error}") from None
        finally:
            connection.close()

    def _read(self, status: int, content: bytes) -> Any:
        try:
            answer: Any = json.loads(content) if content else None
            if status < 400:
                return answer
            code, message = answer["code"], answer["error"]
        except (ValueError, TypeError, KeyError):
            raise Failed("bad_answer", f"{self._path} does not answer as a node does: HTTP {status}") from None
        raise Failed(code, message)

    def _unreachable(self, error: OSError) -> Failed:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED):
            return Failed(
                "no_node",
                f"no node is running with data directory {self._data_dir}; "
                f"start one with: twistd -n orama-webrtc --data-dir {self._data_dir}",
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            return Failed("not_permitted", f"{self._path} belongs to another user: run this as the user of the node")
        return Failed("unreachable", f"{self._path}: {error.strerror or error}")
