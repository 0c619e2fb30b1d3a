"""Namespaces, their keys, WebRTC configuration, rooms and ports; nodes and DNS records."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _namespace(primary: bool = False) -> sa.Column[str]:
    target = sa.ForeignKey("namespaces.name", ondelete="CASCADE")
    return sa.Column("namespace", sa.String(63), target, primary_key=primary, nullable=False)


def upgrade() -> None:
    op.create_table(
        "namespaces",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(32), primary_key=True),
        _namespace(),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False, unique=True),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.CheckConstraint("role IN ('owner', 'member')", name="role"),
    )
    op.create_index(None, "api_keys", ["namespace"])
    op.create_table(
        "namespace_webrtc_config",
        _namespace(primary=True),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("turn_secret_encrypted", sa.Text),
        sa.Column("turn_credential_ttl", sa.Integer),
        sa.Column("sfu_node_count", sa.Integer, nullable=False),
        sa.Column("turn_node_count", sa.Integer, nullable=False),
        sa.Column("rooms_on_join", sa.Boolean, nullable=False),
        sa.Column("enabled_by", sa.String(128)),
        sa.Column("enabled_at", sa.Double),
        sa.Column("disabled_at", sa.Double),
    )
    op.create_table(
        "webrtc_rooms",
        _namespace(primary=True),
        sa.Column("room_id", sa.String(128), primary_key=True),
        sa.Column("node_id", sa.String(64), nullable=False),
        sa.Column("max_participants", sa.Integer, nullable=False),
        sa.Column("participants", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_index(None, "webrtc_rooms", ["node_id"])
    op.create_table(
        "webrtc_port_allocations",
        sa.Column("node_id", sa.String(64), primary_key=True),
        _namespace(primary=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("block", sa.Integer, nullable=False),
        sa.Column("first_port", sa.Integer, nullable=False),
        sa.Column("last_port", sa.Integer, nullable=False),
        sa.Column("allocated_at", sa.Double, nullable=False),
        sa.UniqueConstraint("host", "kind", "block"),
    )
    op.create_table(
        "nodes",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("internal_ip", sa.String(45), nullable=False),
        sa.Column("public_ip", sa.String(45), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("version", sa.String(32), nullable=False),
        sa.Column("joined_at", sa.Double, nullable=False),
        sa.Column("last_seen", sa.Double, nullable=False),
    )
    op.create_index(None, "nodes", ["last_seen"])
    op.create_table(
        "dns_records",
        sa.Column("fqdn", sa.String(255), primary_key=True),
        sa.Column("type", sa.String(8), primary_key=True),
        sa.Column("value", sa.String(512), primary_key=True),
        sa.Column("ttl", sa.Integer, nullable=False),
        sa.Column("namespace", sa.String(63)),
        sa.Column("node_id", sa.String(64)),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_index(None, "dns_records", ["node_id"])
