"""Somebody whom one node has let in, as it tells another that has their room.

The text goes into the query of a signed request (``orama.cluster.signing``), so that what stands in it is as good as
the cluster key. There is no credential in it.
"""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode

from attrs import frozen

from orama.errors import BadRequest
from orama.signaling.interfaces import Visitor

#: The query parameter.
VISITOR = "visitor"
_ROLES = ("owner", "member")


@frozen
class ForwardedVisitor:
    """A :class:`~orama.signaling.interfaces.Visitor` at one remove."""

    namespace: str
    role: str
    user_id: str | None
    rooms: frozenset[str] | None
    permissions: frozenset[str]


def write_visitor(visitor: Visitor, room_id: str) -> str:
    """*visitor*, who may join *room_id*, as base64url; of the rooms of a token only this one counts there."""
    fields = {
        "namespace": visitor.namespace,
        "role": visitor.role,
        "user_id": visitor.user_id,
        "rooms": None if visitor.rooms is None else [room_id],
        "permissions": sorted(visitor.permissions),
    }
    return urlsafe_b64encode(json.dumps(fields, separators=(",", ":")).encode()).decode().rstrip("=")


def read_visitor(text: str) -> ForwardedVisitor:
    """:raises BadRequest: ``invalid_visitor``."""
    try:
        padded = text + "=" * (-len(text) % 4)
        fields = json.loads(urlsafe_b64decode(padded.encode("ascii")))
        namespace, role, user_id, rooms, permissions = (
            fields[name] for name in ("namespace", "role", "user_id", "rooms", "permissions")
        )
    except (binascii.Error, ValueError, KeyError, TypeError, RecursionError):
        raise BadRequest("invalid_visitor", "that describes no visitor") from None
    good = (
        isinstance(namespace, str)
        and role in _ROLES
        and isinstance(user_id, str | None)
        and (rooms is None or _texts(rooms))
        and _texts(permissions)
    )
    if not good:
        raise BadRequest("invalid_visitor", "that describes no visitor")
    return ForwardedVisitor(
        namespace, role, user_id, None if rooms is None else frozenset(rooms), frozenset(permissions)
    )


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
