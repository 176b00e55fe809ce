"""`weft watch`: changes and drops as they happen, until Ctrl-C."""

from __future__ import annotations

import time
from typing import Any

import click

from control.operator import views
from control.operator.cli.output import daemon_options, print_json
from control.operator.client import Client
from control.operator.failure import ExitCode, Failure

KIND_STYLE = {"drop": "red", "learn": "green", "peer": "cyan"}


@click.command()
@daemon_options
@click.option("--type", "kinds", multiple=True, help="Only events of this kind (drop, learn, peer, …).")
def watch(daemon: Client, as_json: bool, kinds: tuple[str, ...]) -> None:
    """Changes and drops as they happen; with --json one object a line."""
    for event in daemon.watch(kind=kinds):
        if as_json:
            print_json(views.WATCH, event)
        else:
            click.echo(_line(event))
    raise Failure(
        "the daemon has stopped",
        why="it was told to end, or failed: its log says which",
        advice="weft status",
        code=ExitCode.UNREACHABLE,
    )


def _line(event: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(event["at"]))
    moment = f"{at}.{int(event['at'] * 1000) % 1000:03}"
    kind = click.style(f"{event['kind']:<6}", fg=KIND_STYLE.get(event["kind"]))
    return f"{moment} {kind} {event['network'] or '-'}  {event['text']}"
