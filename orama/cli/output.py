"""What a command prints: JSON for programs, a table for people. Neither is cut to the width of a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click


def show(answer: Any) -> None:
    """*answer* as JSON."""
    click.echo(json.dumps(answer, indent=2, ensure_ascii=False))


def rows(columns: Sequence[str], items: Sequence[Mapping[str, Any]]) -> None:
    """One line an item, under the names of its *columns*; one that no item has is left out."""
    from rich.table import Table

    columns = [column for column in columns if not items or any(column in item for item in items)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), no_wrap=True)
    for item in items:
        table.add_row(*(text_of(item.get(column)) for column in columns))
    _write(table)


def fields(item: Mapping[str, Any]) -> None:
    """One line a field."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    for name, value in item.items():
        for line in value if isinstance(value, list) and value else [value]:
            table.add_row(name.replace("_", " "), text_of(line))
            name = ""
    _write(table)


def text_of(value: Any) -> str:
    """A value in a cell."""
    if value is None or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(text_of, value))
    return str(value)


def _write(table: Any) -> None:
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    needed = Measurement.get(console, console.options.update(width=10_000), table).maximum
    console.width = max(console.width, needed)
    console.print(table, soft_wrap=True)
