"""HTTP as ``http.client`` speaks it, one connection a request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPMessage
from typing import Any

from attrs import frozen

from tests.node import PATIENCE, NodeProcess


@frozen
class Answer:
    status: int
    headers: HTTPMessage
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def code(self) -> str:
        """The stable name of an error."""
        code: str = self.json["code"]
        return code


def ask(
    node: NodeProcess,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    *,
    host: str = "",
    source: str = "",
) -> Answer:
    """The answer to one request; with the owner key unless *headers* are given.

    :param body: bytes go as they are, anything else as JSON.
    :param host: another address of the node than the first one. :param source: our own address.
    """
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection = HTTPConnection(
        host or node.authority, timeout=PATIENCE, source_address=(source, 0) if source else None
    )
    try:
        connection.request(method, path, content, {"X-API-Key": node.key} if headers is None else dict(headers))
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def gauges(node: NodeProcess, *names: str) -> dict[str, float]:
    """The sum over all labels of each of these figures of ``/metrics``."""
    found = dict.fromkeys(names, 0.0)
    for line in ask(node, "GET", "/metrics", headers={}).content.decode().splitlines():
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0]
        if name in found:
            found[name] += float(value)
    return found
