"""``orama monitor``: what every node of a cluster sees of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orama.cli.command import Call, command, environment_options
from orama.cli.control import Failed
from orama.cli.environments import load
from orama.cli.output import rows
from orama.cli.steps import count

if TYPE_CHECKING:
    from orama.cli.asking import Answer

_COLUMNS = (
    "node",
    "status",
    "namespace",
    "roles",
    "sfu_up",
    "turn_up",
    "rooms",
    "participants",
    "allocations",
    "error",
)
#: Parts of a report that are shown as they are.
_PARTS = (
    "capacity",
    "prerequisites",
    "namespaces",
    "certificates",
    "dns",
    "firewall",
    "runner",
    "listeners",
)


@click.group("monitor")
def monitor() -> None:
    """How a cluster is."""


@command(monitor, "report")
@environment_options
def report(call: Call, env: str | None, environments: Path | None) -> None:
    """Ask every node of a cluster at once, and show what runs on it."""
    from orama.cli.asking import ask

    environment = None if env is None else load(env, environments)
    answers = ask(call.control, environment, count("nodes that have answered"))
    nodes = [_node(answer) for answer in answers]
    call.answer({"environment": env, "nodes": nodes}, lambda shown: rows(_COLUMNS, list(_lines(shown["nodes"]))))
    if not any(answer.report for answer in answers):
        raise Failed("no_answer", f"none of the {len(answers)} nodes answers")


def _node(answer: Answer) -> dict[str, Any]:
    """One node with all that it has told, in keys that are there whether it has or not."""
    known: Mapping[str, Any] = answer.raw or {}
    node: Mapping[str, Any] = known.get("node", {})
    return {
        "node_id": answer.node,
        "address": answer.address,
        "reachable": answer.report is not None,
        "error": answer.error or None,
        "clock_skew": None if answer.skew is None else round(answer.skew, 3),
        **{name: node.get(name) for name in ("state", "ready", "version", "public_ip", "internal_ip", "uptime")},
        **{name: known.get(name, [] if name == "namespaces" else None) for name in _PARTS},
    }


def _lines(nodes: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One line for each namespace of each node, and one for a node without any."""
    for node in nodes:
        line = {"node": node["node_id"], "status": _status(node)}
        if not node["namespaces"]:
            yield {**line, "error": node["error"]}
        for namespace in node["namespaces"]:
            yield {**line, **namespace}


def _status(node: Mapping[str, Any]) -> str:
    if not node["reachable"]:
        return "unreachable"
    return node["ready"] or "ready" if node["state"] == "active" else node["state"]
