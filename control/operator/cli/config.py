"""`weft config`: what the daemon would be told, without a daemon."""

from __future__ import annotations

import json
import os

import click

from control.operator import views
from control.operator.cli.flags import config_options
from control.operator.cli.output import daemon_options, json_option, print_json
from control.operator.client import Client
from control.operator.config import Config, as_plain, check_complete, check_supported, load
from control.operator.failure import ExitCode, Failure
from control.operator.json_schema import json_schema
from control.operator.kernel_peer import Membership, flannel_membership, membership
from control.operator.toml_text import as_toml
from overlay.errors import ConfigError


@click.group()
def config() -> None:
    """Check, show and explain the configuration."""


@config.command()
@click.argument("file", required=False)
@config_options()
@json_option
def check(file: str | None, path: str | None, as_json: bool, **flags: object) -> None:
    """All problems of FILE, together with the variables and flags in force; exit 2 if there are any."""
    source = file or path
    loaded = load(source, flags, os.environ)
    check_complete(loaded)
    later = _not_yet(loaded)
    if as_json:
        told = {"file": source, "networks": len(loaded.networks), "not_yet": later, "notes": loaded.notes}
        print_json("weft.config-check/1", told)
        return
    count = len(loaded.networks)
    click.echo(f"{source or 'flags and variables'}: ok, {count} network{'' if count == 1 else 's'}")
    for each in (*later, *loaded.notes):
        click.echo(f"note: {each}", err=True)


def _not_yet(loaded: Config) -> list[str]:
    """What is written correctly and this build, or this user, cannot run: no mistake of the operator's."""
    try:
        check_supported(loaded)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


@config.command()
@config_options(without=("socket",))
@daemon_options
@click.option("--running", is_flag=True, help="What the daemon runs with, instead of what it would.")
def show(path: str | None, daemon: Client, as_json: bool, running: bool, **flags: object) -> None:
    """The effective configuration, as a file, each value with its origin."""
    if running:
        data = daemon.ask("config")
    else:
        loaded = load(path, flags, os.environ)
        data = {"config": as_plain(loaded), "origins": loaded.origins}
    if as_json:
        print_json(views.CONFIG, data)
    else:
        click.echo(as_toml(data["config"], data["origins"]), nl=False)


@config.command()
@json_option
def schema(as_json: bool) -> None:
    """JSON Schema of the configuration file, for editors."""
    document = json_schema()
    if as_json:
        print_json("weft.config-schema/1", document)
    else:
        click.echo(json.dumps(document, indent=2))


@config.command()
@config_options(without=("network",))
@json_option
@click.option(
    "--kernel",
    "tools",
    flag_value="kernel",
    help="A host with the kernel's vxlan module and iproute2.",
)
@click.option("--flannel", "tools", flag_value="flannel", help="A host with flanneld, and etcd beside it.")
@click.option(
    "--network",
    "which",
    metavar="NAME|CIDR",
    help="Which network, where there are several; with a slash, the whole overlay, as `weft run` takes it.",
)
@click.option("--for", "host", metavar="ADDRESS", help="Only for this peer.")
@click.option("--member-address", metavar="ADDRESS/LENGTH", help="The overlay address the other host gets.")
def peer(
    path: str | None,
    as_json: bool,
    tools: str | None,
    which: str | None,
    host: str | None,
    member_address: str | None,
    **flags: object,
) -> None:
    """The commands that make the other host, with stock tools, a member of this overlay.

    \b
      weft config peer --kernel --config weft.toml --for 192.0.2.2 | ssh root@192.0.2.2 sh
      weft config peer --flannel --mode routed --network 10.5.0.0/16 --subnet 10.5.1.0/24 --peer …
    """  # noqa: D301 - click's mark for a paragraph that keeps its lines
    if tools is None:
        raise click.UsageError("expected --kernel or --flannel: with which tools the other host joins")
    is_cidr = which is not None and "/" in which  # no network's name has one
    name = None if is_cidr else which
    loaded = load(path, {**flags, "network": which if is_cidr else None}, os.environ)
    if tools == "flannel":
        members = flannel_membership(loaded, name)
    else:
        members = membership(loaded, name, own_address=member_address)
    chosen = [member for member in members if host in (None, member.host)]
    if not chosen:
        known = ", ".join(str(member.host) for member in members)
        raise Failure(
            f"no such peer: {host}",
            why=f"the network's peers are {known}",
            advice="add it to peers, then ask again",
            code=ExitCode.NO_SUCH_OBJECT,
        )
    if as_json:
        print_json("weft.config-peer/1", chosen)
    else:
        click.echo("\n\n".join(_script(member) for member in chosen))


def _script(member: Membership) -> str:
    return "\n".join([f"# {member.title}", *member.commands])
