"""`weft leases`: whose each subnet of a routed network is, and what only an operator may decide about it."""

from __future__ import annotations

import click

from control.operator import views
from control.operator.cli.output import daemon_options, network_option, print_json, print_table
from control.operator.client import Client

# Ours
PATIENCE = 60.0  # seconds


@click.group(invoke_without_command=True)
@daemon_options
@network_option
@click.pass_context
def leases(ctx: click.Context, daemon: Client, as_json: bool, network: str | None) -> None:
    """Whose each subnet is: held, granted and not taken up yet, released, or static."""
    if ctx.invoked_subcommand is not None:
        return
    data = daemon.ask("leases", network=network)
    if as_json:
        print_json(views.LEASES, data)
    elif not data:
        click.echo("no leases", err=True)
    else:
        rows = ((each["network"], each["subnet"], each["node"], each["state"]) for each in data)
        print_table(("NETWORK", "SUBNET", "NODE", "STATE"), rows)


@leases.command()
@daemon_options
@click.argument("subnet", metavar="SUBNET")
def release(daemon: Client, as_json: bool, subnet: str) -> None:
    """Take SUBNET back from a node that will never come back.

    Asked of the founder that granted it, and refused while the holder is alive.
    """
    data = daemon.tell("leases/release", {"subnet": subnet}, timeout=PATIENCE)
    if as_json:
        print_json(views.RELEASE, data)
    else:
        click.echo(f"released {data['released']}", err=True)


@leases.command()
@daemon_options
@click.option(
    "--without",
    "without",
    multiple=True,
    metavar="NODE",
    help="A node that will never come back (repeatable).",
)
def adopt(daemon: Client, as_json: bool, without: tuple[str, ...]) -> None:
    """Have this founder grant again, with what the pool holds for its book.

    For a founder whose disk was lost, copied, set back or moved.  Start every node of the pool first: refused
    while one is missing that might hold a subnet.
    """
    data = daemon.tell("leases/adopt", {"without": list(without)}, timeout=PATIENCE)
    if as_json:
        print_json(views.ADOPT, data)
    else:
        for network, count in data["grants"].items():
            click.echo(f"network {network}: {count} grants adopted", err=True)
