"""The description of the HTTP interface (OpenAPI 3.1), complete enough for a program to test us with it.

It is built from the settings, because limits are part of what it says. The signalling messages are not
HTTP and are described in the documentation.
"""

from __future__ import annotations

from typing import Any

from orama._version import __version__
from orama.rest.schemas import schemas
from orama.settings import Settings
from orama.sfu.stats import RoomStats

_Schema = dict[str, Any]

ROOM_ID_PATTERN = "^[A-Za-z0-9_.:-]{1,128}$"
PEER_ID = "[0-9A-Za-z]{1,64}"

_CODES = {
    400: "The request is malformed.",
    401: "There is no credential, or a wrong one.",
    403: "The credential does not allow this.",
    404: "There is no such thing, or WebRTC is not enabled in the namespace.",
    409: "It exists already, or is in the wrong state.",
    412: "The cluster is not ready for this.",
    413: "The body is too long.",
    426: "This address speaks WebSocket only.",
    429: "Too many requests; Retry-After says when to come back.",
    503: "Not now: starting, draining, or the database does not answer.",
    507: "No free ports are left.",
}
#: What any request may be answered with.
_ALWAYS = (413, 429)
_CHALLENGE = {"WWW-Authenticate": {"schema": {"type": "string"}, "required": True}}
_RETRY = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "required": True}}


