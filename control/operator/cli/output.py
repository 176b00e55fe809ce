"""How every command prints: data on stdout, JSON when asked for, colour only where somebody sees it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from control.operator.client import DEFAULT_SOCKET, Client
from control.operator.views import envelope

Command = TypeVar("Command", bound=Callable[..., Any])

# Ours
UNBOUNDED = 10_000  # columns: a table in a pipe is never folded to a guessed width
STATE_STYLE = {"alive": "green", "suspect": "yellow", "dead": "red"}


def json_option(command: Command) -> Command:
    """`--json`, as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")(command)


def daemon_options(command: Command) -> Command:
    """`--socket`, as the parameter `daemon`: a client of it; and `--json`."""
    option = click.option(
        "--socket",
        "daemon",
        default=DEFAULT_SOCKET,
        show_default=True,
        envvar=["WEFT_NODE_SOCKET", "WEFT_SOCKET"],
        callback=lambda _ctx, _param, path: Client(path),
        help="The daemon's Unix socket; also WEFT_SOCKET.",
    )
    return option(json_option(command))


def network_option(command: Command) -> Command:
    """`--network`, one network's name."""
    return click.option("--network", metavar="NAME", help="Only this network.")(command)


def print_json(schema: str, data: object) -> None:
    """One object, on one line."""
    click.echo(json.dumps(envelope(schema, data)))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; words of `STATE_STYLE` in their colour."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell, style=STATE_STYLE.get(cell, "")) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = UNBOUNDED
    with console.capture() as capture:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def quantity(value: float, unit: str) -> str:
    """`1.2 MB`: three figures and a decimal prefix."""
    prefixes = iter(["", "k", "M", "G", "T"])
    prefix = next(prefixes)
    while value >= 1000 and prefix != "T":
        value /= 1000
        prefix = next(prefixes)
    figures = f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"
    return f"{figures} {prefix}{unit}".rstrip()


def duration(seconds: float) -> str:
    """`3h12m`, `12m05s`, `5s`."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"
