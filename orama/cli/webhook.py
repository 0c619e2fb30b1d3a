"""``orama webhook``: what an application is told."""

from __future__ import annotations

import click

from orama.cli.command import Call, command, namespace_option
from orama.cli.output import fields


@click.group("webhook")
def webhook() -> None:
    """What an application is told of rooms."""


@command(webhook, "test")
@namespace_option
def test(call: Call, namespace: str) -> None:
    """Send an event that means nothing, once, and say whether it was taken."""
    call.answer(call.control.post("webhooks", {"namespace": namespace}), fields)
