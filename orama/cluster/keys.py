"""API keys: ``ak_{random}:{namespace}``. Only a hash is stored; the key is shown once, when it is made.

The first characters of the random part name the row, the hash of the whole decides, compared in
constant time. A key has 190 bits, so a plain hash of it gives nothing to guess.
"""

from __future__ import annotations

import hmac
import re
import secrets
from hashlib import sha256

from attrs import field, frozen
from sqlalchemy import Executable, insert, select
from twisted.internet.interfaces import IReactorTime

from orama.errors import BadRequest
from orama.store.database import Database
from orama.store.tables import api_keys

ROLES = ("owner", "member")
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_ID_LENGTH = 12
_RANDOM_LENGTH = 44
_FORM = re.compile(rf"ak_([A-Za-z0-9]{{{_RANDOM_LENGTH}}}):([a-z0-9-]{{1,63}})\Z")


@frozen
class ApiKey:
    """A key that has just been made; this is the only time that its text exists."""

    key_id: str
    namespace: str
    role: str
    text: str = field(repr=False)


def new_key(namespace: str, role: str) -> ApiKey:
    """:raises BadRequest: there is no such role."""
    if role not in ROLES:
        raise BadRequest("invalid_request", "role is owner or member")
    random = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_LENGTH))
    return ApiKey(random[:_ID_LENGTH], namespace, role, f"ak_{random}:{namespace}")


def key_row(key: ApiKey, now: float) -> Executable:
    """The statement that remembers *key*."""
    row = {"id": secrets.token_hex(16), "namespace": key.namespace, "role": key.role, "key_id": key.key_id}
    return insert(api_keys).values(**row, hash=_hash(key.text), created_at=now)


class ApiKeys:
    """The stored keys."""

    def __init__(self, database: Database, clock: IReactorTime) -> None:
        self._database = database
        self._clock = clock

    async def create(self, namespace: str, role: str) -> ApiKey:
        """A new key of *namespace*, which must exist: the caller has looked, the constraint makes sure."""
        key, now = new_key(namespace, role), self._clock.seconds()
        await self._database.write(key_row(key, now))
        return key

    async def role_of(self, text: str) -> tuple[str, str] | None:
        """(namespace, role) of the key *text*; None when it is none of ours."""
        form = _FORM.match(text)
        if form is None:
            return None
        key_id = form[1][:_ID_LENGTH]
        columns = select(api_keys.c.hash, api_keys.c.namespace, api_keys.c.role)
        row = await self._database.read(
            lambda connection: connection.execute(columns.where(api_keys.c.key_id == key_id)).first()
        )
        # A key that is not there is compared too, so that the time does not tell which ids are.
        stored = "" if row is None else row.hash
        if not hmac.compare_digest(_hash(text), stored) or row is None:
            return None
        return row.namespace, row.role


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()
