"""Webhooks on the control socket: ``POST …/control/webhooks`` ``{namespace}`` sends an event that means nothing, now.

The answer is ``{"namespace", "id", "seconds"}``; an error says why the receiver did not take it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from twisted.web.server import Request

from orama.errors import BadRequest
from orama.rest.json_resource import JsonResource, Reply, json_object
from orama.rest.origins import Origins


class WebhookTestResource(JsonResource):
    """
    :param require: raises NotFound for a namespace that there is not.
    :param test: sends one event of a namespace, and says what came of it.
    """

    def __init__(
        self, require: Callable[[str], Awaitable[None]], test: Callable[[str], Awaitable[Mapping[str, Any]]]
    ) -> None:
        super().__init__(Origins(()))
        self._require = require
        self._test = test

    async def post(self, request: Request) -> Reply:
        body = json_object(request)
        namespace = body.get("namespace")
        if not isinstance(namespace, str) or not namespace:
            raise BadRequest("invalid_request", "namespace is missing")
        await self._require(namespace)
        return Reply(body=dict(await self._test(namespace)))
