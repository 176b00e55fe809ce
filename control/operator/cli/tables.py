"""`weft peers`, `fdb`, `neigh`, `routes`, `flows`, `drops`: the daemon's tables.

`fdb` and `neigh` print the lines of `bridge fdb` and `ip neigh`, so that eyes and scripts transfer.
"""

from __future__ import annotations

from typing import Any

import click

from control.operator import views
from control.operator.cli.output import (
    daemon_options,
    network_option,
    print_json,
    print_table,
    quantity,
)
from control.operator.client import Client


@click.command()
@daemon_options
@network_option
def peers(daemon: Client, as_json: bool, network: str | None) -> None:
    """Who is there, over which underlay address, and what was exchanged."""
    data = daemon.ask("peers", network=network)
    if as_json:
        print_json(views.PEERS, data)
    elif _has_rows(data, "peers"):
        headers = ("PEER", "UNDERLAY", "STATE", "NETWORKS", "RX", "TX")
        print_table(headers, (_peer_row(peer) for peer in data))


def _peer_row(peer: dict[str, Any]) -> tuple[str, ...]:
    exchanged = (quantity(peer["rx_octets"], "B"), quantity(peer["tx_octets"], "B"))
    return (peer["name"], peer["underlay"], peer["state"], ",".join(peer["networks"]), *exchanged)


@click.command()
@daemon_options
@network_option
def fdb(daemon: Client, as_json: bool, network: str | None) -> None:
    """Behind which VTEP each MAC is; the lines and JSON keys of `bridge fdb show`."""
    data = daemon.ask("fdb", network=network)
    if as_json:
        print_json(views.FDB, data)
    else:
        for entry in data:
            click.echo(_fdb_line(entry))


def _fdb_line(entry: dict[str, Any]) -> str:
    words = [entry["mac"], "dev", entry["ifname"], "dst", entry["dst"]]
    for key in ("port", "vni"):
        if key in entry:
            words += [key, str(entry[key])]
    return " ".join([*words, *entry["flags"], entry["state"]]).rstrip()


@click.command()
@daemon_options
@network_option
def neigh(daemon: Client, as_json: bool, network: str | None) -> None:
    """Which MAC has each IP, for answering ARP and neighbor solicitations; the lines of `ip neigh`."""
    data = daemon.ask("neigh", network=network)
    if as_json:
        print_json(views.NEIGH, data)
    else:
        for entry in data:
            click.echo(f"{entry['ip']} dev {entry['dev']} lladdr {entry['mac']} {entry['state']}")


@click.command()
@daemon_options
@network_option
def routes(daemon: Client, as_json: bool, network: str | None) -> None:
    """Behind which node each subnet of a routed network is, and how the kernel is told."""
    data = daemon.ask("routes", network=network)
    if as_json:
        print_json(views.ROUTES, data)
    elif _has_rows(data, "routes"):
        headers = ("NETWORK", "SUBNET", "VTEP", "VIA", "MAC", "DEV", "STATE")
        print_table(headers, (tuple(route[key.lower()] or "-" for key in headers) for route in data))


@click.command()
@daemon_options
@network_option
def flows(daemon: Client, as_json: bool, network: str | None) -> None:
    """The verdicts that are remembered, and what they have carried."""
    data = daemon.ask("flows", network=network)
    if as_json:
        print_json(views.FLOWS, data)
    elif _has_rows(data, "flows"):
        headers = ("NETWORK", "DIRECTION", "SOURCE", "DESTINATION", "VERDICT", "FRAMES", "OCTETS", "IDLE")
        print_table(headers, (_flow_row(flow) for flow in data))


def _flow_row(flow: dict[str, Any]) -> tuple[str, ...]:
    ends = (flow["network"], flow["direction"], flow["src"], flow["dst"])
    carried = (str(flow["frames"]), quantity(flow["octets"], "B"), f"{flow['idle_s']:.0f}s")
    return (*ends, flow["verdict"], *carried)


@click.command()
@daemon_options
@network_option
def drops(daemon: Client, as_json: bool, network: str | None) -> None:
    """Why frames went no further, and how many: most first."""
    data = daemon.ask("drops", network=network)
    if as_json:
        print_json(views.DROPS, data)
    elif _has_rows(data, "drops"):
        rows = sorted(data.items(), key=lambda item: -item[1])
        print_table(("FRAMES", "REASON", "MEANING"), ((str(n), name, _meaning(name)) for name, n in rows))


def _meaning(reason: str) -> str:
    from overlay.verdict import DropReason

    return DropReason[reason].value if reason in DropReason.__members__ else ""


def _has_rows(data: Any, what: str) -> bool:
    if not data:
        click.echo(f"no {what}", err=True)
    return bool(data)
