"""Namespaces: who is served, with which keys, and with WebRTC or without.

What is written here is what is *wanted*. Whoever runs the services adds itself to ``changed`` and is told
at once, so that a namespace works without a restart; when it fails, what was written is taken back.
On a single node :meth:`Namespaces.create` enables WebRTC along with the namespace, so that one command
gives a tenant that works.
"""

from __future__ import annotations

import re
import secrets
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any

from attrs import field, frozen
from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from twisted.internet.defer import DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.cluster.keys import ApiKey, ApiKeys, new_key, store_key
from orama.cluster.ports import Blocks, PortBlocks
from orama.errors import BadRequest, Conflict, NotFound, OramaError, Unavailable
from orama.settings import Settings
from orama.store import tables
from orama.store.database import Database
from orama.store.directory import DataDirectory
from orama.store.sealing import BrokenSeal, Seal
from orama.store.tables import namespace_webrtc_config as config_table

DEFAULT = "default"
#: Where the first start leaves the owner key of :data:`DEFAULT`.
DEFAULT_KEY_FILE = "default.api-key"
#: A DNS label (RFC 1123, 2.1), which a namespace becomes a part of.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\Z")
_MAX_LABEL = 63
#: What stands before the name in ``turn.ns-{name}.{base domain}``.
_LABEL_PREFIX = "ns-"
_SECRET_BYTES = 32

_log = Logger()


@frozen
class Namespace:
    name: str
    created_at: float
    #: Whether WebRTC is wanted.
    webrtc: bool


@frozen
class WebRtcConfig:
    """All that a node needs to serve one namespace."""

    namespace: str
    #: Base64 text; the text is the HMAC key.
    turn_secret: str = field(repr=False)
    #: Seconds.
    credential_ttl: int
    rooms_on_join: bool
    blocks: Blocks


@frozen
class WebRtcStatus:
    """What is wanted of one namespace; there is no secret in it. Times are Unix seconds."""

    namespace: str
    enabled: bool
    credential_ttl: int
    sfu_node_count: int
    turn_node_count: int
    rooms_on_join: bool
    enabled_by: str | None
    enabled_at: float | None
    disabled_at: float | None


#: Told of a namespace that is to be served so from now on, or (None) no more.
Changed = Callable[[str, WebRtcConfig | None], Awaitable[None] | None]


