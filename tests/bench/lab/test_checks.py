"""The text of ping and iperf3, as their versions print it, becomes values."""

from __future__ import annotations

import pytest

from bench.lab.checks import Ping, parse_iperf, parse_ping, parse_tcp, parse_udp
from bench.lab.commands import LabError

IPUTILS = """PING 10.9.0.3 (10.9.0.3) 56(84) bytes of data.

--- 10.9.0.3 ping statistics ---
3 packets transmitted, 2 received, 33.3333% packet loss, time 407ms
rtt min/avg/max/mdev = 0.082/0.137/0.238/0.071 ms
"""
BUSYBOX = """--- 10.9.0.3 ping statistics ---
4 packets transmitted, 4 packets received, 0% packet loss
round-trip min/avg/max = 0.101/0.200/0.301 ms
"""
NOBODY = """--- 10.9.0.9 ping statistics ---
3 packets transmitted, 0 received, +3 errors, 100% packet loss, time 2048ms
"""


def test_ping_summary_of_iputils() -> None:
    assert parse_ping(IPUTILS) == Ping(3, 2, 0.082, 0.137, 0.238)
    assert parse_ping(IPUTILS).loss == pytest.approx(1 / 3)
    assert not parse_ping(IPUTILS).complete


def test_ping_summary_of_busybox() -> None:
    assert parse_ping(BUSYBOX) == Ping(4, 4, 0.101, 0.2, 0.301)
    assert parse_ping(BUSYBOX).complete


def test_a_ping_nobody_answers_has_no_round_trip_time() -> None:
    assert parse_ping(NOBODY) == Ping(3, 0)
    assert parse_ping(NOBODY).loss == 1


def test_a_ping_that_did_not_run_says_why() -> None:
    with pytest.raises(LabError, match="Network is unreachable"):
        parse_ping("ping: connect: Network is unreachable\n")


def test_an_iperf_error_is_not_a_result() -> None:
    with pytest.raises(LabError, match="unable to connect"):
        parse_iperf('{"error": "unable to connect to server"}')
    with pytest.raises(LabError, match="found: nothing"):
        parse_iperf("")


def test_the_tcp_rate_is_the_receivers() -> None:
    end = {
        "sum_sent": {"bits_per_second": 2e9, "retransmits": 7},
        "sum_received": {"bits_per_second": 1e9, "seconds": 2.0},
        "cpu_utilization_percent": {"host_total": 90.0, "remote_total": 40.0},
    }
    result = parse_tcp({"end": end})
    assert (result.gbit_s, result.retransmits, result.seconds) == (1.0, 7, 2.0)


def test_udp_losses_are_taken_off_the_sent_rate() -> None:
    total = {"packets": 1000, "lost_packets": 250, "bits_per_second": 4e9, "jitter_ms": 0.1, "seconds": 1.0}
    result = parse_udp({"end": {"sum": total}})
    assert result.loss == 0.25
    assert result.received_gbit_s == 3.0
    assert result.received_pps == 750
