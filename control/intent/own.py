"""What we say of ourselves: our networks as a record, no more of each than a record may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from control.intent.desired import NetworkIntent, Ours, OwnPart
from control.membership.recordbody import (
    IPS_MAX,
    MACS_MAX,
    NETWORKS_MAX,
    VTEPS_MAX,
    IpNetwork,
    LeaseWord,
    NetworkRecord,
)
from overlay.addr import NetworkId, Vni


@dataclass(frozen=True, slots=True)
class Routed:
    """What a routed network says besides."""

    subnets: tuple[IpNetwork, ...] = ()
    leases: LeaseWord | None = None


def own_networks(
    networks: Sequence[NetworkIntent], ours: Ours, routed: Mapping[NetworkId, Routed] = MappingProxyType({})
) -> tuple[NetworkRecord, ...]:
    """Our record.  Of MACs and IPs beyond what one node may have, each network says an equal share."""
    told = networks[:NETWORKS_MAX]
    macs, ips = (most // max(1, len(told)) for most in (MACS_MAX, IPS_MAX))
    records = []
    for network in told:
        part = ours.parts.get(network.id, OwnPart())
        besides = routed.get(network.id, Routed())
        records.append(
            NetworkRecord(
                name=network.id,
                mode=str(network.mode),
                encap=str(network.encap),
                vni=None if network.vni is None else Vni(network.vni),
                port=network.port,
                vteps=ours.underlays[:VTEPS_MAX],
                mac=part.macs[0].mac if part.macs else None,
                subnets=besides.subnets,
                macs=part.macs[:macs],
                ips=part.ips[:ips],
                leases=besides.leases,
                network=network.network,
            )
        )
    return tuple(records)
