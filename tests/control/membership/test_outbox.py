"""Datagrams carry what fits, with a checksum where it is understood and nothing else vouches for them."""

from __future__ import annotations

import zlib

import pytest
from support.membership import STRANGER, Bench, alive, at

from control.membership.member import Endpoint
from control.membership.wire import Alive, Ping

OLD_VERSIONS = bytes((1, 4, 2, 2, 5, 4))


@pytest.mark.parametrize("keys", [(), (bytes(32),)], ids=["plain", "encrypted"])
@pytest.mark.parametrize("label", ["", "a-pool"])
def test_no_datagram_is_longer_than_1400_octets(keys: tuple[bytes, ...], label: str) -> None:
    bench = Bench(3, keys=keys, label=label)
    for number in range(10, 110):
        bench.receive(alive(number))
    bench.run(5.0)
    sizes = [len(datagram.data) for datagram in bench.core.datagrams_to_send(now=bench.now)]
    assert max(sizes) <= 1400
    assert max(sizes) > 1300, "rumors fill what there is"


def test_a_checksum_goes_to_who_understands_it() -> None:
    bench = Bench()
    word = alive(1)
    bench.receive(word, Alive(1, "older", Endpoint("192.0.2.9", 7946), word.meta, OLD_VERSIONS))
    bench.take_datagrams()
    for sender in (at(1), Endpoint("192.0.2.9", 7946), STRANGER):
        bench.receive(Ping(1, "us"), sender=sender)
    checked = {datagram.to: datagram.data for datagram in bench.core.datagrams_to_send(now=bench.now)}
    assert [data[0] == 12 for data in checked.values()] == [True, False, False]
    data = checked[at(1)]
    assert int.from_bytes(data[1:5], "big") == zlib.crc32(data[5:])
