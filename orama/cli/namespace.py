"""``orama namespace``: who is served."""

from __future__ import annotations

from typing import Any

import click

from orama.cli.command import Call, command, namespace_option
from orama.cli.output import fields, rows
from orama.cli.steps import Steps

_service = click.argument("service", type=click.Choice(["webrtc"]))


@click.group("namespace")
def namespace() -> None:
    """Namespaces, their keys, and WebRTC in them."""


@command(namespace, "create")
@click.argument("name")
def create(call: Call, name: str) -> None:
    """Make a namespace; where there is one node, with WebRTC in it."""
    call.answer(call.control.post("namespaces", {"name": name}), fields)


@command(namespace, "list")
def list_namespaces(call: Call) -> None:
    """Show all namespaces."""
    answer = call.control.get("namespaces")
    call.answer(answer, lambda shown: rows(("name", "webrtc", "created_at"), shown["namespaces"]))


@command(namespace, "delete")
@click.argument("name")
def delete(call: Call, name: str) -> None:
    """Stop serving a namespace and forget it, with its keys and rooms."""
    call.control.delete("namespaces", {"name": name})
    call.answer({"name": name, "deleted": True}, lambda shown: click.echo(f"namespace {name} is deleted"))


@namespace.group("key")
def key() -> None:
    """API keys."""


@command(key, "create")
@namespace_option
@click.option("--role", type=click.Choice(["owner", "member"]), required=True, help="What the key may do.")
def create_key(call: Call, namespace: str, role: str) -> None:
    """Make an API key. It is shown this once: only a hash of it is kept."""
    call.answer(call.control.post("keys", {"namespace": namespace, "role": role}), fields)


@command(namespace, "enable")
@_service
@namespace_option
def enable(call: Call, service: str, namespace: str) -> None:
    """Serve WebRTC in a namespace, and wait until every node that shall does."""
    _follow(call, f"{service}/enable", namespace)


@command(namespace, "disable")
@_service
@namespace_option
def disable(call: Call, service: str, namespace: str) -> None:
    """Serve WebRTC in a namespace no more: its rooms end, and nothing of it is left on any node."""
    _follow(call, f"{service}/disable", namespace)


@command(namespace, "webrtc-status")
@namespace_option
def webrtc_status(call: Call, namespace: str) -> None:
    """Show what is wanted of a namespace, and what runs."""
    call.answer(call.control.get("webrtc/status", namespace=namespace), _status)


def _follow(call: Call, address: str, namespace: str) -> None:
    steps = Steps(call.json)
    answer = call.control.follow(address, namespace=namespace, step=steps)
    steps.done()
    call.answer(answer, _say)


def _say(answer: dict[str, Any]) -> None:
    click.echo(f"{answer['message']} in {answer['namespace']}")


def _status(answer: dict[str, Any]) -> None:
    desired, nodes = answer["desired"], answer["observed"]["nodes"]
    seen = {
        "sfu_nodes_up": f"{_up(nodes, 'sfu_up')} of {desired['sfu_node_count']}",
        "turn_nodes_up": f"{_up(nodes, 'turn_up')} of {desired['turn_node_count']}",
    }
    fields({"namespace": answer["namespace"], **desired, **(seen if desired["enabled"] else {})})
    click.echo()
    rows(("node_id", "state", "roles", "sfu_up", "turn_up", "rooms", "participants", "error"), nodes)


def _up(nodes: list[dict[str, Any]], service: str) -> int:
    return sum(1 for node in nodes if node.get(service))
