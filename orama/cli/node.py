"""``orama node``: the machines."""

from __future__ import annotations

import time
from typing import Any

import click

from orama.cli.command import Call, command
from orama.cli.control import Failed
from orama.cli.output import rows
from orama.cli.steps import Steps

#: Seconds between two looks at a node that drains.
PACE = 0.5
_node = click.argument("node_id", metavar="NODE")


@click.group("node")
def node() -> None:
    """Nodes."""


@command(node, "list")
def list_nodes(call: Call) -> None:
    """Show the nodes and how they are."""
    columns = ("node_id", "state", "status", "public_ip", "internal_ip", "version", "namespaces", "streams", "load")
    call.answer(call.control.get("nodes"), lambda shown: rows(columns, shown["nodes"]))


@command(node, "drain")
@_node
@click.option("--wait", is_flag=True, help="Come back when nothing of any namespace is left there.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait.",
)
def drain(call: Call, node_id: str, wait: bool, timeout: float) -> None:
    """Take a node out of service: its roles move to others, and nobody new comes to it."""
    steps = Steps(call.json)
    answer = call.control.post("nodes/drain", {"node_id": node_id, "draining": True})
    for move in answer.get("moves", ()):
        steps.say(f"{move['role'].upper()} of {move['namespace']} moves away from {node_id}")
    if wait:
        _wait(call, steps, node_id, timeout)
        answer = {**answer, "drained": True}
    steps.done()
    call.answer(answer, lambda _: click.echo(f"node {node_id} is {'drained' if wait else 'draining'}"))


@command(node, "activate")
@_node
def activate(call: Call, node_id: str) -> None:
    """Put a node that was drained back into service."""
    answer = call.control.post("nodes/drain", {"node_id": node_id, "draining": False})
    call.answer(answer, lambda _: click.echo(f"node {node_id} is active"))


@command(node, "remove")
@_node
@click.option("--force", is_flag=True, help="Also when it still has roles that nobody has taken over.")
def remove(call: Call, node_id: str, force: bool) -> None:
    """Forget a dead node that does not come back."""
    call.control.delete("nodes", {"node_id": node_id, **({"force": "true"} if force else {})})
    call.answer({"node_id": node_id, "removed": True}, lambda _: click.echo(f"node {node_id} is removed"))


def _wait(call: Call, steps: Steps, node_id: str, timeout: float) -> None:
    """Come back when nothing is left on the node.

    :raises Failed: ``timeout``, or somebody activated or removed it meanwhile.
    """
    deadline = time.monotonic() + timeout
    while True:
        left = _left(call.control.get("nodes")["nodes"], node_id)
        if not left:
            return
        steps({"step": "drain", "state": "waiting", "text": left})
        if time.monotonic() >= deadline:
            raise Failed("timeout", f"node {node_id} is not drained after {timeout:g} s: {left}; it goes on draining")
        time.sleep(PACE)


def _left(nodes: list[dict[str, Any]], node_id: str) -> str:
    """What is left on a node that drains; empty when nothing is."""
    found = next((each for each in nodes if each["node_id"] == node_id), None)
    if found is None:
        raise Failed("node_not_found", f"node {node_id} has been removed meanwhile")
    if found.get("state") == "active":
        raise Failed("not_draining", f"node {node_id} has been activated meanwhile")
    if found.get("alive") is False:
        return ""
    namespaces, streams = found.get("namespaces") or 0, found.get("streams") or 0
    if not namespaces and not streams:
        return ""
    return f"{namespaces} namespaces and {streams} participants are there"
