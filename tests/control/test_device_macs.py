"""The MACs of a node's devices outlive a restart; a file that is not one costs a new MAC and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.disk import full_disk
from support.doubles import mac

from control.device_macs import DEVICES_FILE, keep_macs, remembered_macs

MACS = {"weft0": mac(1), "flannel.1": mac(2)}


def test_they_come_back_as_they_were(tmp_path: Path) -> None:
    assert remembered_macs(tmp_path) == {}
    keep_macs(tmp_path, MACS)
    assert remembered_macs(tmp_path) == MACS


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"macs": 7}', '{"macs": {"weft0": "02:zz"}}', "[" * 9000]
)
def test_a_torn_file_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / DEVICES_FILE).write_text(text)
    assert remembered_macs(tmp_path) == {}


def test_what_is_no_stations_address_is_passed_over(tmp_path: Path) -> None:
    text = '{"macs": {"a": "00:00:00:00:00:00", "b": "01:00:5e:00:00:01", "c": "02:00:00:00:00:01"}}'
    (tmp_path / DEVICES_FILE).write_text(text)
    assert list(remembered_macs(tmp_path)) == ["c"]


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    keep_macs(tmp_path, MACS)
    with full_disk():
        keep_macs(tmp_path, {"weft0": mac(9)})
    assert remembered_macs(tmp_path) == MACS
