"""Asking every node of a cluster at once how it is, signed with the cluster key; no node is waited for any longer
than the others.

What a node does not answer is part of the result: nobody here decides what that means.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPMessage
from typing import Any, TypeVar

from attrs import frozen

from orama.cli.control import Control, Failed
from orama.cli.environments import Address, Environment
from orama.cli.reports import NodeReport, read_report

T = TypeVar("T")
#: Seconds for one node.
TIMEOUT = 5.0
#: Bytes of a report: some thousand namespaces.
LIMIT = 8 << 20
REPORT = "/v1/internal/report"
#: Who we say that we are.
OPERATOR = "operator"
#: Whoever is asked at a time.
THREADS = 32

#: Told how many have answered, and how many there are.
Progress = Callable[[int, int], None]


@frozen
class Answer:
    """What came of asking one node.

    :ivar node: its id; its address when nobody could tell us that.
    :ivar report: None when there is none; then ``error`` says why.
    :ivar raw: the report as it came.
    :ivar skew: seconds that its clock is ahead of the one here, 0 when that cannot be told from the way's delay; None
        when it is not known.
    """

    node: str
    address: str
    report: NodeReport | None
    raw: Mapping[str, Any] | None = None
    error: str = ""
    skew: float | None = None


def ask(
    control: Control, environment: Environment | None, progress: Progress, timeout: float = TIMEOUT
) -> tuple[Answer, ...]:
    """Ask every node of *environment*; without one, of the cluster of the node at *control*.

    :param timeout: seconds that each node of an environment has, from the connection to the last byte.
    :raises Failed: there is nobody to ask, or nothing to sign with.
    """
    return _ask_cluster(control) if environment is None else _ask_environment(environment, progress, timeout)


def _ask_environment(environment: Environment, progress: Progress, timeout: float) -> tuple[Answer, ...]:
    from orama.cluster.keyring import Keyring
    from orama.errors import OramaError

    try:
        key = Keyring.load(environment.key).current
    except OramaError as error:
        raise Failed("no_cluster_key", f"the cluster key: {error.message}") from None
    return in_threads(lambda address: _ask(address, key, timeout), environment.nodes, progress)


def _ask_cluster(control: Control) -> tuple[Answer, ...]:
    """Have the node on this host ask all nodes that it knows."""
    asked = time.time()
    answer = control.get("report")
    answered = time.time()
    try:
        nodes = [
            (str(each["node_id"]), str(each["internal_ip"]), each["report"], each["error"]) for each in answer["nodes"]
        ]
    except (KeyError, TypeError):
        raise Failed("bad_answer", "the node does not answer as one of this version does") from None
    return tuple(_judged(node, ip, report, error, asked, answered) for node, ip, report, error in nodes)


def in_threads(do: Callable[[Any], T], whom: Sequence[Any], progress: Progress) -> tuple[T, ...]:
    """What *do* gives for each of *whom*, all at once; *progress* is told from this thread."""
    if not whom:
        return ()
    progress(0, len(whom))
    with ThreadPoolExecutor(min(len(whom), THREADS)) as pool:
        futures = [pool.submit(do, each) for each in whom]
        for done, _ in enumerate(as_completed(futures), 1):
            progress(done, len(whom))
    return tuple(future.result() for future in futures)


@contextmanager
def limited(sock: socket.socket, seconds: float) -> Iterator[None]:
    """Whatever is done with *sock* inside ends after *seconds*, also when bytes come one by one."""
    ended = threading.Event()

    def end() -> None:
        ended.set()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, HTTPException):
        if ended.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
    if ended.is_set():
        raise TimeoutError


def reason(error: Exception) -> str:
    """Why a connection did not work, for a person."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return str(error) or type(error).__name__


def _ask(address: Address, key: bytes, timeout: float) -> Answer:
    """What one node answers."""
    from orama.cluster.signing import sign

    connection = HTTPConnection(address.host, address.port, timeout=timeout)
    asked = time.time()
    try:
        connection.connect()
        with limited(connection.sock, max(0.0, timeout - (time.time() - asked))):
            asked = time.time()
            connection.request("GET", REPORT, headers=sign(key, "GET", REPORT, b"", OPERATOR, asked))
            response = connection.getresponse()
            content = response.read(LIMIT + 1)
        answered = time.time()
    except (OSError, HTTPException) as error:
        return Answer(str(address), str(address), None, error=reason(error))
    finally:
        connection.close()
    if len(content) > LIMIT:
        return Answer(str(address), str(address), None, error=f"its report has more than {LIMIT} bytes")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return Answer(str(address), str(address), None, error=f"no node answers there: HTTP {response.status}")
    if response.status != 200:
        text = value.get("error") if isinstance(value, dict) else None
        refused = f"it refuses: {text}" if isinstance(text, str) else f"no node answers there: HTTP {response.status}"
        return Answer(str(address), str(address), None, error=refused, skew=_skew_of(response.headers, asked, answered))
    return _judged(str(address), str(address), value, None, asked, answered)


def _judged(node: str, address: str, value: Any, error: Any, asked: float, answered: float) -> Answer:
    """The answer of *node*, which is what it calls itself if it says so."""
    if value is None:
        return Answer(node, address, None, error=str(error or "it did not answer"))
    try:
        report = read_report(value)
    except ValueError as wrong:
        return Answer(node, address, None, error=f"its report cannot be read: {wrong}")
    return Answer(report.node_id, address, report, value, skew=skew(report.now, asked, answered))


def skew(now: float, asked: float, answered: float) -> float:
    """How far a clock that showed *now* at some time from *asked* to *answered* is ahead of ours, at least."""
    return min(0.0, now - asked) + max(0.0, now - answered)


def _skew_of(headers: HTTPMessage, asked: float, answered: float) -> float | None:
    """The same by the Date of an answer, for a node that refuses us because its clock is wrong."""
    try:
        now = parsedate_to_datetime(headers["Date"]).timestamp()
    except (TypeError, ValueError):
        return None
    # It has whole seconds.
    return skew(now, asked - 1, answered)
