"""`weft status`: one screen.  `weft wait`: a script's gate."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click

from control.operator import views
from control.operator.cli.output import daemon_options, duration, print_json, quantity
from control.operator.client import Client
from control.operator.failure import ExitCode, Failure

# Ours
LABEL_COLUMNS = 12
POLL_INTERVAL = 0.1  # seconds between two questions of `wait`
STARTING = 5.0  # seconds `wait` gives a daemon that is only starting to open its socket


@click.command()
@daemon_options
@click.option(
    "--check", type=click.Choice(["live", "ready"]), help="Print nothing; exit 0 if it is so, else 1."
)
@click.pass_context
def status(ctx: click.Context, daemon: Client, as_json: bool, check: str | None) -> None:
    """Node, engine, offload rungs, networks, peers, traffic, and what is wrong with a fix beside it."""
    if check is not None:
        ctx.exit(_check(daemon, check))
    data = daemon.ask("status")
    if as_json:
        print_json(views.STATUS, data)
    else:
        click.echo("\n".join(_screen(data)))


def _check(daemon: Client, check: str) -> ExitCode:
    """0 or 1 and nothing else: container health checks keep 2 for themselves."""
    try:
        passes, word = daemon.passes({"live": "healthz", "ready": "readyz"}[check])
    except Failure as failure:
        passes, word = False, failure.error
    if not passes:
        click.echo(word, err=True)
    return ExitCode.OK if passes else ExitCode.CHECK_FAILED


def _screen(data: dict[str, Any]) -> Iterator[str]:
    yield f"weft {data['version']}  {_bold(data['node'])}  up {duration(data['uptime_s'])}"
    yield from _rows("engine", [f"{data['engine']}  {data['engine_reason']}".rstrip()])
    yield from _rows("underlays", [_underlay(underlay) for underlay in data["underlays"]])
    yield from _rows("networks", [_network(network) for network in data["networks"]])
    yield from _rows("peers", [_peers(data["peers"])])
    if "gossip" in data:
        yield from _rows("gossip", [_gossip(data["gossip"])])
    yield from _rows("traffic", [_traffic(data["rates"])])
    yield from _health(data["health"])


def _rows(label: str, texts: list[str]) -> Iterator[str]:
    for number, text in enumerate(texts or ["-"]):
        yield f"{'' if number else label:<{LABEL_COLUMNS}}{text}"


def _underlay(underlay: dict[str, Any]) -> str:
    rungs = underlay["rungs"]
    place = f"{underlay['device']} {underlay['address']} mtu {underlay['mtu']}"
    return f"{place}  egress {rungs['egress']}, ingress {rungs['ingress']}: {rungs['reason']}"


def _network(network: dict[str, Any]) -> str:
    vni = "" if network["vni"] is None else f" vni {network['vni']}"
    wire = f"{network['mode']} {network['encap']}{vni} port {network['port']}"
    return f"{network['name']}  {wire}  dev {network['device']} mtu {network['mtu']}"


def _peers(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{counts[state]} {state}" for state in ("alive", "suspect", "dead"))
    return f"{sum(counts[state] for state in ('alive', 'suspect', 'dead'))} ({shown})"


def _gossip(gossip: dict[str, Any]) -> str:
    if gossip["has_left"]:
        return f"{gossip['address']}  left the pool"
    seal = "encrypted" if gossip["encrypted"] else "not encrypted"
    refused = ", ".join(f"{reason} {count}" for reason, count in gossip["refused"].items())
    told = f"{gossip['address']}  {gossip['members']} members alive  {seal}  health {gossip['health']}"
    return f"{told}  refused {refused}" if refused else told


def _traffic(rates: dict[str, float]) -> str:
    ways = (
        f"{way} {quantity(rates[f'{way}_octets_s'] * 8, 'b/s')} {quantity(rates[f'{way}_frames_s'], 'pps')}"
        for way in ("egress", "ingress")
    )
    return "   ".join([*ways, f"drops {quantity(rates['drops_s'], '')}/s"])


def _health(problems: list[dict[str, str]]) -> Iterator[str]:
    if not problems:
        yield from _rows("health", [click.style("ok", fg="green")])
        return
    yield "# Health"
    for each in problems:
        yield f"#  {click.style('WARN', fg='yellow')} {each['problem']}  Fix: {each['fix']}"


def _bold(text: str) -> str:
    return click.style(text, bold=True)


@click.command()
@daemon_options
@click.option("--peers", "wanted", type=click.IntRange(min=0), required=True, help="How many must be alive.")
@click.option("--timeout", type=click.FloatRange(min=0), help="Give up after so many seconds (exit 6).")
def wait(daemon: Client, as_json: bool, wanted: int, timeout: float | None) -> None:
    """Block until enough peers are alive.  The daemon may be starting: it has five seconds to answer."""
    started = time.monotonic()
    with _progress(f"waiting for {wanted} peers"):
        alive = _until_alive(daemon, wanted, started, timeout)
    if as_json:
        print_json("weft.wait/1", {"alive": alive, "wanted": wanted})
    else:
        click.echo(f"{alive} of {wanted} peers alive", err=True)


def _until_alive(daemon: Client, wanted: int, started: float, timeout: float | None) -> int:
    alive = 0
    while True:
        elapsed = time.monotonic() - started
        is_over = timeout is not None and elapsed >= timeout
        try:
            alive = int(daemon.ask("status")["peers"]["alive"])
            if alive >= wanted:
                return alive
        except Failure as failure:
            if failure.code is not ExitCode.UNREACHABLE or is_over or elapsed >= STARTING:
                raise
        else:
            if is_over:
                raise _too_few(alive, wanted, timeout)
        time.sleep(POLL_INTERVAL)


def _too_few(alive: int, wanted: int, timeout: float | None) -> Failure:
    return Failure(
        f"{alive} of {wanted} peers alive after {timeout:g} s",
        why="the others have not been heard of",
        advice="weft peers",
        code=ExitCode.TIME_OUT,
    )


def _progress(text: str) -> AbstractContextManager[object]:
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)
