"""The entry point: ``orama COMMAND …``, with exit code 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import click

from orama._version import __version__
from orama.cli.cluster import cluster
from orama.cli.inspector import inspector
from orama.cli.monitor import monitor
from orama.cli.namespace import namespace
from orama.cli.node import node
from orama.cli.token import token
from orama.cli.turn import turn
from orama.cli.webhook import webhook


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="orama")
def main() -> None:
    """Ask, and tell, the orama node on this host."""


for each in (cluster, inspector, monitor, namespace, node, token, turn, webhook):
    main.add_command(each)

if __name__ == "__main__":
    main()
