"""``orama turn``: credentials for TURN, and the secret that makes them."""

from __future__ import annotations

import click

from orama.cli.command import Call, command, namespace_option
from orama.cli.output import fields


@click.group("turn")
def turn() -> None:
    """TURN credentials."""


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
