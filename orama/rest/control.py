"""The control socket: what the command line asks of the node on the same host (contract, sections 6 and 7).

HTTP over a Unix socket, ``DATA/control.sock``, which only the user that runs the node can open. Whoever can is the
owner of every namespace, and the only one who is ever shown a TURN secret. The resources that the public API has too
are the very same here, with another idea of who is asking.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.web.resource import IResource
from twisted.web.server import Request

from orama.cluster.keyring import Keyring
from orama.cluster.namespaces import Namespaces
from orama.cluster.rotation import Rotation
from orama.cluster.turn_access import TurnAccess
from orama.errors import BadRequest, StartError
from orama.permissions import EVERYTHING, known
from orama.rest.auth import Authenticator, Principal
from orama.rest.control_cluster import ClusterKeyResource
from orama.rest.control_nodes import Drained, Listed, Removed, Reported, ReportResource, nodes_resource
from orama.rest.control_turn import TurnSessions, turn_resources
from orama.rest.internal import REQUEST_BURST, REQUEST_RATE
from orama.rest.json_resource import JsonResource, Reply, json_object, query
from orama.rest.origins import Origins
from orama.rest.resources import EnablementResource, Observed, StatusResource
from orama.rest.site import Site
from orama.rest.tokens import Tokens
from orama.settings import Settings
from orama.timestamp import timestamp

SOCKET = "control.sock"
#: The header that says whose owner the caller is.
NAMESPACE_HEADER = "X-Namespace"
#: Bytes of a body: the report of a process with 10,000 rooms has about 1 MB.
MAX_BODY = 4 << 20
#: Seconds that a token lives when nobody says.
TOKEN_TTL = 3600


class _Owner(Authenticator):
    """Lets everybody in as an owner of the namespace that the request names."""

    def __init__(self, namespaces: Namespaces, tokens: Tokens) -> None:
        super().__init__(namespaces, tokens)
        self._namespaces = namespaces

    async def authenticate(
        self, headers: Mapping[str, str], query: Mapping[str, str] | None = None, subprotocols: Sequence[str] = ()
    ) -> Principal:
        namespace = headers.get(NAMESPACE_HEADER.lower())
        if namespace is None:
            raise BadRequest("invalid_request", f"{NAMESPACE_HEADER} is missing")
        await self._namespaces.require(namespace)
        return Principal(namespace, "owner", "control", None, EVERYTHING, "control")


class _NamespacesResource(JsonResource):
    """``/v1/control/namespaces``"""

    def __init__(self, namespaces: Namespaces) -> None:
        super().__init__(Origins(()))
        self._namespaces = namespaces

    async def get(self, request: Request) -> Reply:
        found = await self._namespaces.list()
        return Reply(body={"namespaces": [_shown(each.name, each.created_at, each.webrtc) for each in found]})

    async def post(self, request: Request) -> Reply:
        name = _text(_fields(request, "name"), "name")
        made = await self._namespaces.create(name)
        return Reply(201, _shown(made.name, made.created_at, made.webrtc))

    async def delete(self, request: Request) -> Reply:
        name = query(request).get("name")
        if name is None:
            raise BadRequest("invalid_request", "name is missing")
        await self._namespaces.delete(name)
        return Reply(204)


class _KeysResource(JsonResource):
    """``/v1/control/keys``"""

    def __init__(self, namespaces: Namespaces) -> None:
        super().__init__(Origins(()))
        self._namespaces = namespaces

    async def post(self, request: Request) -> Reply:
        body = _fields(request, "namespace", "role")
        key = await self._namespaces.create_key(_text(body, "namespace"), _text(body, "role"))
        return Reply(201, {"namespace": key.namespace, "role": key.role, "api_key": key.text})


class _TokensResource(JsonResource):
    """``/v1/control/tokens``"""

    def __init__(self, namespaces: Namespaces, tokens: Tokens, clock: Any) -> None:
        super().__init__(Origins(()))
        self._namespaces = namespaces
        self._tokens = tokens
        self._clock = clock

    async def post(self, request: Request) -> Reply:
        body = _fields(request, "namespace", "user_id", "role", "rooms", "permissions", "ttl")
        namespace, user_id = _text(body, "namespace"), _text(body, "user_id")
        role = _text(body, "role") if "role" in body else "member"
        rooms, permissions = _texts(body, "rooms"), _texts(body, "permissions")
        ttl = body.get("ttl", TOKEN_TTL)
        if not isinstance(ttl, int) or isinstance(ttl, bool):
            raise BadRequest("invalid_request", "ttl is a whole number of seconds")
        if permissions is not None and not all(known(permission) for permission in permissions):
            text = f"permissions are {', '.join(sorted(EVERYTHING))}, and publish: or subscribe: with a kind or source"
            raise BadRequest("invalid_request", text)
        await self._namespaces.require(namespace)
        token = self._tokens.issue(namespace, user_id, ttl=ttl, role=role, rooms=rooms, permissions=permissions)
        return Reply(
            201,
            {
                "token": token,
                "namespace": namespace,
                "user_id": user_id,
                "role": role,
                "rooms": rooms,
                "permissions": permissions or sorted(EVERYTHING),
                "expires_at": timestamp(self._clock.seconds() + ttl),
            },
        )


class _CredentialsResource(JsonResource):
    """``/v1/control/turn/credentials``"""

    def __init__(self, namespaces: Namespaces, access: TurnAccess) -> None:
        super().__init__(Origins(()))
        self._namespaces = namespaces
        self._access = access

    async def post(self, request: Request) -> Reply:
        body = _fields(request, "namespace", "user_id")
        namespace = _text(body, "namespace")
        await self._namespaces.require(namespace)
        grant = await self._access.issue(namespace, _text(body, "user_id") if "user_id" in body else None)
        return Reply(
            body={
                "uris": list(grant.uris),
                "username": grant.username,
                "password": grant.password,
                "ttl": grant.ttl,
            }
        )


class _SecretResource(JsonResource):
    """``/v1/control/turn/secret``: what coturn's ``static-auth-secret`` takes."""

    def __init__(self, namespaces: Namespaces) -> None:
        super().__init__(Origins(()))
        self._namespaces = namespaces

    async def get(self, request: Request) -> Reply:
        namespace = query(request).get("namespace")
        if namespace is None:
            raise BadRequest("invalid_request", "namespace is missing")
        await self._namespaces.require(namespace)
        config = await self._namespaces.config(namespace)
        return Reply(body={"namespace": namespace, "secret": config.turn_secret})


