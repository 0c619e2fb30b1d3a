"""Asking other nodes: signed JSON over HTTP on their internal addresses, a connection for each question.

A refused connection is the proof that the process behind it has gone; any other silence proves nothing, so the two
have errors of their own. Nothing is tried twice in here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlencode

from orama.cluster.exchange import Exchange, NoAnswer
from orama.cluster.keyring import Keyring
from orama.cluster.signing import sign
from orama.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    InsufficientStorage,
    NotAuthenticated,
    NotFound,
    OramaError,
    PreconditionFailed,
    RateLimited,
    TooLarge,
    Unavailable,
)

#: Seconds for a whole question, connecting included.
TIMEOUT = 5.0
#: Query parameter with the node that a request is for: one that was taken down elsewhere is no good there.
TO = "to"

_ERRORS: dict[int, type[OramaError]] = {
    error.status: error
    for error in (
        BadRequest,
        NotAuthenticated,
        Forbidden,
        NotFound,
        Conflict,
        PreconditionFailed,
        TooLarge,
        Unavailable,
        InsufficientStorage,
    )
}


class Neighbour(Protocol):
    """Where a node is; a ``NodeRecord`` is one."""

    @property
    def node_id(self) -> str: ...

    @property
    def internal_ip(self) -> str: ...

    @property
    def internal_port(self) -> int: ...


class NodeRefused(Unavailable):
    """Nobody listens there: the node's process is gone."""


class Neighbours:
    """The other nodes, as *node_id* asks them.

    :param keyring: signs what is asked.
    """

    def __init__(self, reactor: Any, keyring: Keyring, node_id: str) -> None:
        self._reactor = reactor
        self._keyring = keyring
        self._node_id = node_id
        self._exchange = Exchange(reactor)

    async def get(
        self,
        node: Neighbour,
        path: str,
        query: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,  # noqa: ASYNC109 asyncio has no say here
    ) -> Any:
        """What *node* answers.

        :raises NodeRefused: ``node_unreachable``; nobody listens.
        :raises Unavailable: ``node_unreachable``; no answer in *timeout* seconds, or none that a node gives.
        :raises OramaError: what *node* answered.
        """
        return await self._ask(node, "GET", path, query, None, timeout)

    async def post(
        self,
        node: Neighbour,
        path: str,
        body: Mapping[str, Any],
        timeout: float = TIMEOUT,  # noqa: ASYNC109
    ) -> Any:
        """As :meth:`get`, with *body*. An error that is no :class:`NodeRefused` does not say that nothing was done."""
        return await self._ask(node, "POST", path, None, body, timeout)

    async def _ask(
        self,
        node: Neighbour,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        limit: float,
    ) -> Any:
        target = f"{path}?{urlencode({**(query or {}), TO: node.node_id})}"
        content = b"" if body is None else json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        signed = sign(self._keyring, method, target, content, self._node_id, self._reactor.seconds())
        headers = {**signed, "Content-Type": "application/json"} if body is not None else signed
        address = f"[{node.internal_ip}]" if ":" in node.internal_ip else node.internal_ip
        url = f"http://{address}:{node.internal_port}{target}"
        try:
            status, answer = await self._exchange.ask(
                method, url, headers, content if body is not None else None, limit
            )
        except NoAnswer as error:
            kind = NodeRefused if error.refused else Unavailable
            raise kind(*_unreachable(node, error.why)) from None
        return _read(node, status, answer)


def _unreachable(node: Neighbour, why: str) -> tuple[str, str]:
    return "node_unreachable", f"node {node.node_id} at {node.internal_ip}:{node.internal_port}: {why}"


def _read(node: Neighbour, status: int, content: bytes) -> Any:
    """The JSON of an answer.

    :raises OramaError: that *content* says, or Unavailable when no node says such things.
    """
    try:
        answer: Any = json.loads(content) if content else None
        if 200 <= status < 300:
            return answer
        code, text = str(answer["code"]), str(answer["error"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Unavailable(*_unreachable(node, f"HTTP {status}, and not as a node answers")) from None
    text = f"node {node.node_id}: {text}"
    if status == RateLimited.status:
        raise RateLimited(text)
    raise _ERRORS.get(status, Unavailable)(code, text)