def describe(settings: Settings) -> _Schema:
    """The OpenAPI document of a node with *settings*."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Orama WebRTC",
            "version": __version__,
            "description": "TURN credentials, rooms and signalling for the namespaces of a node.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "webrtc", "description": "What clients of a namespace use."},
            {"name": "namespace", "description": "WebRTC on and off for a namespace."},
            {"name": "node", "description": "The state of the node."},
        ],
        "paths": {
            "/v1/webrtc/turn/credentials": {"post": _turn_credentials()},
            "/v1/webrtc/rooms": {"get": _list_rooms(), "post": _create_room(), "delete": _close_room()},
            "/v1/webrtc/signal": _signal(),
            "/v1/webrtc/guest": {"post": _guest()},
            "/v1/namespace/webrtc/enable": {"post": _enable()},
            "/v1/namespace/webrtc/disable": {"post": _disable()},
            "/v1/namespace/webrtc/status": {"get": _status()},
            "/v1/openapi.json": {"get": _document()},
            "/health": {"get": _health()},
            "/ready": {"get": _ready()},
            "/metrics": {"get": _metrics()},
        },
        "components": {
            "schemas": _schemas(settings.sfu.max_participants),
            "responses": {f"Error{code}": _error(code) for code in _CODES},
            "securitySchemes": {
                "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "ApiKeyAuthorization": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`ApiKey {key}`, the same key in another header.",
                },
                "Token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
            },
        },
    }


def _turn_credentials() -> _Schema:
    return _operation(
        "webrtc",
        "createTurnCredentials",
        "Credentials for the TURN servers of the namespace",
        {200: _content("TurnCredentials", "Good for making allocations until the ttl has passed.")},
        (401, 404, 503),
    )


def _list_rooms() -> _Schema:
    operation = _operation(
        "webrtc",
        "listRooms",
        "All rooms of the namespace, or one, with what goes on in it",
        {200: _content("Rooms", "The rooms.")},
        (400, 401, 403, 404, 503),
    )
    peer_id = {"type": "string", "pattern": f"^{PEER_ID}$"}
    operation["parameters"] = [
        _query("room_id", False),
        {"name": "stats", "in": "query", "required": False, "schema": {"enum": ["0", "1"]}},
        {"name": "peer_id", "in": "query", "required": False, "schema": peer_id},
    ]
    return operation


def _create_room() -> _Schema:
    operation = _operation(
        "webrtc",
        "createRoom",
        "Make a room; takes the role owner",
        {201: _content("Room", "The room.")},
        (400, 401, 403, 404, 409, 503),
    )
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref("NewRoom")}}}
    return operation


def _close_room() -> _Schema:
    operation = _operation(
        "webrtc",
        "closeRoom",
        "Close a room; takes the role owner",
        {204: {"description": "The room is gone, and everyone in it has been told."}},
        (400, 401, 403, 404, 503),
    )
    operation["parameters"] = [_query("room_id", True)]
    return operation


def _signal() -> _Schema:
    """A path without operations: OpenAPI has no words for an upgrade, so they stand in an extension."""
    secret = {"type": "string"}
    operation = _operation(
        "webrtc",
        "signal",
        "The WebSocket of the signalling",
        {101: {"description": "The WebSocket is open."}},
        (400, 401, 404, 426, 503),
    )
    operation["parameters"] = [
        _query("room", False),
        {"name": "api_key", "in": "query", "required": False, "schema": secret},
        {"name": "token", "in": "query", "required": False, "schema": secret},
    ]
    operation["subprotocols"] = {
        "orama": "The only one that is ever selected; a client that names none is served too.",
        "auth.{key or token}": "Beside `orama`: a credential, for browsers, which cannot set headers.",
    }
    operation["closingCodes"] = {
        "1001": "The node drains.",
        "4401": "Not authenticated.",
        "4403": "Forbidden: this origin, or not this room.",
        "4404": "The namespace or the room is not known.",
        "4408": "Nothing came in time.",
        "4409": "Replaced by another socket.",
        "4429": "Too many messages.",
    }
    return {
        "summary": "A WebSocket (RFC 6455): GET with an upgrade",
        "description": "JSON text frames. What is no upgrade is answered with 426, or with the error that it deserves.",
        "x-websocket": operation,
    }


def _guest() -> _Schema:
    operation = _operation(
        "webrtc",
        "createGuestToken",
        "A member token for a browser on the node's own machine",
        {200: _content("Guest", "The token.")},
        (403, 404, 503),
    )
    return _open(operation)


def _enable() -> _Schema:
    return _operation(
        "namespace",
        "enableWebRtc",
        "Serve WebRTC in the namespace; takes the role owner",
        {200: _content("Done", "It is served from now on.")},
        (401, 403, 404, 409, 412, 503, 507),
    )


def _disable() -> _Schema:
    return _operation(
        "namespace",
        "disableWebRtc",
        "Serve WebRTC in the namespace no more; takes the role owner",
        {200: _content("Done", "Rooms, ports and the TURN secret are gone.")},
        (401, 403, 404, 409, 503),
    )


def _status() -> _Schema:
    return _operation(
        "namespace",
        "webRtcStatus",
        "What is wanted for the namespace and what runs",
        {200: _content("Status", "Wanted and observed.")},
        (401, 404, 503),
    )


def _document() -> _Schema:
    document = {"description": "This document.", "content": {"application/json": {"schema": {"type": "object"}}}}
    return _open(_operation("node", "describe", "This description", {200: document}, ()))


def _health() -> _Schema:
    return _open(_operation("node", "health", "Liveness", {200: _content("Health", "The process answers.")}, ()))


def _ready() -> _Schema:
    ready = _content("Ready", "The node takes calls.")
    return _open(_operation("node", "ready", "Readiness; on the internal address only", {200: ready}, (404, 503)))


def _metrics() -> _Schema:
    text = {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return _open(_operation("node", "metrics", "Metrics; on the internal address only", {200: text}, (404,)))


def _schemas(max_participants: int) -> dict[str, _Schema]:
    text, flag = {"type": "string"}, {"type": "boolean"}
    room_id = {"type": "string", "pattern": ROOM_ID_PATTERN}
    limit = {"type": "integer", "minimum": 1, "maximum": max_participants}
    moment = {"type": "string", "format": "date-time"}
    count = {"type": "integer", "minimum": 0}
    room: _Schema = {
        "room_id": room_id,
        "participants": count,
        "max_participants": {"type": "integer", "minimum": 1},
        "node_id": text,
        "created_at": moment,
    }
    return {
        "Error": _object({"error": text, "code": {"type": "string", "pattern": "^[a-z0-9_]+$"}}),
        "TurnCredentials": _object(
            {
                "uris": {"type": "array", "items": {"type": "string", "pattern": "^turns?:"}, "minItems": 3},
                "username": {"type": "string", "pattern": "^[0-9]+:"},
                "password": text,
                "ttl": {"type": "integer", "minimum": 1},
            }
        ),
        "NewRoom": {**_object({"room_id": room_id, "max_participants": limit}), "required": ["room_id"]},
        "Room": {
            **_object({**room, "stats": {"anyOf": [_ref("RoomStats"), {"type": "null"}]}}),
            "required": list(room),
        },
        **schemas(RoomStats, RoomStats=("at",), PeerStats=("joined_at",)),
        "Rooms": _object({"rooms": {"type": "array", "items": _ref("Room")}}),
        "Guest": _object({"token": text, "namespace": text}),
        "Done": _object({"status": {"const": "ok"}, "namespace": text, "message": text}),
        "Desired": _object(
            {
                "enabled": flag,
                "sfu_node_count": count,
                "turn_node_count": count,
                "turn_credential_ttl": {"type": "integer", "minimum": 1},
                "rooms_on_join": flag,
                "enabled_by": {"type": ["string", "null"]},
                "enabled_at": {**moment, "type": ["string", "null"]},
                "disabled_at": {**moment, "type": ["string", "null"]},
            }
        ),
        "NodeState": {
            "type": "object",
            "properties": {
                "node_id": text,
                "state": {"enum": ["active", "draining", "drained", "unknown"]},
                "roles": {"type": "array", "items": {"enum": ["sfu", "turn"]}},
                "sfu_up": flag,
                "turn_up": flag,
                "rooms": {"type": "integer"},
                "participants": {"type": "integer"},
                "error": {"type": ["string", "null"]},
            },
            "required": ["node_id", "sfu_up", "turn_up"],
        },
        "Observed": _object({"nodes": {"type": "array", "items": _ref("NodeState")}}),
        "Status": _object(
            {"namespace": text, "enabled": flag, "desired": _ref("Desired"), "observed": _ref("Observed")}
        ),
        "Health": {"type": "object", "properties": {"status": text}, "required": ["status"]},
        "Ready": _object({"status": {"const": "ready"}}),
    }


def _operation(tag: str, name: str, summary: str, answers: dict[int, _Schema], errors: tuple[int, ...]) -> _Schema:
    responses = {str(code): answer for code, answer in answers.items()}
    responses |= {str(code): {"$ref": f"#/components/responses/Error{code}"} for code in sorted({*errors, *_ALWAYS})}
    security: list[dict[str, list[str]]] = [{"ApiKey": []}, {"ApiKeyAuthorization": []}, {"Token": []}]
    return {"tags": [tag], "operationId": name, "summary": summary, "responses": responses, "security": security}


def _open(operation: _Schema) -> _Schema:
    """An operation that takes no credential."""
    return {**operation, "security": []}


def _object(properties: dict[str, _Schema]) -> _Schema:
    """An object with these properties, all of them, and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _query(name: str, required: bool) -> _Schema:
    schema = {"type": "string", "pattern": ROOM_ID_PATTERN}
    return {"name": name, "in": "query", "required": required, "schema": schema}


def _content(schema: str, description: str) -> _Schema:
    return {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}


def _ref(schema: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def _error(code: int) -> _Schema:
    answer = {"description": _CODES[code], "content": {"application/json": {"schema": _ref("Error")}}}
    if code == 401:
        answer["headers"] = _CHALLENGE
    elif code == 429:
        answer["headers"] = _RETRY
    return answer
