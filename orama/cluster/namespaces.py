"""Namespaces: who is served, with which keys, and with WebRTC or without.

What is written here is what is *wanted*; :mod:`orama.cluster.enablement` writes it and waits until it is so. On a
single node :meth:`Namespaces.create` enables WebRTC along with the namespace, so that one command gives a tenant that
works; in a cluster that is a decision of its own.
"""

from __future__ import annotations

import re
from typing import Any

from attrs import frozen
from sqlalchemy import Executable, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from twisted.internet.defer import DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.cluster.desired import Blocks as Blocks
from orama.cluster.desired import DesiredNamespace, read_desired
from orama.cluster.desired import SfuPlace as SfuPlace
from orama.cluster.desired import TurnPlace as TurnPlace
from orama.cluster.desired import WebRtcConfig as WebRtcConfig
from orama.cluster.enablement import WITH_THE_NAMESPACE, Enablement, Progress, nobody_looks
from orama.cluster.keys import ApiKey, ApiKeys, key_row, new_key
from orama.cluster.nodes import NodeRegistry
from orama.cluster.placement import SFU, TURN
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

_log = Logger()


@frozen
class Namespace:
    name: str
    created_at: float
    #: Whether WebRTC is wanted.
    webrtc: bool


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


class Namespaces:
    """The namespaces of the cluster's database."""

    def __init__(
        self,
        database: Database,
        data: DataDirectory,
        seal: Seal,
        registry: NodeRegistry,
        enablement: Enablement,
        settings: Settings,
        clock: IReactorTime,
    ) -> None:
        self._database = database
        self._data = data
        self._seal = seal
        self._registry = registry
        self._enablement = enablement
        self._settings = settings
        self._clock = clock
        self._changing = DeferredLock()
        self.keys = ApiKeys(database, clock)

    async def start(self) -> str | None:
        """Make ready: on a database without namespaces, make :data:`DEFAULT` with WebRTC and an owner key.

        :return: the key, which stands in ``DATA/default.api-key`` too, or None when nothing was made.
        """
        found = await self.list()
        if found:
            if [namespace.name for namespace in found] == [DEFAULT] and await self._unfinished():
                await self._enablement.enable(DEFAULT, WITH_THE_NAMESPACE)
            return None
        key = new_key(DEFAULT, "owner")
        file = self._data.write(DEFAULT_KEY_FILE, key.text.encode() + b"\n")
        try:
            await self._insert(DEFAULT, key)
        except Conflict:  # another node of this database was first
            file.unlink(missing_ok=True)
            return None
        try:
            await self._enablement.enable(DEFAULT, WITH_THE_NAMESPACE)
        except OramaError:
            file.unlink(missing_ok=True)
            await self._delete(DEFAULT)
            raise
        return key.text

    async def _unfinished(self) -> bool:
        """Whether a first start of ours ended before :data:`DEFAULT` was ever enabled."""
        status = await self.status(DEFAULT)
        never = not status.enabled and status.enabled_at is None
        return never and (self._data / DEFAULT_KEY_FILE).exists()

    async def list(self) -> list[Namespace]:
        """All namespaces, by name."""
        name, row = tables.namespaces.c.name, tables.namespaces.outerjoin(config_table)
        every = select(name, tables.namespaces.c.created_at, config_table.c.enabled).select_from(row).order_by(name)
        rows = await self._database.read(lambda connection: connection.execute(every).all())
        return [Namespace(row.name, row.created_at, bool(row.enabled)) for row in rows]

    async def create(self, name: str, *, webrtc: bool | None = None) -> Namespace:
        """:raises BadRequest: ``invalid_namespace``.

        :raises Conflict: ``namespace_exists``.
        :raises InsufficientStorage: ``no_free_ports``; the namespace is then not there either.
        :param webrtc: None is yes on a single node, no in a cluster.
        """
        self.check_name(name)
        if webrtc is None:
            webrtc = len(self._registry.nodes) <= 1
        async with self._changing:
            now = await self._insert(name, None)
            if webrtc:
                try:
                    await self._enablement.enable(name, WITH_THE_NAMESPACE)
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
                await self._enablement.disable(name)
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

    async def enable(self, name: str, by: str = "api", progress: Progress = nobody_looks) -> None:
        """Serve WebRTC in *name*. What came along with the namespace is not there already, the first time.

        :raises NotFound: ``namespace_not_found``.
        :raises Conflict: ``already_enabled``.
        :raises OramaError: as :meth:`Enablement.enable`.
        """
        status = await self.status(name)
        if status.enabled and status.enabled_by != WITH_THE_NAMESPACE:
            raise Conflict("already_enabled", "WebRTC is enabled in this namespace already")
        if not await self._confirm(name, by):
            await self._enablement.enable(name, by, progress)

    async def _confirm(self, name: str, by: str) -> bool:
        given = update(config_table).where(
            config_table.c.namespace == name,
            config_table.c.enabled.is_(True),
            config_table.c.enabled_by == WITH_THE_NAMESPACE,
        )
        (confirmed,) = await self._database.write(given.values(enabled_by=by))
        return bool(confirmed)

    async def disable(self, name: str, progress: Progress = nobody_looks) -> None:
        """Serve WebRTC in *name* no more: rooms, ports and the secret go.

        :raises NotFound: ``namespace_not_found``.
        :raises Conflict: ``not_enabled``.
        """
        await self.require(name)
        await self._enablement.disable(name, progress)

    async def rotate_secret(self, name: str) -> None:
        """A new TURN secret for *name*; the old one is good for one more time to live.

        :raises NotFound: ``namespace_not_found``.
        :raises Conflict: ``not_enabled``.
        """
        await self.require(name)
        await self._enablement.rotate_secret(name)

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
        """What this node needs to know of *name*.

        :raises NotFound: ``webrtc_not_enabled``.
        :raises Unavailable: ``secret_unreadable``: none of the cluster's keys has sealed it.
        """
        desired = (await self.desired(name)).get(name)
        if desired is None or not desired.enabled:
            raise NotFound("webrtc_not_enabled", "WebRTC is not enabled in this namespace")
        return self.config_of(desired)

    def config_of(self, desired: DesiredNamespace) -> WebRtcConfig:
        """:raises Unavailable: ``secret_unreadable``."""
        nodes = {node.node_id: node for node in self._registry.nodes}
        try:
            return desired.config(
                self._registry.node_id,
                nodes,
                lambda sealed: self._seal.open(sealed, desired.namespace),
                self._clock.seconds(),
            )
        except BrokenSeal:
            raise Unavailable(
                "secret_unreadable", "the TURN secret was sealed with another key: is cluster.key the cluster's?"
            ) from None

    async def desired(self, name: str | None = None) -> dict[str, DesiredNamespace]:
        """What is wanted of every namespace that has, or had, WebRTC; of *name* alone when it is given."""
        ttl = self._settings.turn.credential_ttl
        return await self._database.read(lambda connection: read_desired(connection, ttl, name))

    def check_name(self, name: str) -> None:
        """:raises BadRequest: ``invalid_namespace``."""
        longest = _MAX_LABEL - (len(_LABEL_PREFIX) if self._settings.base_domain else 0)
        if len(name) > longest or _NAME.match(name) is None:
            raise BadRequest(
                "invalid_namespace",
                f"a namespace is 1 to {longest} of a-z, 0-9 and -, and neither begins nor ends with -",
            )

    async def _insert(self, name: str, key: ApiKey | None) -> float:
        now = self._clock.seconds()

        counts = self._enablement.counts(self._registry.nodes)
        numbers = {"sfu_node_count": counts[SFU], "turn_node_count": counts[TURN]}
        statements: tuple[Executable, ...] = (
            insert(tables.namespaces).values(name=name, created_at=now),
            insert(config_table).values(namespace=name, enabled=False, rooms_on_join=True, **numbers),
            *(() if key is None else (key_row(key, now),)),
        )
        try:
            await self._database.write(*statements)
        except IntegrityError:
            raise Conflict("namespace_exists", "there is a namespace of that name") from None
        return now

    async def _delete(self, name: str) -> None:
        gone = delete(tables.namespaces).where(tables.namespaces.c.name == name)
        await self._database.write(gone)

    async def _row(self, name: str) -> Any:
        one = select(config_table).where(config_table.c.namespace == name)
        return await self._database.read(lambda connection: connection.execute(one).first())
