"""``orama turn``: credentials for TURN, the secret that makes them, and who uses them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from orama.cli.command import Call, command, namespace_option
from orama.cli.control import Failed
from orama.cli.output import fields, rows

_COLUMNS = (
    "id",
    "namespace",
    "user",
    "client",
    "transport",
    "relays",
    "age",
    "expires_in",
    "permissions",
    "channels",
    "bytes_up",
    "packets_up",
    "bytes_down",
    "packets_down",
)


@click.group("turn")
def turn() -> None:
    """TURN credentials, and the sessions of this node's TURN server."""


@command(turn, "credentials")
@namespace_option
@click.option("--user", metavar="U", help="The user whose quotas they count for.")
def credentials(call: Call, namespace: str, user: str | None) -> None:
    """Make credentials, as a client of the namespace gets them."""
    call.answer(call.control.post("turn/credentials", {"namespace": namespace, "user_id": user}), fields)


@command(turn, "secret")
@namespace_option
@click.argument("action", required=False, type=click.Choice(["rotate"]))
def secret(call: Call, namespace: str, action: str | None) -> None:
    """Show the secret of a namespace: what coturn's static-auth-secret takes.

    With "rotate" the namespace gets another one. Credentials of the one before it stay good for as long as they live.
    """
    if action == "rotate":
        call.answer(call.control.post("turn/secret/rotate", {"namespace": namespace}), fields)
        return
    answer = call.control.get("turn/secret", {"namespace": namespace})
    call.answer(answer, lambda shown: click.echo(shown["secret"]))


@command(turn, "sessions")
@click.option("--namespace", metavar="N", help="Those of one namespace.")
@click.option("--watch", is_flag=True, help="Show them again every two seconds, until interrupted.")
def sessions(call: Call, namespace: str | None, watch: bool) -> None:
    """Show who has an allocation on this node.

    Bytes and packets are those of relayed data; up is towards the peer. With --watch and --json each look is one line.
    """
    query = {**({"namespace": namespace} if namespace else {}), **({"watch": "true"} if watch else {})}
    try:
        for look in _looks(call.control.stream("turn/sessions", query)):
            if call.json:
                # What a client calls itself is nothing for a terminal to obey.
                click.echo(json.dumps(look, indent=None if watch else 2))
                continue
            if watch and sys.stdout.isatty():
                click.clear()
            rows(_COLUMNS, [_shown(session) for session in look["sessions"]])
            click.echo(f"{len(look['sessions'])} sessions")
    except KeyboardInterrupt:
        return
    if watch:
        raise Failed("broken_off", "the node went away")


@command(turn, "disconnect")
@click.option("--namespace", metavar="N", help="Those of this namespace.")
@click.option("--user", metavar="U", help="Of these, those of this user.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="P", help="Of these, the one with this relay port.")
@click.option("--id", "session_id", metavar="ID", help="The session that is called so.")
def disconnect(call: Call, namespace: str | None, user: str | None, port: int | None, session_id: str | None) -> None:
    """End sessions of this node's TURN server: --id, or --namespace and what narrows it down.

    Their allocations are gone, and connections over TCP and TLS are closed. Clients whose credentials are good may
    come again.
    """
    if (session_id is None) == (namespace is None) or (session_id is not None and (user is not None or port)):
        raise click.UsageError("Say --id, or --namespace with --user and --port as you like.")
    answer = call.control.post(
        "turn/disconnect", {"id": session_id, "namespace": namespace, "user": user, "port": port}
    )
    call.answer(answer, lambda shown: click.echo(f"{shown['disconnected']} sessions are ended"))


def _looks(lines: Iterator[Any]) -> Iterator[dict[str, Any]]:
    """Each whole list of sessions.

    :raises Failed: the node went away amid one.
    """
    found: list[Any] = []
    whole = False
    for line in lines:
        if isinstance(line.get("sessions"), int):
            yield {"time": line["time"], "sessions": found}
            found, whole = [], True
        else:
            found.append(line)
            whole = False
    if not whole:
        raise Failed("broken_off", "the node went away before it was done")


def _shown(session: dict[str, Any]) -> dict[str, Any]:
    """For a table: without fractions of seconds, and without what a terminal would obey."""
    user = session["user"]
    return {
        **session,
        "user": (user if user.isprintable() else ascii(user)) or None,
        "age": f"{session['age']:.0f} s",
        "expires_in": f"{session['expires_in']:.0f} s",
    }
