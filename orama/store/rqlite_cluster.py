"""The nodes of an rqlite cluster as one place to ask: HTTP with time limits, another node where one does not answer.

A request goes to the leader as far as it is known, then to the other nodes: those of the URL and those that ``/nodes``
has told. What only reads is asked anew wherever that may help. What writes is sent anew only when it is sure that it
has not been done, because nobody took it or there is no leader; otherwise the caller is told that it is not known.
While a leader is being elected, requests wait for it. All of this blocks, and belongs on a thread of the store.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable
from ipaddress import ip_address
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen

DEFAULT_PORT = 4001
#: Seconds between two looks for a leader, and at least between two looks for the nodes of the cluster.
_PAUSE = 0.1
_LEARN_INTERVAL = 5.0
#: Present when another node than the one that was asked has served a request: the leader.
_FORWARDED = "X-RQLITE-SERVED-BY"
#: What a node says that has not done what was asked, nor passed all of it on to the leader.
_NOT_DONE = re.compile(
    r"leader not found|leader address|not leader$|store not (open|ready)|pool get: |write (length|protobuf bytes): "
)
_UNAUTHORIZED = (401, 403)


class NoAnswer(Exception):
    """No node of the cluster answers, or none that knows of a leader."""


class NotAllowed(Exception):
    """The cluster wants other credentials."""


class _NotDone(Exception):
    """A node did not do it, and nobody else did."""


class _Lost(Exception):
    """A node was asked and what became of it is not known."""


@frozen
class Timeouts:
    """Seconds: to connect, for the answer to what writes and to what reads, and until there must be a leader.

    rqlite elects one within 1 to 3 s of the old one's end. A machine that does not even acknowledge what was sent
    within the first of them is gone: nobody waits for its answer then, which could be written all the same.
    """

    connect: float = 2.0
    write: float = 10.0
    read: float = 4.0
    election: float = 5.0


@frozen(order=True)
class Address:
    """Where a node answers HTTP."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """*text* is ``host``, ``host:port`` or ``[v6]:port``. :raises ValueError: it is none of them."""
        parts = urlsplit(f"//{text}")
        if not parts.hostname or parts.path or parts.query or parts.username is not None:
            raise ValueError(f"{text!r} is no host and port")
        return cls(parts.hostname, parts.port or DEFAULT_PORT)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether it means this machine, on whichever machine it is read."""
        try:
            ip = ip_address(self.host)
        except ValueError:
            return self.host == "localhost"
        return ip.is_loopback or ip.is_unspecified


