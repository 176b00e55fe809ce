"""iperf3's reports are read by the keys that say what arrived; its segments carry a multiple of 32 octets."""

from __future__ import annotations

import json
import subprocess
from ipaddress import ip_address
from typing import Any, cast

import pytest

from bench.lab.namespaces import Place
from bench.traffic.iperf import parse_tcp_run, run_client, segment_payload


def total(octets: int, seconds: float = 2.0, **more: int) -> dict[str, float]:
    return {"bytes": octets, "seconds": seconds, "bits_per_second": 1.0, **more}


def test_what_was_received_counts_and_not_what_was_sent() -> None:
    found = parse_tcp_run({"end": {"sum_sent": total(900, retransmits=7), "sum_received": total(500)}})
    assert (found.octets, found.seconds, found.retransmits) == (500, 2.0, 7)
    assert found.gbit_s == pytest.approx(500 * 8 / 2 / 1e9)


def test_both_ways_are_added_up() -> None:
    found = parse_tcp_run(
        {
            "end": {
                "sum_sent": total(900, retransmits=7),
                "sum_received": total(500),
                "sum_sent_bidir_reverse": total(800, retransmits=2),
                "sum_received_bidir_reverse": total(300),
            }
        }
    )
    assert (found.octets, found.retransmits) == (800, 9)


def test_no_time_is_no_rate() -> None:
    assert parse_tcp_run({"end": {"sum_sent": total(0), "sum_received": total(0, 0.0)}}).gbit_s == 0


@pytest.mark.parametrize(("mtu", "payload"), [(1500, 1440), (1450, 1376), (1280, 1216), (9000, 8928)])
def test_segments_carry_as_many_times_32_octets_as_the_mtu_lets_them(mtu: int, payload: int) -> None:
    assert segment_payload(mtu) == payload


class Noting:
    """Stands for a place: notes the command, and lets it have succeeded."""

    def __init__(self) -> None:
        self.argv: list[str] = []

    def run(self, argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.argv = argv
        end = {"sum_sent": total(900), "sum_received": total(500)}
        return subprocess.CompletedProcess(argv, 0, json.dumps({"end": end}), "")


def test_the_client_is_told_the_segment_with_its_time_stamps() -> None:
    place = Noting()
    run_client(cast("Place", place), ip_address("10.9.0.2"), 2.0, 1450, "-R")
    told = dict(zip(place.argv[2::2], place.argv[3::2], strict=False))
    assert (told["-t"], told["-M"]) == ("2", str(1376 + 12))
    assert place.argv[-1] == "-R"
