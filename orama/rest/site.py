"""The HTTP tree of a node, and the site that holds every request to the limits.

What every answer has in common is here: safe headers, the request rate, the body limit (see
:mod:`orama.rest.request`), and an access log that never has a query string in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web import http, server
from twisted.web.resource import IResource, Resource

from orama.cluster.namespaces import Namespaces
from orama.cluster.rooms import RoomDirectory
from orama.cluster.turn_access import TurnAccess
from orama.errors import RateLimited
from orama.rest.auth import Authenticator
from orama.rest.channel import Channel
from orama.rest.json_resource import JsonResource, error_reply, header, send
from orama.rest.openapi import describe
from orama.rest.origins import Origins
from orama.rest.page import put_page
from orama.rest.rate import TokenBuckets, bucket_key
from orama.rest.request import Request
from orama.rest.resources import (
    DocumentResource,
    EnablementResource,
    GuestResource,
    HealthResource,
    LiveRooms,
    MetricsResource,
    Observed,
    ReadyResource,
    RoomsResource,
    StatusResource,
    TurnCredentialsResource,
)
from orama.settings import Settings

#: On every answer. What a page needs beyond this, it sets itself.
SAFE_HEADERS = {
    "Permissions-Policy": "camera=(self), microphone=(self)",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
_log = Logger()


class Site(server.Site):
    """Serves *root* within *settings*; time comes from *clock*."""

    protocol = Channel  # type: ignore[assignment]
    requestFactory = Request
    displayTracebacks = False
    noisy = False

    def __init__(self, root: Resource, settings: Settings, clock: IReactorTime) -> None:
        super().__init__(root, requestFactory=Request, parsePOSTFormSubmission=False, reactor=clock)
        self.clock = clock
        self.max_body = settings.limits.max_body
        self._buckets = TokenBuckets(settings.limits.request_rate, settings.limits.request_burst)

    def adopt(self, other: Site) -> None:
        """Answer as *other* does from now on; connections stay."""
        self.resource, self.max_body, self._buckets = other.resource, other.max_body, other._buckets

    def decorate(self, request: server.Request) -> None:
        """Put the safe headers on *request*'s answer and take the server's name and version off."""
        request.responseHeaders.removeHeader("Server")
        for name, value in SAFE_HEADERS.items():
            request.setHeader(name, value)

    def getResourceFor(self, request: server.Request) -> IResource:
        self.decorate(request)
        wait = self._buckets.take(bucket_key(client_address(request)), self.clock.seconds())
        if wait > 0:
            return _Refusal(ceil(wait))
        found: IResource = super().getResourceFor(request)
        return found

    def log(self, request: http.Request) -> None:
        """One event per answer. The query stays out of it: it may hold a key."""
        _log.debug(
            "{method} {path} {status}",
            method=request.method.decode("latin-1"),
            path=(request.path or b"").decode("latin-1"),
            status=request.code,
        )


class _Refusal(Resource):
    """429 for whoever asks too often."""

    isLeaf = True

    def __init__(self, retry_after: int) -> None:
        super().__init__()
        self._retry_after = retry_after

    def render(self, request: server.Request) -> int:
        send(request, error_reply(RateLimited("too many requests", self._retry_after)))
        return server.NOT_DONE_YET


def client_address(request: server.Request) -> str:
    """Who asks: the peer, or whom a proxy on this very machine names last in ``X-Forwarded-For``."""
    peer: str = getattr(request.client, "host", "local")
    forwarded = header(request, "x-forwarded-for")
    if forwarded is not None and (peer == "::1" or peer.startswith("127.")):
        return forwarded.rpartition(",")[2].strip() or peer
    return peer


def make_site(
    reactor: IReactorTime,
    settings: Settings,
    authenticator: Authenticator,
    namespaces: Namespaces,
    directory: RoomDirectory,
    rooms: LiveRooms,
    *,
    signal: IResource | None,
    health: Callable[[], Mapping[str, Any]],
    ready: Callable[[], str],
    metrics: Callable[[], bytes],
    observed: Observed,
    access: TurnAccess,
) -> Site:
    """The site of contract section 3.

    :param rooms: the SFU's rooms, for live participants.
    :param signal: what answers at ``/v1/webrtc/signal``; None leaves that address empty.
    :param health: what ``/health`` shows.
    :param ready: why the node is not ready; empty when it is.
    :param metrics: the Prometheus text.
    :param observed: what runs for a namespace, one mapping a node.
    :param access: issues TURN credentials.
    """
    origins = Origins(settings.limits.origins)
    internal_ip, longest = settings.internal_ip, settings.auth.max_token_ttl
    limit = settings.sfu.max_participants
    leaves: dict[str, IResource] = {
        "health": HealthResource(origins, health),
        "ready": ReadyResource(origins, internal_ip, ready),
        "metrics": MetricsResource(origins, internal_ip, metrics),
        "v1/openapi.json": DocumentResource(origins, describe(settings)),
        "v1/webrtc/turn/credentials": TurnCredentialsResource(origins, authenticator, access),
        "v1/webrtc/rooms": RoomsResource(origins, authenticator, namespaces, directory, rooms, limit),
        "v1/webrtc/guest": GuestResource(origins, authenticator, namespaces, settings.web.local_guests, longest),
        "v1/namespace/webrtc/enable": EnablementResource(origins, authenticator, namespaces, reactor, enable=True),
        "v1/namespace/webrtc/disable": EnablementResource(origins, authenticator, namespaces, reactor, enable=False),
        "v1/namespace/webrtc/status": StatusResource(origins, authenticator, namespaces, observed),
    }
    if signal is not None:
        leaves["v1/webrtc/signal"] = signal
    root = JsonResource(origins)
    for address, leaf in leaves.items():
        put_resource(root, address.encode().split(b"/"), leaf, origins)
    if settings.web.room_page:
        put_page(root, origins)
    return Site(root, settings, reactor)


def put_resource(node: Resource, path: list[bytes], leaf: IResource, origins: Origins) -> None:
    """Hang *leaf* into the tree at *path*, with the inner nodes that it takes."""
    for name in path[:-1]:
        if name not in node.children:
            node.putChild(name, JsonResource(origins))
        node = node.children[name]
    node.putChild(path[-1], leaf)
