"""Serf and the records together: what one node says of itself, another holds, and no stranger hears."""

from __future__ import annotations

from support.gossip_world import believes, weft_tags, world
from support.records import holds_newest, network, peer, say

from control.membership.events import JoinFailed, MemberChanged, PeerMessage, RecordChanged, Refusal
from control.membership.member import Endpoint, MemberState
from control.membership.peer import Peer
from control.membership.serfwire import encode_weft
from control.membership.wire import User, encode


def test_what_is_said_is_heard_and_told_as_an_event() -> None:
    with world(1, "peer", core=Peer) as made:
        one = made.add("n1", tags=weft_tags("id1"))
        other = made.add("n2", tags=weft_tags("id2"), seeds=(one.endpoint,))
        say(made, one, network(1))
        made.run_until(lambda: holds_newest(other, one), within=3.0)
        told = [event for _, event in other.events]
        assert RecordChanged("n1") in told
        assert any(isinstance(event, MemberChanged) for event in told)
        assert not any(isinstance(event, PeerMessage) for event in told), "the records took it"


def test_a_record_leaves_with_its_member() -> None:
    with world(2, "peer-left", core=Peer) as made:
        one = made.add("n1", tags=weft_tags("id1"))
        other = made.add("n2", tags=weft_tags("id2"), seeds=(one.endpoint,))
        say(made, one, network(1))
        made.run_until(lambda: holds_newest(other, one), within=3.0)
        one.core.leave(now=one.clock(made.now))
        made.settle(one)
        made.run_until(lambda: believes(other, "n1", MemberState.LEFT), within=5.0)
        assert peer(other).records.lookup("n1") is None


def test_who_carries_no_tags_of_ours_holds_nothing_and_says_nothing() -> None:
    with world(3, "peer-stock", core=Peer) as made:
        weft = made.add("n1", tags=weft_tags("id1"))
        stock = made.add("s1", tags={"role": "db"}, seeds=(weft.endpoint,))
        say(made, weft, network(1))
        say(made, stock, network(2))
        made.run(10.0)
        assert believes(weft, "s1", MemberState.ALIVE)
        assert peer(weft).records.lookup("s1") is None
        assert peer(stock).records.lookup("n1") is None


def test_saying_the_same_again_is_no_news() -> None:
    with world(4, "peer-same", core=Peer) as made:
        one = made.add("n1", tags=weft_tags("id1"))
        now = one.clock(made.now)
        assert peer(one).publish([network(1)], now=now)
        assert not peer(one).publish([network(1)], now=now)


def test_a_dead_peer_that_starts_again_with_nothing_hears_that_it_was_known() -> None:
    with world(5, "peer-called", core=Peer) as made:
        lost = made.add("n1", tags=weft_tags("id1"))
        other = made.add("n2", tags=weft_tags("id2"), seeds=(lost.endpoint,))
        made.run(2.0)
        made.kill(lost)
        made.run_until(lambda: believes(other, "n1", MemberState.DEAD), within=20.0)
        back = made.add("n1", tags=weft_tags("another"), endpoint=lost.endpoint)
        peer(other).call_back("n1", now=other.clock(made.now))
        made.settle(other)
        made.run_until(lambda: back.core.statistics().refused != {}, within=1.0, step=0.001)
        assert back.core.statistics().refused == {Refusal.NOT_A_PEER: 1}
        made.run_until(lambda: believes(back, "n2", MemberState.ALIVE), within=2.0)
        peer(other).call_back("nobody", now=other.clock(made.now))
        made.settle(other)


def test_who_invents_senders_makes_us_call_one_of_them_now_and_then() -> None:
    with world(6, "peer-invented", core=Peer) as made:
        lone = made.add("n1", tags=weft_tags("id1"))
        for number in range(50):
            forged = encode(User(encode_weft(b"S" + bytes(16))))
            made.inject(forged, lone, Endpoint(f"203.0.113.{number + 1}", 7946))
        made.run(5.0)
        called = [event for _, event in lone.events if isinstance(event, JoinFailed)]
        assert len(called) == 1
