"""Who grants what to whom, when it is so, and what a founder refuses: the rules one by one."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.intent.leasememory import LeaseMemory
from control.intent.leaseplan import LeasePlan, default_subnet_len, range_between
from control.intent.leases import (
    CLONED,
    LOST,
    MOVED,
    SETTLE_SECONDS,
    STRANGERS_SETTLE_SECONDS,
    Leases,
    Self,
    Static,
    Word,
)
from control.membership.recordbody import Grant, Holding, LeaseRange, LeaseWord, NetworkRecord
from overlay.addr import NetworkId
from overlay.errors import Ground, LeaseError

PLAN = LeasePlan(ip_network("10.5.0.0/16"), 24, ("n1", "n2"))
SETTLED = SETTLE_SECONDS + 1
S1, S2 = ip_network("10.5.1.0/24"), ip_network("10.5.2.0/24")


def node(
    name: str, memory: LeaseMemory | None = None, *, is_first: bool = True, endpoint: str = ""
) -> Leases:
    own = Self(name, f"id-{name}", endpoint or f"192.0.2.{name[1:]}:7946")
    return Leases(PLAN, own, memory, is_first=is_first, now=0.0)


def word_of(leases: Leases, name: str, *, is_here: bool = True) -> Word:
    said = NetworkRecord(NetworkId("pods"), "routed", "vxlan", None, 8472, leases=leases.word())
    return Word(name, f"id-{name}", is_here, said)


def write(leases: Leases) -> None:
    if leases.to_write() is not None:
        leases.written()


def turn(leases: Leases, *words: Word, now: float = SETTLED) -> None:
    """Decide, and have the disk take it."""
    leases.consider(words, now=now)
    write(leases)


def granted() -> tuple[Leases, Leases]:
    """n1, a founder that has given itself and n5 a subnet, and n5, which holds it."""
    founder, holder = node("n1"), node("n5")
    turn(founder)
    turn(founder)  # its own, first asked for, then granted and taken
    turn(founder)
    turn(holder, word_of(founder, "n1"))
    turn(founder, word_of(holder, "n5"))
    turn(holder, word_of(founder, "n1"))
    assert holder.held is not None
    return founder, holder


# ── The plan ────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(1, 12), st.integers(4, 12))
def test_blocks_are_the_whole_network_but_its_first_subnet_and_overlap_nowhere(count: int, bits: int) -> None:
    plan = LeasePlan(ip_network("10.0.0.0/8"), 8 + bits, tuple(f"f{each}" for each in range(count)))
    slots = [slot for founder in plan.founders for slot in plan.block(founder)]
    assert slots == list(range(1, plan.slots))
    assert all(plan.slot_of(plan.subnet(slot)) == slot for slot in slots[:50])
    assert not plan.block("nobody")


@pytest.mark.parametrize(
    ("network", "length", "founders"),
    [
        ("10.5.0.0/16", 24, ()),
        ("10.5.0.0/16", 24, ("n1", "n1")),
        ("10.5.0.0/16", 16, ("n1",)),
        ("10.5.0.0/16", 31, ("n1",)),
        ("10.5.0.0/24", 25, ("n1", "n2")),
        ("10.5.0.0/16", 24, tuple(f"f{each}" for each in range(65))),
    ],
)
def test_a_network_that_cannot_be_divided_so_is_refused(
    network: str, length: int, founders: tuple[str, ...]
) -> None:
    with pytest.raises(LeaseError, match="expected"):
        LeasePlan(ip_network(network), length, founders)


@given(st.integers(1, 12), st.integers(0, 255), st.integers(0, 255))
def test_blocks_are_the_range_where_there_is_one(count: int, one: int, other: int) -> None:
    founders, (first, last) = tuple(f"f{each}" for each in range(count)), sorted((one, other))
    within = PLAN.subnet(first), PLAN.subnet(last)
    if last - first + 1 < count:
        with pytest.raises(LeaseError, match="expected a subnet for each founder"):
            replace(PLAN, founders=founders, within=within)
        return
    plan = replace(PLAN, founders=founders, within=within)
    blocks = [plan.block(founder) for founder in founders]
    assert [slot for block in blocks for slot in block] == list(range(first, last + 1))
    assert all(blocks)
    assert all(plan.slot_of(plan.subnet(slot)) == slot for slot in range(first, last + 1))


@pytest.mark.parametrize(
    "within", [(S2, S1), (ip_network("10.6.1.0/24"), S2), (S1, ip_network("10.5.2.0/25"))]
)
def test_a_range_that_is_none_is_refused(within: LeaseRange) -> None:
    with pytest.raises(LeaseError, match="range: expected"):
        replace(PLAN, within=within)


def test_a_range_between_two_bases_reaches_to_the_end_that_is_left_out() -> None:
    whole = ip_network("10.5.0.0/16")
    low, high = ip_address("10.5.16.0"), ip_address("10.5.31.0")
    assert range_between(whole, 24, None, None) is None
    assert range_between(whole, 24, low, None) == (PLAN.subnet(16), PLAN.subnet(255))
    assert range_between(whole, 24, None, high) == (PLAN.subnet(1), PLAN.subnet(31))
    with pytest.raises(LeaseError, match="expected the bases of /24 subnets"):
        range_between(whole, 24, ip_address("10.5.16.1"), high)


def test_a_plan_without_a_range_is_of_the_pool_it_always_was() -> None:
    assert PLAN.pool_id.hex() == "e9d365a9589a3abb53fbf47f2cb3e675"
    told = replace(PLAN, within=(PLAN.subnet(1), PLAN.subnet(255)))
    assert (told, told.pool_id) == (PLAN, PLAN.pool_id)


def test_the_pool_is_its_network_its_subnets_and_its_founders_in_their_order() -> None:
    others = [
        replace(PLAN, network=ip_network("10.6.0.0/16")),
        replace(PLAN, subnet_len=25),
        replace(PLAN, founders=("n2", "n1")),
        replace(PLAN, founders=("n1",)),
        replace(PLAN, within=(S1, S2)),
        replace(PLAN, within=(S2, ip_network("10.5.255.0/24"))),
    ]
    assert len({PLAN.pool_id, *(plan.pool_id for plan in others)}) == 7
    assert replace(PLAN).pool_id == PLAN.pool_id


def test_subnets_are_as_long_as_flannels_where_nothing_is_said() -> None:
    for network, length in (("10.0.0.0/8", 24), ("10.5.0.0/22", 24), ("10.5.0.0/23", 25), ("fd00::/48", 64)):
        assert default_subnet_len(ip_network(network)) == length


def test_what_is_no_subnet_of_the_network_has_no_slot() -> None:
    for subnet in ("10.6.1.0/24", "10.5.1.0/25", "10.5.0.0/16", "10.4.255.0/24", "fd00::/64"):
        assert PLAN.slot_of(ip_network(subnet)) is None


# ── Granting ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_founder_gives_itself_one_and_then_whoever_asks() -> None:
    founder, holder = granted()
    assert (founder.held, holder.held) == (S1, S2)
    assert [(row.subnet, row.node, row.state) for row in founder.rows()] == [
        (S1, "n1", "held"),
        (S2, "n5", "granted"),
    ]
    turn(founder, word_of(holder, "n5"))
    assert [row.state for row in founder.rows()] == ["held", "held"]


def test_what_the_operator_gave_away_is_not_granted_and_a_doubling_is_named() -> None:
    own = Self("n1", "id-n1", "192.0.2.1:7946")
    founder = Leases(PLAN, own, None, is_first=True, now=0.0, static=Static(S1, (S2,)))
    asker = node("n5")
    turn(founder)
    turn(asker, word_of(founder, "n1"))
    turn(founder, word_of(asker, "n5"))
    assert [(row.subnet, row.node, row.state) for row in founder.rows()] == [
        (S1, "n1", "static"),
        (ip_network("10.5.3.0/24"), "n5", "granted"),
    ]
    said = NetworkRecord(NetworkId("pods"), "routed", "vxlan", None, 8472, subnets=(S1,))
    turn(founder, Word("n7", "id-n7", is_here=True, said=said))
    assert "n1 and n7 both have the subnet 10.5.1.0/24" in founder.troubles()[0].problem


def test_nothing_is_so_before_the_disk_has_it() -> None:
    founder = node("n1")
    turn(founder)
    founder.consider((), now=SETTLED)
    before = founder.word()
    assert founder.to_write() is not None
    assert founder.to_write() is None, "one write at a time"
    assert founder.word() == before
    assert before.grants == ()
    founder.written()
    assert founder.word().grants == (Grant(S1, "n1", "id-n1", 1),)


def test_what_the_disk_refuses_is_not_so_and_is_tried_again() -> None:
    founder = node("n1")
    turn(founder)
    founder.consider((), now=SETTLED)
    assert founder.to_write() is not None
    founder.not_written("No space left on device")
    assert founder.word().grants == ()
    assert any("No space left" in trouble.problem for trouble in founder.troubles())
    turn(founder)
    assert len(founder.word().grants) == 1
    assert not any("not on disk" in trouble.problem for trouble in founder.troubles())


def test_a_founder_that_has_just_started_listens_first() -> None:
    founder = node("n1")
    turn(founder, now=0.5)
    turn(founder, now=SETTLE_SECONDS - 0.1)
    assert founder.word().grants == ()
    founder.consider((), has_strangers=True, now=SETTLE_SECONDS - 0.1)
    founder.consider((), has_strangers=True, now=SETTLED)
    write(founder)
    assert founder.word().grants == (), "somebody knew it: it may have granted before"
    turn(founder, now=SETTLED + 1)
    assert founder.word().grants == (), "it has just heard them"
    turn(founder, now=SETTLED + 1 + SETTLE_SECONDS)
    assert len(founder.word().grants) == 1


def test_a_founder_that_never_hears_who_knew_it_grants_in_the_end() -> None:
    founder = node("n1")
    founder.consider((), has_strangers=True, now=1.0)
    founder.consider((), has_strangers=True, now=STRANGERS_SETTLE_SECONDS)
    write(founder)
    assert founder.word().grants == ()
    for _ in range(2):  # it asks itself, and answers
        founder.consider((), has_strangers=True, now=STRANGERS_SETTLE_SECONDS + 1.0)
        write(founder)
    assert len(founder.word().grants) == 1


def test_grantees_never_grant() -> None:
    _, holder = granted()
    asking = replace(word_of(node("n6"), "n6").said, leases=LeaseWord(PLAN.pool_id, asks="n5"))
    turn(holder, Word("n6", "id-n6", is_here=True, said=asking))
    assert holder.word().grants == ()
    assert holder.word().free == 0


def test_who_asks_again_is_given_nothing_more() -> None:
    founder, holder = granted()
    forgetful = node("n5")
    turn(forgetful, word_of(founder, "n1"))
    assert forgetful.held == holder.held, "the founder's book remembers for it"
    for _ in range(3):
        turn(founder, word_of(node("n5"), "n5"))
    assert len(founder.word().grants) == 2


def test_static_subnets_are_not_given_away() -> None:
    founder = node("n1")
    said = NetworkRecord(NetworkId("pods"), "routed", "vxlan", None, 8472, subnets=(S1,))
    for _ in range(3):
        turn(founder, Word("n9", "id-n9", is_here=False, said=said))
    assert founder.held == S2
    assert ("n9", "static") in [(row.node, row.state) for row in founder.rows()]


def test_an_asker_stays_with_its_founder_until_that_is_gone_or_empty() -> None:
    founders = {name: word_of(_settled(name), name) for name in ("n1", "n2")}
    asker = node("n5")
    turn(asker, *founders.values())
    asked = asker.word().asks
    turn(asker, *reversed(founders.values()))
    assert asker.word().asks == asked
    turn(asker, *(replace(word, is_here=word.name != asked) for word in founders.values()))
    assert asker.word().asks == ({"n1", "n2"} - {asked}).pop()


def _settled(name: str) -> Leases:
    founder = node(name)
    for _ in range(3):
        turn(founder)
    return founder


def test_a_grant_from_a_founder_outside_its_block_is_not_taken() -> None:
    holder = node("n5")
    outside = PLAN.subnet(PLAN.block("n2")[0])
    forged = LeaseWord(PLAN.pool_id, free=1, grants=(Grant(outside, "n5", "id-n5", 1),))
    said = NetworkRecord(NetworkId("pods"), "routed", "vxlan", None, 8472, leases=forged)
    turn(holder, Word("n1", "id-n1", is_here=True, said=said))
    assert holder.held is None


# ── Two pools ───────────────────────────────────────────────────────────────────────────────────────────


def test_pools_that_differ_do_not_mix_and_say_so() -> None:
    founder, _ = granted()
    other_plan = replace(PLAN, founders=("n1",))
    stranger = Leases(other_plan, Self("n7", "id-n7", "192.0.2.7:7946"), None, is_first=True, now=0.0)
    turn(stranger, word_of(founder, "n1"))
    turn(founder, word_of(stranger, "n7"))
    assert stranger.word().asks == ""
    assert len(founder.word().grants) == 2
    for leases, name in ((stranger, "n1"), (founder, "n7")):
        assert any(f"{name} is of another pool" in trouble.problem for trouble in leases.troubles())


def test_a_memory_of_another_pool_is_refused() -> None:
    with pytest.raises(LeaseError, match="founders, network, subnet length or range are not what they were"):
        node("n1", LeaseMemory(bytes(16)))


def test_subnets_outside_the_network_are_named() -> None:
    founder, _ = granted()
    said = NetworkRecord(
        NetworkId("pods"), "routed", "vxlan", None, 8472, subnets=(ip_network("10.9.0.0/24"),)
    )
    turn(founder, Word("n9", "id-n9", is_here=True, said=said))
    assert any("outside 10.5.0.0/16" in trouble.problem for trouble in founder.troubles())


def test_a_subnet_two_nodes_have_is_named() -> None:
    founder, holder = granted()
    said = NetworkRecord(NetworkId("pods"), "routed", "vxlan", None, 8472, subnets=(S2,))
    turn(founder, word_of(holder, "n5"), Word("n9", "id-n9", is_here=True, said=said))
    assert any("n5 and n9 both have the subnet 10.5.2.0/24" in each.problem for each in founder.troubles())


# ── The fence ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_founder_without_its_book_grants_nothing_and_says_what_to_do() -> None:
    founder = node("n1", is_first=False)
    for _ in range(3):
        turn(founder)
    assert founder.fence == LOST
    assert founder.word().grants == ()
    (trouble, *_) = founder.troubles()
    assert (LOST in trouble.problem, trouble.fix) == (True, "weft leases adopt")


def test_a_founder_at_another_address_than_its_books_is_fenced() -> None:
    founder, _ = granted()
    moved = node("n1", founder.memory, is_first=False, endpoint="192.0.2.99:7946")
    assert moved.fence == MOVED
    assert moved.held == S1, "what it holds itself stays its own"
    assert node("n1", founder.memory, is_first=False).fence == ""


def test_a_founder_that_hears_itself_is_fenced_for_good() -> None:
    founder, _ = granted()
    founder.consider((), is_cloned=True, now=SETTLED)
    write(founder)
    assert founder.fence == CLONED
    assert node("n1", founder.memory, is_first=False).fence == CLONED


def test_a_founder_is_fenced_by_a_lease_of_its_own_it_knows_nothing_of() -> None:
    founder, holder = granted()
    older = node("n1", is_first=True)
    turn(older, word_of(holder, "n5"))
    assert "n5 holds 10.5.2.0/24" in older.fence
    turn(founder, word_of(holder, "n5"))
    assert founder.fence == ""


def adopted(founder: Leases, *words: Word, **options: tuple[str, ...]) -> int:
    founder.consider(words, now=SETTLED)
    write(founder)
    count = founder.adopt(**options)
    write(founder)
    return count


def test_adopting_takes_the_pools_word_for_the_book() -> None:
    founder, holder = granted()
    number = founder.memory.number
    back = node("n1", is_first=False)
    turn(holder, word_of(back, "n1"))
    assert adopted(back, word_of(holder, "n5")) == 1
    assert back.fence == ""
    assert back.memory.number > number, "its acts go on counting"
    newcomer = node("n6")
    for _ in range(2):
        turn(newcomer, word_of(back, "n1"), word_of(holder, "n5"))
        turn(back, word_of(newcomer, "n6"), word_of(holder, "n5"))
    turn(newcomer, word_of(back, "n1"), word_of(holder, "n5"))
    assert newcomer.held not in (None, holder.held)


@pytest.mark.parametrize("why", ["dead", "silent", "unaware"])
def test_adopting_waits_for_everybody_who_might_hold_something(why: str) -> None:
    _, holder = granted()
    back = node("n1", is_first=False)
    if why != "unaware":
        turn(holder, word_of(back, "n1"))
    else:
        holder._knows = {"n1": "an-earlier-id"}
    words = [word_of(holder, "n5", is_here=why != "dead")] if why != "silent" else []
    back.consider(words, now=SETTLED)
    write(back)
    missing = ("n5",) if why == "silent" else ()
    with pytest.raises(LeaseError, match="n5 might hold a subnet"):
        back.adopt(missing=missing)
    back.adopt(missing=missing, without=("n5",))
    write(back)
    assert back.fence == ""


def test_only_a_founder_adopts() -> None:
    with pytest.raises(LeaseError, match="n5 is no founder"):
        node("n5").adopt()


# ── Giving back ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_living_holders_lease_is_not_released() -> None:
    founder, holder = granted()
    turn(founder, word_of(holder, "n5"))
    with pytest.raises(LeaseError, match="n5 is alive"):
        founder.release(S2)
    turn(founder)
    with pytest.raises(LeaseError, match="n5 is alive"):
        founder.release(S2, is_here=True)
    with pytest.raises(LeaseError, match="this node's own"):
        founder.release(S1)


def test_a_released_subnet_is_given_away_last_and_its_holder_gives_it_up() -> None:
    founder, holder = granted()
    turn(founder, word_of(holder, "n5", is_here=False))
    founder.release(S2)
    write(founder)
    assert [row.state for row in founder.rows() if row.node == "n5"] == ["held"], "as long as it says so"
    turn(holder, word_of(founder, "n1"))
    assert holder.held is None
    turn(founder, word_of(holder, "n5"))
    turn(holder, word_of(founder, "n1"))
    assert holder.held == ip_network("10.5.3.0/24")


@pytest.mark.parametrize(
    ("subnet", "hint"), [("10.5.9.0/24", "nobody has it"), ("10.5.200.0/24", "n2 is the founder")]
)
def test_what_was_not_granted_here_is_not_released_here(subnet: str, hint: str) -> None:
    founder, _ = granted()
    with pytest.raises(LeaseError, match="expected a subnet this node has granted") as caught:
        founder.release(ip_network(subnet))
    assert hint in caught.value.why
    assert caught.value.ground is Ground.ABSENT


def test_a_lease_whose_founder_changed_while_it_was_written_is_not_taken() -> None:
    founder, _ = granted()
    asker = node("n6")
    turn(asker, word_of(founder, "n1"))
    turn(founder, word_of(asker, "n6"))
    asker.consider([word_of(founder, "n1")], now=SETTLED)
    assert asker.to_write() is not None
    asker.consider([replace(word_of(founder, "n1"), weft_id="another")], now=SETTLED)
    asker.written()
    assert asker.held is None
    assert asker.to_write() == LeaseMemory(PLAN.pool_id, PLAN.subnet_len, PLAN.founders)
    asker.written()


def test_a_holding_names_its_founder_and_act() -> None:
    _, holder = granted()
    assert holder.memory.held == Holding(S2, "n1", "id-n1", 2)
