"""A crowd of weft peers in one process, each with a record of its own: company for the daemons of a lab.

    python -m support.crowd 192.0.2.3 192.0.2.1 200 storm flap

They sit at one address on ports of their own and join the seed at once; then they do what they are told, for
a while each, and say on stdout what is done.

    storm     a tenth of them say something new five times a second
    flap      one of them leaves, and is back a second later, again and again

Their VTEPs are addresses nobody has a route to: what is sent there is lost, and named.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

from support.gossip_world import weft_tags
from support.records import network

from control.membership.config import GossipConfig
from control.membership.gossip import Gossip
from control.membership.member import Endpoint
from control.membership.peer import Peer
from control.membership.recordbody import NetworkRecord
from control.membership.secure import Envelope, Keyring

FIRST_PORT = 10_000
NOWHERE = 0xC6120000  # 198.18.0.0, RFC 2544: nobody's
STORM_WORDS = 50  # of each that storms
STORM_REST = 0.2
FLAPS = 6
FLAP_REST = 1.0


class One:
    """One of the crowd, and the starts it has had."""

    def __init__(self, number: int, host: str, seed: Endpoint) -> None:
        self.number = number
        self.endpoint = Endpoint(host, FIRST_PORT + number)
        self.seed = seed
        self.epoch = 0
        self.said = 0

    async def live(self) -> None:
        """Runs one start of it, until cancelled."""
        self.epoch += 1
        config = GossipConfig(
            name=f"c{self.number:03}",
            endpoint=self.endpoint,
            tags=weft_tags(f"id{self.number}", self.epoch),
            seeds=(self.seed,),
            incarnation=self.epoch,
        )
        now = asyncio.get_running_loop().time()
        envelope = Envelope(Keyring(()), nonce=os.urandom)
        self.core = Peer(config, rng=random.Random(self.number), envelope=envelope, now=now)
        self.gossip = Gossip(self.core, self.endpoint, lambda _: None)
        self.say()
        await self.gossip.run()

    def say(self) -> None:
        """Has something new behind it."""
        self.said += 1
        now = asyncio.get_running_loop().time()
        self.core.publish([record(self.number, self.said)], now=now)
        self.gossip.wake()

    def knows(self, count: int) -> bool:
        """Whether it holds the records of so many."""
        return self.core.records.statistics().records >= count


def record(number: int, said: int) -> NetworkRecord:
    """What that one says, different each time."""
    told = network(256 + number, macs=1 + said % 4)
    return replace(told, vteps=(ip_address(NOWHERE + number),))


async def storm(crowd: Sequence[One]) -> None:
    for _ in range(STORM_WORDS):
        for one in crowd[::10]:
            one.say()
        await asyncio.sleep(STORM_REST)


async def flap(one: One, tasks: dict[One, asyncio.Task[None]]) -> None:
    """Its goodbye has a second to be heard, as that of a daemon has."""
    for _ in range(FLAPS):
        one.core.leave(now=asyncio.get_running_loop().time())
        one.gossip.wake()
        await asyncio.sleep(FLAP_REST)
        tasks[one].cancel()
        await asyncio.wait([tasks[one]])
        tasks[one] = asyncio.create_task(one.live())
        await asyncio.sleep(FLAP_REST)


async def main(host: str, seed: str, count: int, orders: Sequence[str]) -> None:
    crowd = [One(number, host, Endpoint(seed, 7946)) for number in range(count)]
    tasks = {one: asyncio.create_task(one.live()) for one in crowd}
    await asyncio.sleep(0)  # each has a core from its first turn on
    while not all(one.knows(count) for one in crowd):  # noqa: ASYNC110 - two hundred have no one event
        await asyncio.sleep(0.2)
    print("joined", flush=True)
    for order in orders:
        await (storm(crowd) if order == "storm" else flap(crowd[0], tasks))
        print(order, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    host, seed, count, *orders = sys.argv[1:]
    asyncio.run(main(host, seed, int(count), orders))