class _RotateResource(JsonResource):
    """``/v1/control/turn/secret/rotate``"""

    def __init__(self, namespaces: Namespaces) -> None:
        super().__init__(Origins(()))
        self._namespaces = namespaces

    async def post(self, request: Request) -> Reply:
        namespace = _text(_fields(request, "namespace"), "namespace")
        await self._namespaces.rotate_secret(namespace)
        return Reply(body={"namespace": namespace, "rotated": True})


@frozen
class ControlCalls:
    """What the command line asks of the cluster, beside namespaces."""

    nodes: Listed
    drain: Drained
    remove: Removed
    reports: Reported
    keyring: Keyring
    rotate_key: Callable[[], Awaitable[Rotation]]
    #: Address below ``/v1/control`` → what answers there besides.
    more: Mapping[str, IResource] = field(factory=dict)
    #: The TURN server of this node.
    turn: TurnSessions | None = None


def control_site(
    reactor: Any,
    settings: Settings,
    namespaces: Namespaces,
    tokens: Tokens,
    access: TurnAccess,
    *,
    observed: Observed,
    calls: ControlCalls,
) -> Site:
    """What answers on the control socket.

    :param observed: what runs for a namespace, one mapping a node.
    """
    nowhere, owner = Origins(()), _Owner(namespaces, tokens)
    root = JsonResource(nowhere)
    tree = root
    for name in (b"v1", b"control"):
        inner = JsonResource(nowhere)
        tree.putChild(name, inner)
        tree = inner
    turn, webrtc = JsonResource(nowhere), JsonResource(nowhere)
    turn.putChild(b"credentials", _CredentialsResource(namespaces, access))
    secret = _SecretResource(namespaces)
    secret.putChild(b"rotate", _RotateResource(namespaces))
    turn.putChild(b"secret", secret)
    if calls.turn is not None:
        for name, resource in turn_resources(calls.turn, namespaces.require, reactor).items():
            turn.putChild(name, resource)
    webrtc.putChild(b"enable", EnablementResource(nowhere, owner, namespaces, reactor, enable=True))
    webrtc.putChild(b"disable", EnablementResource(nowhere, owner, namespaces, reactor, enable=False))
    webrtc.putChild(b"status", StatusResource(nowhere, owner, namespaces, observed))
    tree.putChild(b"namespaces", _NamespacesResource(namespaces))
    tree.putChild(b"keys", _KeysResource(namespaces))
    tree.putChild(b"tokens", _TokensResource(namespaces, tokens, reactor))
    tree.putChild(b"turn", turn)
    tree.putChild(b"webrtc", webrtc)
    cluster = JsonResource(nowhere)
    cluster.putChild(b"key", ClusterKeyResource(calls.keyring, calls.rotate_key))
    tree.putChild(b"cluster", cluster)
    tree.putChild(b"nodes", nodes_resource(calls.nodes, calls.drain, calls.remove))
    tree.putChild(b"report", ReportResource(calls.reports))
    for address, resource in calls.more.items():
        tree.putChild(address.encode(), resource)
    # All units of this host have one address between them.
    limits = evolve(settings.limits, request_rate=REQUEST_RATE, request_burst=REQUEST_BURST, max_body=MAX_BODY)
    return Site(root, evolve(settings, limits=limits), reactor)


def listen_control(reactor: Any, data_dir: Path, site: Site) -> IListeningPort:
    """Bind ``control.sock`` in *data_dir*, which this process alone has: a socket that lies there is a dead one's.

    :raises StartError: it cannot be bound.
    """
    path = data_dir / SOCKET
    try:
        path.unlink(missing_ok=True)
        port: IListeningPort = reactor.listenUNIX(str(path), site, mode=0o600)
    except (OSError, CannotListenError) as error:
        site.doStop()  # listenUNIX starts the factory before it binds
        # Unix socket addresses have 108 bytes (unix(7)); Python says so, the kernel would too.
        raise StartError(f"control socket {path}: {getattr(error, 'socketError', error)}") from None
    return port


def _shown(name: str, created_at: float, webrtc: bool) -> dict[str, Any]:
    return {"name": name, "created_at": timestamp(created_at), "webrtc": webrtc}


def _fields(request: Request, *known: str) -> dict[str, Any]:
    """The body, of which null means absent.

    :raises BadRequest: there is something in it that nobody knows.
    """
    body = {name: value for name, value in json_object(request).items() if value is not None}
    for name in body:
        if name not in known:
            raise BadRequest("invalid_request", f"there is no field {name[:40]!r} here")
    return body


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise BadRequest("invalid_request", f"{name} is missing or no text")
    return value


def _texts(body: Mapping[str, Any], name: str) -> list[str] | None:
    value = body.get(name)
    if value is not None and (not isinstance(value, list) or not all(isinstance(item, str) for item in value)):
        raise BadRequest("invalid_request", f"{name} is a list of texts")
    return value
