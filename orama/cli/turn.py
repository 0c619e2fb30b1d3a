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
def secret(call: Call, namespace: str) -> None:
    """Show the secret of a namespace: what coturn's static-auth-secret takes."""
    answer = call.control.get("turn/secret", {"namespace": namespace})
    call.answer(answer, lambda shown: click.echo(shown["secret"]))
