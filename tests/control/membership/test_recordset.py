"""Two sets hash alike exactly when they show the same records, however they came to."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.records import key, network

from control.membership.config import TOMBSTONE_AGE
from control.membership.recordbody import encode_networks
from control.membership.recordset import Record, RecordSet, bucket_of, hash_of
from control.membership.recordwire import RecordKey

NAMES = [f"n{number}" for number in range(5)]


def record(of: RecordKey, number: int = 1) -> Record:
    body = encode_networks([network(number)])
    return Record(of, (network(number),), body, hash_of(of, body))


class SetMachine(RuleBasedStateMachine):
    """A set beside a dictionary, and a second set filled from scratch each time."""

    def __init__(self) -> None:
        super().__init__()
        self.set = RecordSet()
        self.model: dict[str, tuple[Record, bool]] = {}
        self.graves: dict[str, RecordKey] = {}

    @rule(name=st.sampled_from(NAMES), version=st.integers(1, 3), is_shown=st.booleans())
    def put(self, name: str, version: int, is_shown: bool) -> None:
        held = record(key(name, version))
        self.set.put(held, is_shown=is_shown)
        self.model[name] = held, is_shown
        self.graves.pop(name, None)

    @rule(name=st.sampled_from(NAMES), is_shown=st.booleans())
    def show(self, name: str, is_shown: bool) -> None:
        self.set.show(name, is_shown=is_shown)
        if name in self.model:
            self.model[name] = self.model[name][0], is_shown

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        removed = self.set.remove(name, now=0.0)
        expected = self.model.pop(name, None)
        assert removed == (expected[0] if expected else None)
        if removed:
            self.graves[name] = removed.key

    @invariant()
    def is_the_model(self) -> None:
        assert {each.name: each for each in self.set} == {
            name: each for name, (each, _) in self.model.items()
        }
        assert len(self.set) == len(self.model)
        for name in NAMES:
            assert self.set.tombstone(name) == self.graves.get(name)
            shown = self.set.shown(bucket_of(name))
            assert (name in {each.name for each in shown}) == (name in self.model and self.model[name][1])

    @invariant()
    def hashes_as_one_filled_in_another_order(self) -> None:
        other = RecordSet()
        for held, is_shown in reversed(self.model.values()):
            if is_shown:
                other.put(held, is_shown=True)
        assert (self.set.hash, self.set.bucket_hashes) == (other.hash, other.bucket_hashes)


TestSetMachine = SetMachine.TestCase


def test_sets_that_differ_in_one_record_differ_in_one_bucket() -> None:
    one, other = RecordSet(), RecordSet()
    for name in NAMES:
        one.put(record(key(name)), is_shown=True)
        other.put(record(key(name)), is_shown=True)
    assert one.hash == other.hash
    other.put(record(key("n3"), 2), is_shown=True)  # under the same key: content counts too
    assert one.hash != other.hash
    pairs = zip(one.bucket_hashes, other.bucket_hashes, strict=True)
    assert [bucket for bucket, (here, there) in enumerate(pairs) if here != there] == [bucket_of("n3")]


def test_a_tombstone_is_forgotten_when_no_copy_can_be_left() -> None:
    held = RecordSet()
    held.put(record(key("n1")), is_shown=True)
    held.remove("n1", now=5.0)
    held.expire(now=5.0 + TOMBSTONE_AGE - 1)
    assert held.tombstone("n1") == key("n1")
    held.expire(now=5.0 + TOMBSTONE_AGE)
    assert held.tombstone("n1") is None
