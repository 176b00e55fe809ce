"""How a network is divided among founders: fixed blocks of equal subnets, so that no two decide about one.

10.5.0.0/16 in /24, founders n1 n2:   0 │ 1 … 127 │ 128 … 255
                                 nobody │   n1    │    n2
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from control.membership.recordbody import FOUNDERS_MAX, POOL_ID_OCTETS, IpNetwork
from overlay.errors import LeaseError

# Ours
FIRST_SLOT = 1  # the first subnet is left alone, as Flannel does: it shares its address with the network


@dataclass(frozen=True, slots=True)
class LeasePlan:
    """How a network is divided: the same on every node, or the nodes are of two pools.

    Raises:
        LeaseError: It cannot be divided so.
    """

    network: IpNetwork
    subnet_len: int
    founders: tuple[str, ...]

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
        if self.slots - FIRST_SLOT < len(self.founders):
            raise LeaseError(f"network: expected a subnet for each founder, found {self.slots} in all")

    @property
    def slots(self) -> int:
        """How many subnets there are, the first included."""
        return int(1 << (self.subnet_len - self.network.prefixlen))

    @property
    def pool_id(self) -> bytes:
        """What two nodes must agree on before they speak of leases."""
        text = "\0".join((str(self.network), str(self.subnet_len), *self.founders))
        return blake2b(text.encode(), digest_size=POOL_ID_OCTETS).digest()

    def block(self, founder: str) -> range:
        """The slots that founder alone decides about; none for who is no founder."""
        if founder not in self.founders:
            return range(0)
        index, count = self.founders.index(founder), self.slots - FIRST_SLOT
        first, end = (FIRST_SLOT + count * each // len(self.founders) for each in (index, index + 1))
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
