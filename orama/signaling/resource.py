"""``/v1/webrtc/signal``: who may come in, before a WebSocket is made of the request (contract, sections 2 to 4).

What is no proper WebSocket upgrade gets an HTTP error in JSON. A proper one that may not come in is accepted and closed
at once with 4401, 4403 or 4404, because a page in a browser sees closing codes and no HTTP status. What Autobahn is
given is a clean request: without the query, and without a credential in any header.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from attrs import frozen
from autobahn.twisted.resource import WebSocketResource
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from orama.errors import BadRequest, Forbidden, NotAuthenticated, NotFound, OramaError, Unavailable
from orama.rest.internal import Gate
from orama.rest.json_resource import Reply, error_reply, failure_reply, header, headers, query, send
from orama.rest.origins import Origins
from orama.settings import Settings
from orama.signaling.codes import FORBIDDEN, NOT_AUTHENTICATED, NOT_FOUND, TRY_AGAIN_LATER
from orama.signaling.interfaces import Visitor
from orama.signaling.messages import ROOM_ID
from orama.signaling.service import SignalingService
from orama.signaling.visitors import VISITOR, read_visitor
from orama.signaling.websocket import SUBPROTOCOL, Admitted, Refused, SignalProtocol

#: The only version there is (RFC 6455, 4.1).
VERSION = "13"
#: Headers of our answers that are not for a 101.
_NOT_FOR_UPGRADE = frozenset({b"content-type", b"content-length", b"date", b"server", b"connection", b"vary"})

_log = Logger()


class Authenticates(Protocol):
    """``rest.auth.Authenticator``."""

    async def authenticate(
        self, headers: Mapping[str, str], query: Mapping[str, str] | None, subprotocols: Sequence[str]
    ) -> Visitor: ...


class NotUpgrade(OramaError):
    """A WebSocket upgrade is wanted here (RFC 9110, 15.5.22)."""

    status = 426


class SignalResource(Resource):
    """The door.

    :param require: raises NotFound when a namespace has no WebRTC (``Namespaces.config``).
    :param gate: lets clients in that another node of the cluster forwards; None on addresses that are no node's.
    """

    isLeaf = True

    def __init__(
        self,
        service: SignalingService,
        settings: Settings,
        authenticator: Authenticates,
        require: Callable[[str], Awaitable[object]],
        gate: Gate | None = None,
    ) -> None:
        super().__init__()
        self._gate = gate
        self._service = service
        self._authenticator = authenticator
        self._require = require
        self._origins = Origins(settings.limits.origins)

    def render(self, request: Request) -> int:
        if request.method != b"GET":
            reply = {"error": "only GET is possible here", "code": "method_not_allowed"}
            send(request, Reply(405, reply, {"Allow": "GET"}))
            return NOT_DONE_YET
        gone = request.notifyFinish()
        work = Deferred.fromCoroutine(self._answer(request))
        work.addErrback(_failed, request)
        gone.addErrback(lambda _: work.cancel())
        return NOT_DONE_YET

    async def _answer(self, request: Request) -> None:
        if header(request, "upgrade") is None:
            await self._without_upgrade(request)
        offered = _check_handshake(request)
        verdict = await self._verdict(request, offered)
        _upgrade(request, self._service, verdict, offered)

    async def _without_upgrade(self, request: Request) -> None:
        """Someone looks at the address with something else: the errors are the same, and the good case is 426."""
        visitor = await self._authenticator.authenticate(headers(request), query(request), ())
        await self._require(visitor.namespace)
        _room_of(request)
        raise NotUpgrade("upgrade_required", "this address speaks WebSocket")

    async def _verdict(self, request: Request, offered: Sequence[str]) -> Admitted | Refused:
        if self._gate is not None and VISITOR.encode() in (request.args or {}):
            return await self._forwarded(request, self._gate)
        origin = header(request, "origin")
        if origin is not None and not self._origins.permits(origin, header(request, "host") or ""):
            return Refused(FORBIDDEN, "this origin may not call")
        arguments = query(request)
        try:
            visitor = await self._authenticator.authenticate(headers(request), arguments, offered)
            await self._require(visitor.namespace)
        except NotAuthenticated as error:
            return Refused(NOT_AUTHENTICATED, error.message)
        except Forbidden as error:
            return Refused(FORBIDDEN, error.message)
        except NotFound as error:
            return Refused(NOT_FOUND, error.message)
        except Unavailable as error:
            return Refused(TRY_AGAIN_LATER, error.message)
        try:
            room_id = _room_of(request)
        except BadRequest as error:
            return Refused(NOT_FOUND, error.message)
        if room_id is not None and visitor.rooms is not None and room_id not in visitor.rooms:
            return Refused(FORBIDDEN, "this token is not for that room")
        return Admitted(visitor, room_id)

    async def _forwarded(self, request: Request, gate: Gate) -> Admitted | Refused:
        """Another node has let somebody in, and says who it is."""
        try:
            gate.admit(request, addressed=True)
            visitor = read_visitor(query(request)[VISITOR])
            await self._require(visitor.namespace)
            return Admitted(visitor, _room_of(request), from_node=True)
        except OramaError as error:
            _log.warn("a forwarded client is refused: {why}", why=error.message, code=error.code)
            code = NOT_AUTHENTICATED if isinstance(error, NotAuthenticated) else TRY_AGAIN_LATER
            return Refused(code, error.message)


def _failed(failure: Failure, request: Request) -> None:
    if failure.check(CancelledError) is not None:
        return
    error = failure.value
    if isinstance(error, NotUpgrade):
        reply = error_reply(error)
        send(request, Reply(reply.status, reply.body, {"Upgrade": "websocket", "Sec-WebSocket-Version": VERSION}))
    else:
        send(request, failure_reply(failure))


def _room_of(request: Request) -> str | None:
    room_id = query(request).get("room")
    if room_id is not None and not ROOM_ID.fullmatch(room_id):
        raise BadRequest("invalid_room_id", "room must be 1 to 128 characters of A-Z a-z 0-9 _ . : -")
    return room_id


def _check_handshake(request: Request) -> list[str]:
    """RFC 6455, 4.2.1; the subprotocols that are offered.

    :raises OramaError: it is no WebSocket handshake that we know.
    """
    if request.clientproto != b"HTTP/1.1" or "websocket" not in _tokens(request, "upgrade"):
        raise NotUpgrade("upgrade_required", "this address speaks WebSocket over HTTP/1.1")
    if "upgrade" not in _tokens(request, "connection"):
        raise BadRequest("invalid_request", "Connection does not say upgrade")
    if header(request, "sec-websocket-version") != VERSION:
        raise NotUpgrade("unsupported_version", f"this address speaks version {VERSION} of WebSocket")
    try:
        key = b64decode(header(request, "sec-websocket-key") or "", validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 16:
        raise BadRequest("invalid_request", "Sec-WebSocket-Key is not 16 bytes in base64")
    return [name.strip() for name in (header(request, "sec-websocket-protocol") or "").split(",") if name.strip()]


def _tokens(request: Request, name: str) -> set[str]:
    return {token.strip().lower() for token in (header(request, name) or "").split(",")}


@frozen
class _OneProtocol:
    """What ``WebSocketResource`` takes a protocol from: this one, once."""

    service: SignalingService
    protocol: SignalProtocol

    def buildProtocol(self, address: IAddress) -> SignalProtocol:
        self.protocol.factory = self.service.factory
        return self.protocol


def _upgrade(request: Request, service: SignalingService, verdict: Admitted | Refused, offered: Sequence[str]) -> None:
    """Hand the connection over."""
    ours = {
        name.decode("latin-1"): values[-1].decode("latin-1")
        for name, values in request.responseHeaders.getAllRawHeaders()
        if name.lower() not in _NOT_FOR_UPGRADE
    }
    clean = {
        b"Host": b"localhost",
        b"Upgrade": b"websocket",
        b"Connection": b"Upgrade",
        b"Sec-WebSocket-Version": VERSION.encode(),
        b"Sec-WebSocket-Key": (header(request, "sec-websocket-key") or "").encode("latin-1"),
    }
    if SUBPROTOCOL in offered:
        clean[b"Sec-WebSocket-Protocol"] = SUBPROTOCOL.encode()
    for name, _ in tuple(request.requestHeaders.getAllRawHeaders()):
        request.requestHeaders.removeHeader(name)
    for name, value in clean.items():
        request.requestHeaders.setRawHeaders(name, [value])
    request.uri = b"/"
    channel = request.channel
    WebSocketResource(_OneProtocol(service, SignalProtocol(service, verdict, ours))).render(request)
    # The channel waits for the end of a request that has none, and each would keep the other for ever.
    channel.requests.clear()
