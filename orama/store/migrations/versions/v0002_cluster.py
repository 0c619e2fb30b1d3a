"""Roles of nodes, what a node tells of itself, and the secret before the current one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_INTEGERS = ("internal_port", "turn_port", "turns_port", "cpus", "memory_mb", "memory_free_mb", "namespaces", "streams")


def upgrade() -> None:
    op.add_column("namespace_webrtc_config", sa.Column("enablement", sa.String(32)))
    op.add_column("namespace_webrtc_config", sa.Column("turn_secret_previous_encrypted", sa.Text))
    op.add_column("namespace_webrtc_config", sa.Column("turn_secret_rotated_at", sa.Double))
    op.create_table(
        "webrtc_roles",
        sa.Column("namespace", sa.String(63), sa.ForeignKey("namespaces.name", ondelete="CASCADE"), primary_key=True),
        sa.Column("role", sa.String(8), primary_key=True),
        sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("node_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.UniqueConstraint("namespace", "role", "node_id"),
        sa.CheckConstraint("role IN ('sfu', 'turn')", name="role"),
    )
    op.create_index(None, "webrtc_roles", ["node_id"])
    # No node has ever written a row here before, so that the table can be made anew, without defaults.
    op.drop_table("nodes")
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
        sa.Column("relay_ip", sa.String(45), nullable=False),
        sa.Column("url", sa.String(255), nullable=False),
        sa.Column("load", sa.Double, nullable=False),
        *(sa.Column(name, sa.Integer, nullable=False) for name in _INTEGERS),
    )
    op.create_index(None, "nodes", ["last_seen"])
