"""How a network is divided among founders: fixed blocks of equal subnets, so that no two decide about one.

10.5.0.0/16 in /24, founders n1 n2:   0 │ 1 … 127 │ 128 … 255
                                 nobody │   n1    │    n2

of 10.5.16.0 to 10.5.31.0:            0 … 15 │ 16 … 23 │ 24 … 31 │ 32 … 255
                                      nobody │   n1    │   n2    │  nobody

The range is divided, and not the network, so that each founder has something to grant.  What the blocks
follow from is what nodes must agree on, and is hashed to the pool's id; a range that is the default is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import ip_network

from control.membership.recordbody import FOUNDERS_MAX, POOL_ID_OCTETS, IpNetwork, LeaseRange
from overlay.addr import IpAddress
from overlay.errors import LeaseError

# Ours
FIRST_SLOT = 1  # the first subnet is left alone, as Flannel does: it shares its address with the network


@dataclass(frozen=True, slots=True)
class LeasePlan:
    """How a network is divided: the same on every node, or the nodes are of two pools.

    Attributes:
        within: The range that is leased of; None: the whole network but its first subnet.

    Raises:
        LeaseError: It cannot be divided so.
    """

    network: IpNetwork
    subnet_len: int
    founders: tuple[str, ...]
    within: LeaseRange | None = None

    def __post_init__(self) -> None:
        if not self.founders or len(set(self.founders)) != len(self.founders):
            raise LeaseError(
                f"founders: expected names, each once, found {', '.join(self.founders) or 'none'}"
            )
        if len(self.founders) > FOUNDERS_MAX:
            raise LeaseError(f"founders: expected at most {FOUNDERS_MAX}, found {len(self.founders)}")
        longest = self.network.max_prefixlen - 2
        if not self.network.prefixlen < self.subnet_len <= longest:
            found = f"/{self.subnet_len}"
            raise LeaseError(
                f"subnet length: expected /{self.network.prefixlen + 1} to /{longest}, found {found}"
            )
        if self.within is not None:
            self._check_range(*self.within)
            if self.leased == range(FIRST_SLOT, self.slots):  # the id of those who were told no range
                object.__setattr__(self, "within", None)
        count = self.leased.stop - self.leased.start
        if count < len(self.founders):
            what = "network" if self.within is None else "range"
            raise LeaseError(f"{what}: expected a subnet for each founder, found {count} in all")

    def _check_range(self, first: IpNetwork, last: IpNetwork) -> None:
        for subnet in (first, last):
            if self.slot_of(subnet) is None:
                expected = f"subnets of {self.network} with /{self.subnet_len}"
                raise LeaseError(f"range: expected {expected}, found {subnet}")
        if int(first.network_address) > int(last.network_address):
            raise LeaseError(f"range: expected the first subnet before the last, found {first} and {last}")

    @property
    def slots(self) -> int:
        """How many subnets there are, the first included."""
        return int(1 << (self.subnet_len - self.network.prefixlen))

    @property
    def leased(self) -> range:
        """The slots that are leased."""
        if self.within is None:
            return range(FIRST_SLOT, self.slots)
        first, last = (self.slot_of(subnet) for subnet in self.within)
        return range(first or 0, (last or 0) + 1)

    @property
    def pool_id(self) -> bytes:
        """What two nodes must agree on before they speak of leases.

        Without a range it is as it was before there were any: what is on disk by it still holds.
        """
        bounds = ("", *map(str, self.within)) if self.within is not None else ()  # no founder's name is empty
        text = "\0".join((str(self.network), str(self.subnet_len), *self.founders, *bounds))
        return blake2b(text.encode(), digest_size=POOL_ID_OCTETS).digest()

    def block(self, founder: str) -> range:
        """The slots that founder alone decides about; none for who is no founder."""
        if founder not in self.founders:
            return range(0)
        index, leased = self.founders.index(founder), self.leased
        count = leased.stop - leased.start
        first, end = (leased.start + count * each // len(self.founders) for each in (index, index + 1))
        return range(first, end)

    def subnet(self, slot: int) -> IpNetwork:
        """The subnet in that slot."""
        base = int(self.network.network_address) + (slot << (self.network.max_prefixlen - self.subnet_len))
        return type(self.network)((base, self.subnet_len))

    def slot_of(self, subnet: IpNetwork) -> int | None:
        """The slot that subnet is, None for one that is none of this network."""
        if type(subnet) is not type(self.network) or subnet.prefixlen != self.subnet_len:
            return None
        offset = int(subnet.network_address) - int(self.network.network_address)
        slot = offset >> (self.network.max_prefixlen - self.subnet_len)
        return slot if 0 <= slot < self.slots else None


def default_subnet_len(network: IpNetwork) -> int:
    """Flannel's: /24, or a quarter of a network smaller than /22; /64 of an IPv6 network."""
    if network.version == 6:
        return max(64, network.prefixlen + 2)
    return 24 if network.prefixlen <= 22 else network.prefixlen + 2


def range_between(
    network: IpNetwork, subnet_len: int, lowest: IpAddress | None, highest: IpAddress | None
) -> LeaseRange | None:
    """The range between two subnets' bases, either of which may be left out; None: both are.

    Raises:
        LeaseError: One is no base of such a subnet.
    """
    if lowest is None and highest is None:
        return None
    step = 1 << (network.max_prefixlen - subnet_len)
    first = lowest if lowest is not None else network.network_address + step * FIRST_SLOT
    last = highest if highest is not None else network.broadcast_address - (step - 1)
    try:
        return ip_network((first, subnet_len)), ip_network((last, subnet_len))
    except ValueError as error:
        raise LeaseError(f"range: expected the bases of /{subnet_len} subnets, found {error}") from None
