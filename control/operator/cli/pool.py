"""`weft members`, `join`, `leave`, `keys`: the gossip pool."""

from __future__ import annotations

from typing import Any

import click

from control.operator import views
from control.operator.cli.output import daemon_options, print_json, print_table
from control.operator.client import Client
from control.operator.failure import ExitCode, Failure

# Ours
PATIENCE = 60.0  # seconds; the daemon gives a join 30 and a key query less


@click.command()
@daemon_options
def members(daemon: Client, as_json: bool) -> None:
    """Everybody in the pool: this node, its peers, and stock agents."""
    data = daemon.ask("members")
    if as_json:
        print_json(views.MEMBERS, data)
    else:
        headers = ("MEMBER", "ADDRESS", "STATE", "INCARNATION", "TAGS")
        print_table(headers, (_member_row(member) for member in data))


def _member_row(member: dict[str, Any]) -> tuple[str, ...]:
    tags = ",".join(f"{key}={value}" for key, value in sorted(member["tags"].items()))
    return (member["name"], member["address"], member["state"], str(member["incarnation"]), tags)


@click.command()
@daemon_options
@click.argument("hosts", nargs=-1, required=True, metavar="HOST[:PORT]…")
@click.pass_context
def join(ctx: click.Context, daemon: Client, as_json: bool, hosts: tuple[str, ...]) -> None:
    """Join the pool these hosts are in.  Exit 1 if none of them answered."""
    data = daemon.tell("join", {"hosts": list(hosts)}, timeout=PATIENCE)
    if as_json:
        print_json(views.JOIN, data)
    else:
        for each in data:
            click.echo(f"{each['host']}: {'joined' if each['joined'] else each['why']}")
    ctx.exit(ExitCode.OK if any(each["joined"] for each in data) else ExitCode.CHECK_FAILED)


@click.command()
@daemon_options
def leave(daemon: Client, as_json: bool) -> None:
    """Leave the pool until the daemon is restarted; it goes on with its static peers."""
    data = daemon.tell("leave", {}, timeout=PATIENCE)
    if as_json:
        print_json(views.LEAVE, data)
    else:
        click.echo("left the pool", err=True)


@click.command()
@daemon_options
@click.argument("step", type=click.Choice(["list", "install", "use", "remove"]))
@click.argument("key", required=False, metavar="[KEY]")
@click.pass_context
def keys(ctx: click.Context, daemon: Client, as_json: bool, step: str, key: str | None) -> None:
    """List or rotate the pool's keys: install the new one, use it, remove the old one.

    KEY is base64 of 16, 24 or 32 octets, as `serf keygen` makes it.  Exit 1 if a member refused or was
    silent: repeat the step before taking the next.
    """
    if (step == "list") == (key is not None):
        raise Failure(
            f"keys {step}: expected {'no key' if step == 'list' else 'a base64 key'}",
            why="a step is about one key, and the list about all",
            advice="weft keys install KEY; weft keys use KEY; weft keys remove OLD",
            code=ExitCode.USAGE,
        )
    data = daemon.tell("keys", {"step": step, "key": key}, timeout=PATIENCE)
    if as_json:
        print_json(views.KEYS, data)
    else:
        _print_keys(data)
    is_complete = data["responses"] == data["members"] and not data["errors"]
    ctx.exit(ExitCode.OK if is_complete else ExitCode.CHECK_FAILED)


def _print_keys(data: dict[str, Any]) -> None:
    if data["keys"]:
        rows = (
            (key, str(count), "yes" if key in data["primary_keys"] else "")
            for key, count in data["keys"].items()
        )
        print_table(("KEY", "MEMBERS", "ENCRYPTS"), rows)
    click.echo(f"{data['responses']} of {data['members']} members answered", err=True)
    for name, why in data["errors"].items():
        click.echo(f"{name}: {why}", err=True)
