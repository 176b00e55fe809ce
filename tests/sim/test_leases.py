"""No two nodes ever have one subnet, and nobody loses his, whatever happens to disks, machines and links."""

from __future__ import annotations

from collections import Counter

import pytest
from support.lease_world import ClaimError, Flaw, LeaseWorld
from support.seeds import many_seeds

EVERYTHING = {
    "crash", "restart", "full", "partition", "disk lost", "torn", "adopted", "moved", "cloned", "release",
}  # fmt: skip


def live(seeds: range) -> Counter[str]:
    """Whole schedules with every claim checked at every step; what happened in them."""
    happened = Counter[str]()
    for seed in seeds:
        world = LeaseWorld(seed)
        try:
            world.run()
        except BaseException:
            print(f"\nleases: failed with seed {seed}:", *world.story, sep="\n    ")
            raise
        happened.update(world.happened)
    return happened


@pytest.mark.parametrize("batch", range(4))
def test_subnets_are_unique_durable_monotone_and_stable(batch: int) -> None:
    happened = live(range(60 * batch, 60 * (batch + 1)))
    assert set(happened) == EVERYTHING, "a schedule that leaves something out shows nothing of it"


@pytest.mark.long_sim
@pytest.mark.timeout(7200)
def test_ten_thousand_schedules() -> None:
    print("\n", live(many_seeds(10_000)))


@pytest.mark.parametrize(
    ("flaw", "claim"),
    [
        (Flaw.NO_FSYNC, "durable"),
        (Flaw.NO_FSYNC, "stable"),
        (Flaw.REPLY_BEFORE_WRITE, "durable"),
        (Flaw.LAST_WRITER_WINS, "monotone"),
        (Flaw.ONE_BLOCK, "unique"),
        (Flaw.NO_FENCE, "durable"),
    ],
    ids=lambda each: each.name if isinstance(each, Flaw) else each,
)
def test_the_claims_catch_the_mistakes_they_are_for(flaw: Flaw, claim: str) -> None:
    caught = Counter[str]()
    for seed in range(80):
        try:
            LeaseWorld(seed, flaw).run()
        except ClaimError as error:
            caught[str(error).partition(":")[0]] += 1
        if caught[claim]:
            return
    pytest.fail(f"{flaw.value}: never caught as {claim}, but as {dict(caught)}")
