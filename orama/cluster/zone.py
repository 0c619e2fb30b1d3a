"""The zone of the base domain: rows of ``dns_records`` and the nodes become answers (RFC 1034, 4.3.2; RFC 2308).

Nothing here is bytes or sockets. The apex has SOA and NS; the name servers are the nodes; A and AAAA records of a
node go unanswered while it is dead. There are no wildcards, aliases or delegations, and no DNSSEC.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import Protocol

from attrs import field, frozen

from orama.wire.dns import Rcode, Type

#: Seconds that anything of ours may be remembered, denials too: nodes come and go.
TTL = 60
#: SOA timers (RFC 1912, 2.2). Nobody transfers this zone, every node reads the database.
REFRESH, RETRY, EXPIRE = 3600, 600, 604800
#: RFC 2181, 8.
MAX_TTL = 2**31 - 1
#: A name as text, without the final dot (253 characters are 255 bytes).
MAX_TEXT = 253
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_STORED = {"A": Type.A, "AAAA": Type.AAAA, "TXT": Type.TXT}
_ADDRESSES = (Type.A, Type.AAAA)
#: Questions about more than one set of records, none of which is for strangers.
_TRANSFERS = frozenset({Type.TKEY, Type.TSIG, Type.IXFR, Type.AXFR, Type.MAILB, Type.MAILA})


@frozen
class DnsRecord:
    """A row of ``dns_records``: *fqdn* in lower case, without a final dot."""

    fqdn: str
    type: str
    value: str
    ttl: int
    namespace: str | None = None
    node_id: str | None = None
    created_at: float = 0.0


class ZoneNode(Protocol):
    """What the zone needs to know of a node."""

    @property
    def node_id(self) -> str: ...

    @property
    def public_ip(self) -> str: ...


@frozen
class Soa:
    mname: str
    rname: str
    serial: int


@frozen
class Resource:
    """One record of an answer. What stands in *value* is the address, the text, or the host."""

    name: str
    type: Type
    value: str | Soa
    ttl: int = TTL
    node_id: str | None = None


@frozen
class Answer:
    rcode: Rcode
    answers: Sequence[Resource] = ()
    authority: Sequence[Resource] = ()
    additional: Sequence[Resource] = ()

    @property
    def authoritative(self) -> bool:
        return self.rcode in (Rcode.NOERROR, Rcode.NXDOMAIN)


Alive = Callable[[str], bool]


@frozen
class Zone:
    """All that is known at one time; :func:`make_zone` builds it."""

    base: str
    rname: str
    serial: int
    #: Name servers and the nodes they stand for; None for one outside the zone.
    servers: tuple[tuple[str, str | None], ...]
    names: dict[str, tuple[Resource, ...]] = field(repr=False)
    #: Names that only have names below them.
    between: frozenset[str] = field(repr=False)
    #: Rows that cannot be served, and why.
    rejected: tuple[str, ...] = ()

    def answer(self, name: str, kind: int, alive: Alive) -> Answer:
        """What to say to the question for records of type *kind* of *name*, in lower case."""
        if not within(name, self.base) or kind in _TRANSFERS:
            return Answer(Rcode.REFUSED)
        if kind == Type.OPT:
            return Answer(Rcode.FORMERR)
        if name == self.base:
            apex = [self._soa(alive), *self._servers(alive)]
        elif name in self.names or name in self.between:
            apex = []
        else:
            return Answer(Rcode.NXDOMAIN, authority=[self._soa(alive)])
        found = [*apex, *_living(self.names.get(name, ()), alive)]
        if kind == Type.ANY:  # RFC 8482, 4.3: something small instead of everything
            wanted = [Resource(name, Type.HINFO, "RFC8482")] if found else []
        else:
            wanted = [record for record in found if record.type == kind]
        if not wanted:
            return Answer(Rcode.NOERROR, authority=[self._soa(alive)])
        return Answer(Rcode.NOERROR, wanted, additional=self._glue(wanted))

    def _soa(self, alive: Alive) -> Resource:
        servers = self._servers(alive)
        mname = str(servers[0].value) if servers else self.base
        return Resource(self.base, Type.SOA, Soa(mname, self.rname, self.serial))

    def _servers(self, alive: Alive) -> list[Resource]:
        """The NS records: those of living nodes, or all when none lives."""
        living = [name for name, node in self.servers if node is None or alive(node)]
        return [Resource(self.base, Type.NS, name) for name in living or [name for name, _ in self.servers]]

    def _glue(self, answers: Iterable[Resource]) -> list[Resource]:
        hosts = [str(record.value) for record in answers if record.type == Type.NS]
        return [record for host in hosts for record in self.names.get(host, ()) if record.type in _ADDRESSES]


def make_zone(
    base: str,
    records: Iterable[DnsRecord],
    nodes: Sequence[ZoneNode],
    serial: int = 0,
    *,
    nameservers: Sequence[str] = (),
    contact: str = "",
) -> Zone:
    """The zone *base* as *records* and *nodes* have it.

    :param nodes: in the order of their numbers: the first is ``ns1``.
    :param nameservers: names of the NS records; those within the zone get the nodes' addresses, each in its turn.
    :param contact: RNAME of the SOA record, a domain name.
    """
    base = canonical(base)
    names: dict[str, list[Resource]] = {}
    servers: list[tuple[str, str | None]] = []
    glue: list[DnsRecord] = []
    rejected = []
    waiting = list(nodes)
    given = [canonical(name) for name in nameservers] or [f"ns{number}.{base}" for number, _ in enumerate(nodes, 1)]
    for name in given:
        node = waiting.pop(0) if within(name, base) and waiting else None
        servers.append((name, node.node_id if node else None))
        if node is not None:
            kind = "A" if ":" not in node.public_ip else "AAAA"
            glue.append(DnsRecord(name, kind, node.public_ip, TTL, node_id=node.node_id))
    for row in (*glue, *records):
        try:
            resource = _resource(row, base)
        except ValueError as error:
            rejected.append(f"{row.fqdn} {row.type}: {error}")
            continue
        known = names.setdefault(resource.name, [])
        if all((each.type, each.value) != (resource.type, resource.value) for each in known):
            known.append(resource)
    lame = {name for name, _ in servers if within(name, base) and name not in names}
    rejected += [f"{name} NS: there is no node and no address for it" for name in sorted(lame)]
    servers = [server for server in servers if server[0] not in lame]
    between = {above for name in names for above in _above(name, base)} - names.keys()
    fixed = {name: _one_ttl(found) for name, found in names.items()}
    rname = canonical(contact) or f"hostmaster.{base}"
    return Zone(base, rname, serial, tuple(servers), fixed, frozenset(between), tuple(rejected))


def next_serial(serial: int, now: float) -> int:
    """The serial after *serial*: the time, or one more (RFC 1982, in 32 bits). 0 is none yet."""
    time = int(now) & 0xFFFFFFFF
    return time if not serial or 0 < (time - serial) & 0xFFFFFFFF < 1 << 31 else (serial + 1) & 0xFFFFFFFF


def canonical(name: str) -> str:
    """*name* in lower case, without the final dot."""
    return name.lower().removesuffix(".")


def within(name: str, base: str) -> bool:
    """Whether *name* is *base* or below it."""
    return name == base or name.endswith(f".{base}")


def is_name(name: str) -> bool:
    """Whether *name* can stand in the zone: canonical labels of letters, digits, hyphens and underscores."""
    return len(name) <= MAX_TEXT and all(_LABEL.match(label) for label in name.split("."))


def _resource(row: DnsRecord, base: str) -> Resource:
    """:raises ValueError: *row* cannot be served."""
    kind = _STORED.get(row.type)
    if kind is None:
        raise ValueError("only A, AAAA and TXT are served")
    if not is_name(row.fqdn) or not within(row.fqdn, base):
        raise ValueError(f"is no name in {base}")
    if not 0 <= row.ttl <= MAX_TTL:
        raise ValueError("the TTL is no number of seconds")
    if kind == Type.TXT:
        return Resource(row.fqdn, kind, row.value, row.ttl)
    resource = _address(row.fqdn, row.value, row.ttl, row.node_id)
    if resource.type != kind:
        raise ValueError("the address is of the other family")
    return resource


def _address(name: str, ip: str, ttl: int, node_id: str | None) -> Resource:
    """:raises ValueError: *ip* is none."""
    address = ip_address(ip)
    return Resource(name, Type.A if address.version == 4 else Type.AAAA, str(address), ttl, node_id)


def _one_ttl(found: Sequence[Resource]) -> tuple[Resource, ...]:
    """Records of one type have one TTL, the lowest (RFC 2181, 5.2)."""
    lowest = {kind: min(each.ttl for each in found if each.type == kind) for kind in {each.type for each in found}}
    return tuple(Resource(each.name, each.type, each.value, lowest[each.type], each.node_id) for each in found)


def _above(name: str, base: str) -> Iterable[str]:
    """The names between *name* and *base*."""
    while (name := name.partition(".")[2]) and name != base and within(name, base):
        yield name


def _living(found: Iterable[Resource], alive: Alive) -> list[Resource]:
    """Without the addresses of dead nodes."""
    return [each for each in found if each.type not in _ADDRESSES or each.node_id is None or alive(each.node_id)]
