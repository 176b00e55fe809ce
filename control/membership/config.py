"""What a pool's timing is, and the formulas that follow from it.

Everything here is a number or a pure function of numbers.  The names and defaults are memberlist's LAN
profile where a stock agent would notice a difference, and ours where experience has found that profile
weak; each of ours says so.  The formulas are tested against the tables of a peer's test suite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from control.membership.member import Endpoint

# From memberlist's LAN profile
PROBE_INTERVAL = 1.0
PROBE_TIMEOUT = 0.5
INDIRECT_PROBES = 3
SUSPICION_MULT = 4
SUSPICION_MAX_TIMEOUT_MULT = 6
AWARENESS_MAX = 8
GOSSIP_INTERVAL = 0.2
GOSSIP_FANOUT = 3
PUSH_PULL_INTERVAL = 30.0
PUSH_PULL_SCALE_FROM = 32  # members
RETRANSMIT_MULT = 4
STREAM_TIMEOUT = 10.0
DATAGRAM_OCTETS = 1400
TOMBSTONE_AGE = 24 * 3600.0  # Serf's tombstone and reconnect time-outs

# Ours
TINY_POOL = 3  # members; below memberlist's four no accuser can confirm, so the timer starts at its minimum
TINY_POOL_SUSPICION_MULT = 5
RETRANSMIT_EXTRA = 2  # 4*ceil(log10(N+1)) is a step function, weakest just below a power of ten
GOSSIP_TO_THE_DEAD = 60.0
REJOIN_INTERVAL = 30.0
REJOIN_JITTER = 0.25  # of the interval, taken off it
FIRST_REJOIN = 1.0  # seconds; doubles up to the interval while we are alone
REJOIN_FAILED = 4  # failed members tried by one node in one round; the pool together tries them all
MEMBERS_MAX = 8192
QUEUE_MIN = 4096  # rumors
STREAMS_MAX = 32
STREAM_OCTETS = 4 << 20
NACK_AFTER = 0.8  # of the probe time-out: later a nack comes back after the asker's interval is over
RELAYS_PER_SECOND = 10  # indirect probes made for one requester
RELAYS_MAX = 1024
AMPLIFICATION = 3  # octets we answer per octet asked, to whoever the sender's address says it is
INCARNATION_JUMP = 1 << 31
THROTTLE = 10.0  # seconds between two reminders, or two alarms, about one name
PAUSE = 1.0  # seconds a timer may be late before we conclude that we, not they, stood still
ADDRESS_CHANGE_DELAY = (
    2.0  # between dead{self, self} and alive at the new address: the rumor must overtake it
)


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """One node's part in a pool.

    Attributes:
        name: The member's name, unique in the pool.
        endpoint: Where the others reach us.
        tags: Serf tags; ours are named `weft_*`.
        label: memberlist's label, a pool's name in front of every packet; empty: none.
        seeds: Where to join, again and again.
        remembered: Where members were before this start; tried while we are alone.
        former: Where we were before this start, if that is known and was somewhere else.
        incarnation: The first incarnation to speak with; greater than any the pool has heard from us.
        lamport: Serf's clock as last known.
    """

    name: str
    endpoint: Endpoint
    tags: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    seeds: tuple[Endpoint, ...] = ()
    remembered: tuple[Endpoint, ...] = ()
    former: Endpoint | None = None
    incarnation: int = 1
    lamport: int = 0
    probe_interval: float = PROBE_INTERVAL
    probe_timeout: float = PROBE_TIMEOUT
    indirect_probes: int = INDIRECT_PROBES
    suspicion_mult: int = SUSPICION_MULT
    suspicion_max_timeout_mult: int = SUSPICION_MAX_TIMEOUT_MULT
    gossip_interval: float = GOSSIP_INTERVAL
    gossip_fanout: int = GOSSIP_FANOUT
    gossip_to_the_dead: float = GOSSIP_TO_THE_DEAD
    push_pull_interval: float = PUSH_PULL_INTERVAL
    rejoin_interval: float = REJOIN_INTERVAL
    tombstone_age: float = TOMBSTONE_AGE
    members_max: int = MEMBERS_MAX
    datagram_octets: int = DATAGRAM_OCTETS

    def suspicion_mult_at(self, members: int) -> int:
        """The multiplier in a pool of this size: one more where nobody can confirm a suspicion."""
        return TINY_POOL_SUSPICION_MULT if members <= TINY_POOL else self.suspicion_mult


def suspicion_min(mult: int, members: int, interval: float) -> float:
    """Seconds a suspect has to refute, once enough others accuse it too (scale cut to 1/1000)."""
    scale = max(1.0, math.log10(max(1, members)))
    return mult * math.floor(scale * 1000) / 1000 * interval


def confirmations_wanted(mult: int, members: int) -> int:
    """How many further accusers bring the timer to its minimum; 0 where there are not that many members."""
    wanted = mult - 2
    return wanted if members - 2 >= wanted else 0


def suspicion_timeout(confirmations: int, wanted: int, minimum: float, maximum: float) -> float:
    """Seconds from the first accusation to the verdict: from maximum down to minimum with every accuser."""
    if wanted < 1:
        return minimum
    fraction = math.log(confirmations + 1) / math.log(wanted + 1)
    return max(minimum, math.floor((maximum - fraction * (maximum - minimum)) * 1000) / 1000)


@lru_cache(maxsize=1024)
def retransmit_limit(members: int, mult: int = RETRANSMIT_MULT, extra: int = RETRANSMIT_EXTRA) -> int:
    """How often one node passes one rumor on."""
    return mult * math.ceil(math.log10(members + 1)) + extra


def push_pull_interval(members: int, interval: float) -> float:
    """Seconds between full exchanges: stretched as the pool grows, for each of them grows with it."""
    if members <= PUSH_PULL_SCALE_FROM:
        return interval
    return interval * (math.ceil(math.log2(members) - math.log2(PUSH_PULL_SCALE_FROM)) + 1)


def query_timeout(members: int, gossip_interval: float) -> float:
    """Seconds Serf waits for the answers to a query."""
    return gossip_interval * 16 * math.ceil(math.log10(members + 1))
