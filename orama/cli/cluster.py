"""``orama cluster``: what all nodes have in common."""

from __future__ import annotations

import click

from orama.cli.command import Call, command
from orama.cli.output import fields


@click.group("cluster")
def cluster() -> None:
    """The cluster."""


@cluster.group("key")
def key() -> None:
    """The key with which nodes sign for each other, and secrets are sealed."""


@command(key, "show-fingerprint")
def show_fingerprint(call: Call) -> None:
    """Show which key the node uses: the same on all nodes. More than one is a rotation that is not finished."""
    call.answer(call.control.get("cluster/key"), fields)


@command(key, "rotate")
def rotate(call: Call) -> None:
    """Give all nodes a new key, or finish a rotation that stopped. Every node must be up; no call notices."""
    call.answer(call.control.post("cluster/key"), fields)
