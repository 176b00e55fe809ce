"""A record is what was written, comes back as it was, and pairs what belongs together."""

from __future__ import annotations

import json

import pytest
from support.bench import VETH, a_record, runs_of

from bench.record import SCHEMA, Run, as_document, read_record


def test_what_is_written_comes_back() -> None:
    record = a_record()
    record.stages = {"veth, 2 nodes": {"mtu": 1500, "offloads": {"gro": "on"}, "idle_daemons_percent": 0.5}}
    record.runs = [*runs_of("tcp-1", "kernel", gbit_s=[1.5]), Run(VETH, "tcp-1", "bare", 0, error="no route")]
    text = json.dumps(as_document(record))
    assert read_record(text) == record
    assert json.loads(text)["schema"] == SCHEMA


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema": "weft.peers/1", "data": {}}',
        '{"schema": "weft.bench/1", "data": {}}',
        '{"schema": "weft.bench/1", "data": 7}',
        '{"schema": "weft.bench/1", "data": {"machine": {"colour": "grey"}, "entries": [], "runs": []}}',
    ],
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a record of weft\.bench/1"):
        read_record(text)


def test_only_rounds_that_both_have_are_paired() -> None:
    record = a_record()
    record.runs = [
        *runs_of("tcp-1", "kernel", gbit_s=[10.0, 11.0, 12.0]),
        *runs_of("tcp-1", "bare", gbit_s=[20.0])[:1],
        Run(VETH, "tcp-1", "bare", 1, error="iperf3 did not connect"),
        Run(VETH, "tcp-1", "bare", 2, {"gbit_s": 24.0}),
        Run("wire-like", "tcp-1", "bare", 1, {"gbit_s": 99.0}),
        Run(VETH, "tcp-4", "bare", 1, {"gbit_s": 98.0}),
    ]
    assert record.paired(VETH, "tcp-1", ("bare", "kernel"), "gbit_s") == [(20.0, 10.0), (24.0, 12.0)]


def test_what_was_measured_is_told_in_its_order() -> None:
    record = a_record()
    record.runs = [*runs_of("udp-64", "bare", kpps=[1.0, 2.0]), *runs_of("tcp-1", "bare", gbit_s=[1.0])]
    assert list(record.measured()) == [(VETH, "udp-64"), (VETH, "tcp-1")]
