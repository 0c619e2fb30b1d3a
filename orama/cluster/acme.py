"""TXT records that prove to a certificate authority that the base domain is ours (RFC 8555, 8.4).

They stand in ``dns_records`` and are served by every node. Who may put them there, and how that is asked for, is the
business of ``rest.acme``.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

from sqlalchemy import ColumnElement, Delete, and_, delete, insert
from sqlalchemy.exc import IntegrityError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from orama.cluster.zone import TTL, DnsRecord, canonical, is_name, within
from orama.errors import BadRequest
from orama.store.database import Database
from orama.store.tables import dns_records

PREFIX = "_acme-challenge."
#: Where the data directory keeps the password.
FILE = "acme.password"
#: Seconds after which a record that nobody took away is forgotten.
LIFETIME = 3600.0
#: Heartbeats after which every node serves what has been written: one, and the time to read.
SETTLED = 2.0
_VALUE = re.compile(r"[A-Za-z0-9_-]{1,255}\Z")


class Challenges:
    """:param poke: has this node read its records at once.

    :param heartbeat: seconds between two looks of the others.
    """

    def __init__(
        self, database: Database, base_domain: str, clock: IReactorTime, poke: Callable[[], object], heartbeat: float
    ) -> None:
        self._database = database
        self._base = canonical(base_domain)
        self._clock = clock
        self._poke = poke
        self._heartbeat = heartbeat
        self._waiting: set[Deferred[None]] = set()

    async def present(self, fqdn: str, value: str) -> None:
        """Have every node answer *value* to questions for *fqdn*, along with values that are there already.

        :raises BadRequest: ``invalid_fqdn`` or ``invalid_value``.
        :raises Unavailable: the database does not answer.
        """
        name = self._checked(fqdn, value)
        now = self._clock.seconds()
        row = {"fqdn": name, "type": "TXT", "value": value, "ttl": TTL, "created_at": now}
        older = delete(dns_records).where(_is(name, value))
        try:
            await self._database.write(self._forgotten(), older, insert(dns_records).values(**row))
        except IntegrityError:
            pass  # somebody has put the same there in this moment
        self._poke()
        await self._settled()

    async def cleanup(self, fqdn: str, value: str) -> None:
        """Take *value* away again; it need not be there.

        :raises BadRequest: ``invalid_fqdn`` or ``invalid_value``.
        :raises Unavailable: the database does not answer.
        """
        name = self._checked(fqdn, value)
        await self._database.write(self._forgotten(), delete(dns_records).where(_is(name, value)))
        self._poke()

    async def forget(self) -> None:
        """Take away what is older than :data:`LIFETIME`."""
        (count,) = await self._database.write(self._forgotten())
        if count:
            self._poke()

    def stop(self) -> None:
        """Who still waits for the other nodes waits no more: ``present`` is cancelled."""
        for waiting in list(self._waiting):
            waiting.cancel()

    async def _settled(self) -> None:
        """Wait until every node serves what has been written."""
        waiting: Deferred[None] = deferLater(self._clock, SETTLED * self._heartbeat)
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)

    def _forgotten(self) -> Delete:
        old = dns_records.c.created_at < self._clock.seconds() - LIFETIME
        return delete(dns_records).where(_challenges(), old)

    def _checked(self, fqdn: str, value: str) -> str:
        name = canonical(fqdn)
        rest = name.removeprefix(PREFIX)
        if not self._base or rest == name or not is_name(name) or not within(rest, self._base):
            raise BadRequest("invalid_fqdn", f"fqdn is {PREFIX} and a name in {self._base or 'the base domain'}")
        if _VALUE.match(value) is None:
            raise BadRequest("invalid_value", "value is 1 to 255 characters of base64url without padding")
        return name


def new_password() -> bytes:
    """For the first start."""
    return secrets.token_urlsafe(32).encode()


def is_forgotten(record: DnsRecord, now: float) -> bool:
    """Whether *record* is one of ours, and too old."""
    ours = record.type == "TXT" and record.namespace is None and record.node_id is None
    return ours and record.fqdn.startswith(PREFIX) and record.created_at < now - LIFETIME


def _challenges() -> ColumnElement[bool]:
    """Rows that were put there by this module."""
    c = dns_records.c
    return and_(c.type == "TXT", c.namespace.is_(None), c.node_id.is_(None), c.fqdn.startswith(PREFIX, autoescape=True))


def _is(name: str, value: str) -> ColumnElement[bool]:
    return and_(_challenges(), dns_records.c.fqdn == name, dns_records.c.value == value)
