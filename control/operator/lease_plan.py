"""The lease plan of a network as the operator has it: its founders, and the range they may lease of."""

from __future__ import annotations

from control.intent.leaseplan import LeasePlan, default_subnet_len, range_between
from control.membership.recordbody import IpNetwork
from control.operator.schema import NetworkConfig
from overlay.errors import LeaseError


def configured_plan(network: NetworkConfig, subnet_len: int | None = None) -> LeasePlan | None:
    """The plan; None: the network has no founders.  `subnet_len` is the length where none is told.

    Raises:
        LeaseError: The network cannot be divided so.
    """
    if not network.founders:
        return None
    whole = whole_network(network)
    length = network.subnet_len or subnet_len or default_subnet_len(whole)
    within = range_between(whole, length, network.subnet_min, network.subnet_max)
    return LeasePlan(whole, length, tuple(network.founders), within)


def whole_network(network: NetworkConfig) -> IpNetwork:
    """What is divided.

    Raises:
        LeaseError: The operator has not said.
    """
    if network.network is None:
        raise LeaseError(f"network {network.id}: expected `network`, found none")
    return network.network