class Namespaces:
    """The namespaces of this node's database."""

    def __init__(
        self,
        database: Database,
        data: DataDirectory,
        seal: Seal,
        ports: PortBlocks,
        settings: Settings,
        clock: IReactorTime,
    ) -> None:
        self._database = database
        self._data = data
        self._seal = seal
        self._ports = ports
        self._settings = settings
        self._clock = clock
        self._changing = DeferredLock()
        self.keys = ApiKeys(database, clock)
        self.changed: list[Changed] = []

    async def start(self) -> str | None:
        """Make ready: on a database without namespaces, make :data:`DEFAULT` with WebRTC and an owner key.

        ``changed`` is not called; ask for :meth:`configs` afterwards.

        :return: the key, which stands in ``DATA/default.api-key`` too, or None when nothing was made.
        """
        await self._ports.forget_elsewhere()
        if await self.list():
            return None
        key = new_key(DEFAULT, "owner")
        file = self._data.write(DEFAULT_KEY_FILE, key.text.encode() + b"\n")
        try:
            await self._insert(DEFAULT, key)
        except Conflict:  # another node of this database was first
            file.unlink(missing_ok=True)
            return None
        try:
            await self._enable(DEFAULT, "first start", tell=False)
        except OramaError:
            await self._delete(DEFAULT)
            raise
        return key.text

    async def list(self) -> list[Namespace]:
        """All namespaces, by name."""
        name, row = tables.namespaces.c.name, tables.namespaces.outerjoin(config_table)
        every = select(name, tables.namespaces.c.created_at, config_table.c.enabled).select_from(row).order_by(name)
        rows = await self._database.read(lambda connection: connection.execute(every).all())
        return [Namespace(row.name, row.created_at, bool(row.enabled)) for row in rows]

    async def create(self, name: str, *, webrtc: bool = True, by: str = "api") -> Namespace:
        """:raises BadRequest: ``invalid_namespace``.

        :raises Conflict: ``namespace_exists``.
        :raises InsufficientStorage: ``no_free_ports``; the namespace is then not there either.
        """
        self.check_name(name)
        async with self._changing:
            now = await self._insert(name, None)
            if webrtc:
                try:
                    await self._enable(name, by)
                except Exception:
                    await self._delete(name)
                    raise
        return Namespace(name, now, webrtc)

    async def delete(self, name: str) -> None:
        """Stop serving *name* and forget it with its keys.

        :raises NotFound: ``namespace_not_found``.
        """
        async with self._changing:
            await self.require(name)
            if (await self.status(name)).enabled:
                await self._disable(name)
            await self._delete(name)

    async def require(self, name: str) -> None:
        """:raises NotFound: ``namespace_not_found``."""
        one = select(tables.namespaces.c.name).where(tables.namespaces.c.name == name)
        if await self._database.read(lambda connection: connection.execute(one).first()) is None:
            raise NotFound("namespace_not_found", "there is no such namespace")

    async def require_webrtc(self, name: str) -> None:
        """:raises NotFound: ``namespace_not_found`` or ``webrtc_not_enabled``."""
        if not (await self.status(name)).enabled:
            raise NotFound("webrtc_not_enabled", "WebRTC is not enabled in this namespace")

    async def create_key(self, name: str, role: str) -> ApiKey:
        """:raises NotFound: ``namespace_not_found``."""
        await self.require(name)
        try:
            return await self.keys.create(name, role)
        except IntegrityError:  # it was deleted just now
            raise NotFound("namespace_not_found", "there is no such namespace") from None

    async def role_of(self, key: str) -> tuple[str, str] | None:
        """(namespace, role) of an API key; None when there is no such key."""
        return await self.keys.role_of(key)

    async def enable(self, name: str, by: str = "api") -> WebRtcConfig:
        """Serve WebRTC in *name*.

        :raises NotFound: ``namespace_not_found``.
        :raises Conflict: ``already_enabled``.
        :raises InsufficientStorage: ``no_free_ports``.
        """
        async with self._changing:
            await self.require(name)
            return await self._enable(name, by)

    async def disable(self, name: str) -> None:
        """Serve WebRTC in *name* no more: rooms, ports and the secret go.

        :raises NotFound: ``namespace_not_found``.
        :raises Conflict: ``not_enabled``.
        """
        async with self._changing:
            await self.require(name)
            await self._disable(name)

    async def status(self, name: str) -> WebRtcStatus:
        """What is wanted of *name*.

        :raises NotFound: ``namespace_not_found``.
        """
        row = await self._row(name)
        if row is None:
            raise NotFound("namespace_not_found", "there is no such namespace")
        return WebRtcStatus(
            name,
            bool(row.enabled),
            row.turn_credential_ttl or self._settings.turn.credential_ttl,
            row.sfu_node_count,
            row.turn_node_count,
            bool(row.rooms_on_join),
            row.enabled_by,
            row.enabled_at,
            row.disabled_at,
        )

    async def config(self, name: str) -> WebRtcConfig:
        """What serving *name* takes.

        :raises NotFound: ``webrtc_not_enabled``.
        :raises Unavailable: ``secret_unreadable``: the node key is not the one that sealed it.
        """
        row = await self._row(name)
        if row is None or not row.enabled:
            raise NotFound("webrtc_not_enabled", "WebRTC is not enabled in this namespace")
        try:
            secret = self._seal.open(row.turn_secret_encrypted or "", name)
        except BrokenSeal:
            raise Unavailable("secret_unreadable", "the TURN secret was sealed with another node key") from None
        blocks = await self._ports.of(name) or await self._ports.claim(name)
        ttl = row.turn_credential_ttl or self._settings.turn.credential_ttl
        return WebRtcConfig(name, secret, ttl, bool(row.rooms_on_join), blocks)

    async def configs(self) -> tuple[WebRtcConfig, ...]:
        """The configuration of every namespace that is to be served; one that cannot be is logged and left out."""
        found = []
        for namespace in await self.list():
            if not namespace.webrtc:
                continue
            try:
                found.append(await self.config(namespace.name))
            except OramaError as error:
                _log.error("{namespace} cannot be served: {reason}", namespace=namespace.name, reason=error.message)
        return tuple(found)

    async def move(self, name: str) -> WebRtcConfig:
        """Take other ports for *name*, because somebody else sits on those that it has.

        :raises InsufficientStorage: ``no_free_ports``.
        """
        await self._ports.release(name)
        await self._ports.claim(name)
        return await self.config(name)

    def check_name(self, name: str) -> None:
        """:raises BadRequest: ``invalid_namespace``."""
        longest = _MAX_LABEL - (len(_LABEL_PREFIX) if self._settings.base_domain else 0)
        if len(name) > longest or _NAME.match(name) is None:
            raise BadRequest(
                "invalid_namespace",
                f"a namespace is 1 to {longest} of a-z, 0-9 and -, and neither begins nor ends with -",
            )

    async def _enable(self, name: str, by: str, tell: bool = True) -> WebRtcConfig:
        secret = b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
        wanted = {"enabled": True, "turn_secret_encrypted": self._seal.seal(secret, name), "enabled_by": by}
        statement = (
            update(config_table)
            .where(config_table.c.namespace == name, config_table.c.enabled.is_(False))
            .values(**wanted, enabled_at=self._clock.seconds(), disabled_at=None)
        )
        if await self._database.transact(lambda connection: connection.execute(statement).rowcount) != 1:
            raise Conflict("already_enabled", "WebRTC is enabled in this namespace already")
        try:
            await self._ports.claim(name)
            config = await self.config(name)
            if tell:
                await self._tell(name, config)
        except Exception:
            await self._take_back(name, tell)
            raise
        _log.info("WebRTC is enabled in {namespace}", namespace=name)
        return config

    async def _disable(self, name: str) -> None:
        if not await self._write_disabled(name):
            raise Conflict("not_enabled", "WebRTC is not enabled in this namespace")
        try:
            await self._tell(name, None)
        except Exception:  # it is unwanted all the same, and must not keep its ports
            _log.failure("the services of {namespace} did not stop cleanly", namespace=name)
        await self._ports.release(name)
        _log.info("WebRTC is disabled in {namespace}", namespace=name)

    async def _take_back(self, name: str, tell: bool) -> None:
        """An enable has failed half-way: nothing of it stays."""
        try:
            await self._write_disabled(name)
            if tell:
                await self._tell(name, None)
            await self._ports.release(name)
        except Exception:
            _log.failure("what enabling {namespace} had written could not all be taken back", namespace=name)

    async def _write_disabled(self, name: str) -> bool:
        def work(connection: Connection) -> bool:
            unwanted = {"enabled": False, "turn_secret_encrypted": None, "disabled_at": self._clock.seconds()}
            mine = update(config_table).where(config_table.c.namespace == name, config_table.c.enabled.is_(True))
            if connection.execute(mine.values(**unwanted)).rowcount != 1:
                return False
            connection.execute(delete(tables.webrtc_rooms).where(tables.webrtc_rooms.c.namespace == name))
            return True

        return await self._database.transact(work)

    async def _tell(self, name: str, config: WebRtcConfig | None) -> None:
        for told in self.changed:
            waiting = told(name, config)
            if waiting is not None:
                await waiting

    async def _insert(self, name: str, key: ApiKey | None) -> float:
        now = self._clock.seconds()

        def work(connection: Connection) -> None:
            connection.execute(insert(tables.namespaces).values(name=name, created_at=now))
            counts = {"sfu_node_count": 1, "turn_node_count": 1}
            row = insert(config_table).values(namespace=name, enabled=False, rooms_on_join=True, **counts)
            connection.execute(row)
            if key is not None:
                store_key(connection, key, now)

        try:
            await self._database.transact(work)
        except IntegrityError:
            raise Conflict("namespace_exists", "there is a namespace of that name") from None
        return now

    async def _delete(self, name: str) -> None:
        gone = delete(tables.namespaces).where(tables.namespaces.c.name == name)
        await self._database.transact(lambda connection: connection.execute(gone))

    async def _row(self, name: str) -> Any:
        one = select(config_table).where(config_table.c.namespace == name)
        return await self._database.read(lambda connection: connection.execute(one).first())
