"""What a running daemon takes over of a configuration that was read again, and what waits for a restart.

Networks are the same by their name, wherever they stand in the file.  Of those in both, changed peers are
taken over, unless they only make sense together with another key that waits (peers in the subnet of a
`network` that is another one now); they wait with it then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from control.operator.checks import contradictions
from control.operator.config import differences
from control.operator.schema import Config, NetworkConfig


@dataclass(frozen=True, slots=True)
class Takeover:
    """What follows from a configuration read again.

    Attributes:
        config: What is in force now: what was, with the peers taken over.
        waiting: What needs a restart, each in words: a key as the running configuration numbers it, or a
            network that came or went.
    """

    config: Config
    waiting: tuple[str, ...]


def take_over(running: Config, wanted: Config) -> Takeover:
    """What to go by now, and what waits."""
    known = {network.name: network for network in wanted.networks}
    networks = running.networks
    for index, network in enumerate(networks):
        if network.name not in known:
            continue
        changed = _with_peers_of(networks, index, known[network.name])
        if not _contradicts_itself(running, changed, index):
            networks = changed
    config = running.model_copy(update={"networks": networks})
    served = [network.name for network in running.networks]
    added = [f"network {name} (added)" for name in known if name not in served]
    removed = [f"network {name} (removed)" for name in served if name not in known]
    return Takeover(config, (*differences(config, wanted), *added, *removed))


def _with_peers_of(
    networks: tuple[NetworkConfig, ...], index: int, other: NetworkConfig
) -> tuple[NetworkConfig, ...]:
    changed = networks[index].model_copy(update={"peers": other.peers})
    return (*networks[:index], changed, *networks[index + 1 :])


def _contradicts_itself(running: Config, networks: Iterable[NetworkConfig], index: int) -> bool:
    """Whether the peers of that network cannot be among the keys that stay."""
    tried = running.model_copy(update={"networks": tuple(networks)})
    return any(finding.at[:3] == ("network", index, "peers") for finding in contradictions(tried))
