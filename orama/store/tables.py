"""The tables of the contract's section 6, as SQLAlchemy Core sees them.

Correctness rests on the constraints here and on single statements, because one of the databases
(rqlite) has no interactive transactions. Times are Unix seconds. ``migrations`` builds these tables;
a test holds the two against each other.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _namespace(primary: bool = False) -> Column[str]:
    """The column that ties a row to its namespace and lets it go with it."""
    target = ForeignKey("namespaces.name", ondelete="CASCADE")
    return Column("namespace", String(63), target, primary_key=primary, nullable=False)


namespaces = Table(
    "namespaces",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("created_at", Double, nullable=False),
)

#: An API key is ``ak_{key_id}{the rest}:{namespace}``; the hash is of the whole.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    _namespace(),
    Column("role", String(16), nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("key_id"),
    CheckConstraint("role IN ('owner', 'member')", name="role"),
    Index(None, "namespace"),
)

#: One row a namespace, from its creation on; ``enabled`` is what is wanted.
namespace_webrtc_config = Table(
    "namespace_webrtc_config",
    metadata,
    _namespace(primary=True),
    Column("enabled", Boolean, nullable=False),
    #: Sealed with the node key; None while disabled.
    Column("turn_secret_encrypted", Text),
    #: Seconds; None is the node's own setting.
    Column("turn_credential_ttl", Integer),
    Column("sfu_node_count", Integer, nullable=False),
    Column("turn_node_count", Integer, nullable=False),
    #: Whether joining a room that does not exist makes it.
    Column("rooms_on_join", Boolean, nullable=False),
    Column("enabled_by", String(128)),
    Column("enabled_at", Double),
    Column("disabled_at", Double),
    #: New with each enabling: what is written along with it is written only if it still stands here.
    Column("enablement", String(32)),
    #: The secret before the current one, good for one ``turn_credential_ttl`` after the rotation.
    Column("turn_secret_previous_encrypted", Text),
    Column("turn_secret_rotated_at", Double),
)

#: Which node does what: ``role`` is ``sfu`` or ``turn``, ``slot`` counts from 0 up to the number of nodes wanted.
webrtc_roles = Table(
    "webrtc_roles",
    metadata,
    _namespace(primary=True),
    Column("role", String(8), primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("node_id", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("namespace", "role", "node_id"),
    CheckConstraint("role IN ('sfu', 'turn')", name="role"),
    Index(None, "node_id"),
)

#: A row is the claim of the node where the room lives.
webrtc_rooms = Table(
    "webrtc_rooms",
    metadata,
    _namespace(primary=True),
    Column("room_id", String(128), primary_key=True),
    Column("node_id", String(64), nullable=False),
    Column("max_participants", Integer, nullable=False),
    Column("participants", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Index(None, "node_id"),
)

#: ``kind`` is ``sfu-signaling``, ``sfu-media`` or ``turn-relay``; ``block`` counts from 0 within its range.
webrtc_port_allocations = Table(
    "webrtc_port_allocations",
    metadata,
    Column("node_id", String(64), primary_key=True),
    _namespace(primary=True),
    Column("kind", String(16), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("block", Integer, nullable=False),
    Column("first_port", Integer, nullable=False),
    Column("last_port", Integer, nullable=False),
    Column("allocated_at", Double, nullable=False),
    UniqueConstraint("host", "kind", "block"),
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("internal_ip", String(45), nullable=False),
    Column("public_ip", String(45), nullable=False),
    #: ``active`` or ``draining``.
    Column("state", String(16), nullable=False),
    Column("version", String(32), nullable=False),
    Column("joined_at", Double, nullable=False),
    Column("last_seen", Double, nullable=False),
    #: Of node-to-node HTTP.
    Column("internal_port", Integer, nullable=False),
    Column("relay_ip", String(45), nullable=False),
    #: Of its gateway, as browsers reach it.
    Column("url", String(255), nullable=False),
    Column("turn_port", Integer, nullable=False),
    Column("turns_port", Integer, nullable=False),
    Column("cpus", Integer, nullable=False),
    Column("load", Double, nullable=False),
    Column("memory_mb", Integer, nullable=False),
    Column("memory_free_mb", Integer, nullable=False),
    Column("namespaces", Integer, nullable=False),
    Column("streams", Integer, nullable=False),
    Index(None, "last_seen"),
)

dns_records = Table(
    "dns_records",
    metadata,
    Column("fqdn", String(255), primary_key=True),
    Column("type", String(8), primary_key=True),
    Column("value", String(512), primary_key=True),
    Column("ttl", Integer, nullable=False),
    Column("namespace", String(63)),
    Column("node_id", String(64)),
    Column("created_at", Double, nullable=False),
    Index(None, "node_id"),
)
