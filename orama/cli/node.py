"""``orama node``: the machines."""

from __future__ import annotations

import click

from orama.cli.command import Call, command
from orama.cli.output import rows


@click.group("node")
def node() -> None:
    """Nodes."""


@command(node, "list")
def list_nodes(call: Call) -> None:
    """Show the nodes and how they are."""
    columns = ("node_id", "status", "public_ip", "internal_ip", "version")
    call.answer(call.control.get("nodes"), lambda shown: rows(columns, shown["nodes"]))