class Cluster:
    """What all connections know of the nodes.

    :param addresses: of some nodes, at least one.
    """

    def __init__(
        self,
        addresses: Iterable[Address],
        user: str | None = None,
        password: str | None = None,
        timeouts: Timeouts = Timeouts(),
        seconds: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._given = tuple(addresses)
        self._order = list(dict.fromkeys(self._given))
        self._lock = Lock()
        self._learnt: float | None = None
        self.timeouts = timeouts
        self.seconds = seconds
        self.sleep = sleep
        #: Whether it is worth waiting for a leader: not when it was just in vain.
        self.patient = True
        self.headers = {"Content-Type": "application/json"}
        if user is not None:
            self.headers["Authorization"] = "Basic " + b64encode(f"{user}:{password or ''}".encode()).decode()

    @property
    def order(self) -> tuple[Address, ...]:
        """The nodes, the one that is to be asked first coming first."""
        with self._lock:
            return tuple(self._order)

    def prefer(self, address: Address) -> None:
        with self._lock:
            self._order = [address, *(other for other in self._order if other != address)]

    def avoid(self, address: Address) -> None:
        with self._lock:
            self._order = [*(other for other in self._order if other != address), address]

    def wants_to_learn(self, forwarded: bool) -> bool:
        """Whether to ask for the nodes now: at first, and when the leader is another than we thought."""
        with self._lock:
            now = self.seconds()
            if self._learnt is not None and (not forwarded or now - self._learnt < _LEARN_INTERVAL):
                return False
            self._learnt = now
            return True

    def learn(self, nodes: Iterable[tuple[Address, bool]], away: Collection[Address] = ()) -> None:
        """Take the leader to the front, and ask those that were not known, too.

        A node that says of itself that it is "localhost" helps only those that look for one there.

        :param nodes: each with whether it is the leader.
        :param away: did not answer us just now, whatever the others say.
        """
        here = any(address.local for address in self._given)
        told = [(address, leads) for address, leads in nodes if here or not address.local]
        with self._lock:
            leaders = [address for address, leads in told if leads and address not in away]
            known = [*self._order, *(address for address, _ in told)]
            kept = {*self._given, *(address for address, _ in told)}
            self._order = [address for address in dict.fromkeys([*leaders, *known]) if address in kept]


class Session:
    """Kept-alive HTTP connections of one thread at a time to the nodes of *cluster*."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._lines: dict[Address, http.client.HTTPConnection] = {}

    def request(self, path: str, statements: list[Any], reads: bool) -> dict[str, Any]:
        """The answer to *statements* from the first node that can give one.

        :param reads: they can be asked twice.
        :raises NoAnswer: there is none; what writes may have been written then if it says so.
        :raises NotAllowed: the credentials are wrong.
        """
        cluster = self.cluster
        body = json.dumps(statements, ensure_ascii=False, allow_nan=False).encode()
        limit = cluster.timeouts.read if reads else cluster.timeouts.write
        path += f"{'&' if '?' in path else '?'}timeout={int(limit * 1000)}ms"
        deadline = cluster.seconds() + cluster.timeouts.election
        while True:
            said: dict[Address, str] = {}
            hopeful = False
            for address in cluster.order:
                try:
                    answer, forwarded = self._ask(address, path, body, limit)
                except OSError as error:
                    said[address] = _reason(error)
                except _NotDone as error:
                    hopeful = True
                    said[address] = str(error)
                except _Lost as error:
                    if not reads:
                        cluster.avoid(address)
                        raise NoAnswer(f"{address}: {error}; it may have been written all the same") from None
                    said[address] = str(error)
                else:
                    cluster.patient = True
                    if said:
                        cluster.prefer(address)
                    if cluster.wants_to_learn(forwarded):
                        self._learn(address, said)
                    return answer
                if reads and cluster.seconds() > deadline:
                    break
            if not hopeful or not cluster.patient or cluster.seconds() > deadline:
                cluster.patient = False
                raise NoAnswer("; ".join(f"{address}: {reason}" for address, reason in said.items()))
            cluster.sleep(_PAUSE)

    def get(self, address: Address, path: str) -> Any:
        """What the node of *address* answers there.

        :raises OSError: nobody is there.
        :raises NoAnswer: nothing useful.
        """
        try:
            status, content, _ = self._exchange("GET", address, path, None, self.cluster.timeouts.read)
            if status != 200:
                raise NoAnswer(f"{address}: HTTP {status}")
            return json.loads(content)
        except (_Lost, ValueError) as error:
            raise NoAnswer(f"{address}: {error}") from None

    def close(self) -> None:
        for line in self._lines.values():
            line.close()
        self._lines.clear()

    def _ask(self, address: Address, path: str, body: bytes, limit: float) -> tuple[dict[str, Any], bool]:
        status, content, forwarded = self._exchange("POST", address, path, body, limit)
        if status in _UNAUTHORIZED:
            raise NotAllowed(f"{address}: the user may not do that, or the password is wrong")
        text = content.decode(errors="replace").strip()
        if status != 200:
            if status == 503 or _NOT_DONE.search(text):
                raise _NotDone(text[:200] or f"HTTP {status}")
            raise _Lost(f"HTTP {status} {text[:200]}")
        try:
            answer = json.loads(content)
        except ValueError:
            raise _Lost("the answer is no JSON") from None
        if not isinstance(answer, dict):
            raise _Lost("the answer is not rqlite's")
        error = str(answer.get("error") or "")
        if error and "constraint failed" not in error:
            if _NOT_DONE.search(error):
                raise _NotDone(error[:200])
            raise _Lost(error[:200])
        return answer, forwarded

    def _exchange(
        self, method: str, address: Address, path: str, body: bytes | None, limit: float
    ) -> tuple[int, bytes, bool]:
        """Status, content, and whether another node has answered. :raises OSError: it was not even asked."""
        line = self._line(address)
        try:
            assert line.sock is not None
            line.sock.settimeout(limit)
            line.request(method, path, body, self.cluster.headers)
            response = line.getresponse()
            content = response.read()
            return response.status, content, response.getheader(_FORWARDED) is not None
        except (OSError, http.client.HTTPException) as error:
            self._drop(address)
            raise _Lost(_reason(error)) from None

    def _line(self, address: Address) -> http.client.HTTPConnection:
        """An open connection. One that the other side has closed meanwhile is found out before it is used."""
        line = self._lines.get(address)
        if line is not None and line.sock is not None and _open(line.sock):
            return line
        self._drop(address)
        line = http.client.HTTPConnection(address.host, address.port, timeout=self.cluster.timeouts.connect)
        line.connect()
        _watch(line.sock, self.cluster.timeouts.connect)
        self._lines[address] = line
        return line

    def _drop(self, address: Address) -> None:
        line = self._lines.pop(address, None)
        if line is not None:
            line.close()

    def _learn(self, address: Address, away: Collection[Address]) -> None:
        """Ask a node for the others. Nothing depends on it."""
        try:
            nodes = self.get(address, "/nodes?ver=2&timeout=1s")["nodes"]
            told = [
                (Address.parse(urlsplit(node["api_addr"]).netloc), bool(node.get("leader")))
                for node in nodes
                if node.get("api_addr")
            ]
            self.cluster.learn(told, away)
        except (OSError, NoAnswer, LookupError, TypeError, AttributeError, ValueError):
            return


def _watch(sock: socket.socket, seconds: float) -> None:
    """End a connection whose other side acknowledges nothing for *seconds*, where the system can (tcp(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 1, "TCP_USER_TIMEOUT": int(seconds * 1000)}
    for name, value in options.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _open(sock: socket.socket) -> bool:
    """Whether nothing has come on a connection on which nothing may come: no end, and no half answer."""
    try:
        sock.setblocking(False)
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
