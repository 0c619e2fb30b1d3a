"""``orama token``: tokens of the node itself, for users."""

from __future__ import annotations

import click

from orama.cli.command import Call, command, namespace_option
from orama.cli.output import fields
from orama.permissions import known


@click.group("token")
def token() -> None:
    """JSON Web Tokens."""


def _permissions(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    for permission in given:
        if not known(permission):
            raise click.BadParameter(f"{permission} is no permission")
    return given


@command(token, "issue")
@namespace_option
@click.option("--user", required=True, metavar="U", help="The user's id, the token's sub.")
@click.option("--role", type=click.Choice(["owner", "member"]), default="member", show_default=True)
@click.option("--room", "rooms", multiple=True, metavar="R", help="A room that may be joined; all without. Repeatable.")
@click.option(
    "--permission",
    "permissions",
    multiple=True,
    metavar="P",
    callback=_permissions,
    help="publish, subscribe or data; publish:screen, subscribe:audio and the like; everything without. Repeatable.",
)
@click.option("--ttl", type=click.IntRange(min=1), metavar="SECONDS", help="Life of the token.  [default: 3600]")
def issue(
    call: Call,
    namespace: str,
    user: str,
    role: str,
    rooms: tuple[str, ...],
    permissions: tuple[str, ...],
    ttl: int | None,
) -> None:
    """Make a token for one user."""
    body = {
        "namespace": namespace,
        "user_id": user,
        "role": role,
        "rooms": list(rooms) or None,
        "permissions": list(permissions) or None,
        "ttl": ttl,
    }
    call.answer(call.control.post("tokens", body), fields)
