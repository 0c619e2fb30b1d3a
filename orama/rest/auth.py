"""Who is asking: API keys and JSON Web Tokens, in every form and in the order of the contract's section 2.

The first credential that is there decides: one that is wrong is an error and nothing after it is
looked at. Texts of errors and log events never hold what was presented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol
from urllib.parse import unquote

from attrs import frozen

from orama.errors import Forbidden, NotAuthenticated
from orama.permissions import EVERYTHING, granted
from orama.rest.tokens import Claims, Tokens

#: The subprotocol that a client offers beside ``auth.…``; the only one that a server ever selects.
SUBPROTOCOL = "orama"
_AUTH = "auth."
_KEY = "ak_"


@frozen
class Principal:
    """Somebody who has been let in.

    :param role: ``owner`` or ``member``.
    :param user_id: the token's ``sub``; None under an API key.
    :param rooms: room ids that may be joined; None is all of the namespace.
    :param method: ``api_key`` or ``jwt``.
    """

    namespace: str
    role: str
    user_id: str | None
    rooms: frozenset[str] | None
    permissions: frozenset[str]
    method: str

    @property
    def owner(self) -> bool:
        return self.role == "owner"

    def may_join(self, room_id: str) -> bool:
        return self.rooms is None or room_id in self.rooms

    def require_owner(self) -> None:
        """:raises Forbidden: this is a member."""
        if not self.owner:
            raise Forbidden("forbidden", "this needs the role owner")

    def require_room(self, room_id: str) -> None:
        """:raises Forbidden: the token is for other rooms."""
        if not self.may_join(room_id):
            raise Forbidden("forbidden", "this token is not for that room")


class Keys(Protocol):
    """What the authenticator asks of the stored keys and namespaces."""

    async def role_of(self, key: str) -> tuple[str, str] | None:
        """(namespace, role) of an API key; None when there is no such key."""

    async def require(self, namespace: str) -> None:
        """:raises NotFound: ``namespace_not_found``."""


class Authenticator:
    """Turns the headers of a request into a :class:`Principal`."""

    def __init__(self, keys: Keys, tokens: Tokens) -> None:
        self._keys = keys
        self.tokens = tokens

    async def authenticate(
        self,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None = None,
        subprotocols: Sequence[str] = (),
    ) -> Principal:
        """Let somebody in.

        :param headers: under lower-case names.
        :param query: of a WebSocket upgrade, decoded; None for everything else, which has no such form.
        :param subprotocols: of a WebSocket upgrade, as they came.
        :raises NotAuthenticated: nothing was presented, or something wrong.
        :raises NotFound: a good token for a namespace that does not exist.
        """
        key, token = _presented(headers, query or {}, subprotocols)
        if key is not None:
            return await self._by_key(key)
        if token is not None:
            return await self._by_token(token)
        raise NotAuthenticated("missing_credentials", "an API key or a token is needed")

    async def _by_key(self, key: str) -> Principal:
        found = await self._keys.role_of(key)
        if found is None:
            raise NotAuthenticated("invalid_api_key", "this API key is not known")
        namespace, role = found
        return Principal(namespace, role, None, None, EVERYTHING, "api_key")

    async def _by_token(self, token: str) -> Principal:
        claims: Claims = self.tokens.verify(token)
        await self._keys.require(claims.namespace)
        permissions = EVERYTHING if claims.permissions is None else granted(claims.permissions)
        return Principal(claims.namespace, claims.role, claims.sub, claims.rooms, permissions, "jwt")


def _presented(
    headers: Mapping[str, str], query: Mapping[str, str], subprotocols: Sequence[str]
) -> tuple[str | None, str | None]:
    """(API key, token) of the first form that is there; at most one of them is not None."""
    if "x-api-key" in headers:
        return headers["x-api-key"].strip(), None
    if "authorization" in headers:
        scheme, _, value = headers["authorization"].strip().partition(" ")
        if scheme.lower() == "apikey":
            return value.strip(), None
        if scheme.lower() == "bearer":
            return None, value.strip()
        raise NotAuthenticated("invalid_authorization", "Authorization is ApiKey or Bearer here")
    if "api_key" in query:
        return unquote(query["api_key"]), None
    if "token" in query:
        return _either(query["token"])
    for offered in subprotocols if SUBPROTOCOL in subprotocols else ():
        if offered.startswith(_AUTH):
            return _either(offered.removeprefix(_AUTH))
    return None, None


def _either(text: str) -> tuple[str | None, str | None]:
    """A key or a token: only keys begin with ``ak_``. A colon may still be percent-encoded."""
    return (unquote(text), None) if text.startswith(_KEY) else (None, text)
