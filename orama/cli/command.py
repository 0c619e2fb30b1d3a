"""What every command has: ``--data-dir``, ``--json``, and an exit code that says how it went."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from attrs import frozen

from orama.cli.control import Control, Failed
from orama.cli.output import show


@frozen
class Call:
    """One command under way."""

    control: Control
    json: bool

    def answer(self, answer: Any, table: Callable[[Any], None]) -> None:
        """Print *answer*, with *table* where people read it."""
        if self.json:
            show(answer)
        else:
            table(answer)


class _Refused(click.ClickException):
    """Exit code 1, and the reason in one line on stderr."""

    def show(self, file: Any = None) -> None:
        click.echo(f"orama: {self.message}", err=True)


def command(group: click.Group | None, name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command of *group*, or of none yet, whose function gets a :class:`Call` before its own parameters."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(data_dir: Path, as_json: bool, **parameters: Any) -> None:
            try:
                function(Call(Control(data_dir), as_json), **parameters)
            except Failed as error:
                raise _Refused(" ".join(str(error).split())) from None

        run = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")(run)
        run = click.option(
            "--data-dir",
            type=click.Path(file_okay=False, path_type=Path),
            default=Path("orama-data"),
            show_default=True,
            envvar="ORAMA_DATA_DIR",
            help="Data directory of the node to ask.",
        )(run)
        return (click if group is None else group).command(name)(run)

    return decorate


#: ``--namespace N``
namespace_option = click.option("--namespace", required=True, metavar="N", help="Namespace that this is about.")


def environment_options(function: Callable[..., None]) -> Callable[..., None]:
    """``--env E`` and ``--environments FILE``, as parameters ``env`` and ``environments``."""
    function = click.option(
        "--environments",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="ORAMA_ENVIRONMENTS",
        metavar="FILE",
        help="Where environments are described.  [default: ~/.config/orama/environments.toml, "
        "/etc/orama/environments.toml]",
    )(function)
    return click.option(
        "--env", metavar="E", help="The environment to ask; without it, the cluster of the node at --data-dir."
    )(function)
