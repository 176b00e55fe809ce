"""Flannel's net-conf.json means what Flannel takes it to mean, and every mistake is told with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.operator.config import check_supported, load
from control.operator.lease_plan import configured_plan
from control.operator.net_conf import NetConf, parse_net_conf_untrusted, read_net_conf
from control.operator.schema import Encap, Mode
from overlay.errors import ConfigError

PATH = "net-conf.json"


def parse(document: object) -> NetConf:
    return parse_net_conf_untrusted(PATH, json.dumps(document).encode())


def mistakes(text: str) -> list[str]:
    return [each.why for each in parse_net_conf_untrusted(PATH, text.encode()).mistakes]


@pytest.mark.parametrize(
    ("document", "keys"),
    [
        ({"Network": "10.5.0.0/16"}, {"encap": "flannel-udp", "port": 8285}),
        (
            {"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Port": 7890}},
            {"encap": "flannel-udp", "port": 7890},
        ),
        (
            {"NETWORK": "10.5.0.0/16", "backend": {"TYPE": "vxlan"}},
            {"encap": "vxlan", "port": 8472, "vni": 1},
        ),
        (
            {"network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "vni": 4096, "port": 4789, "MTU": 9000}},
            {"encap": "vxlan", "port": 4789, "vni": 4096, "mtu": 8950},
        ),
        (
            {"Network": "10.5.0.0/16", "EnableNFTables": False, "Backend": {"Type": "vxlan", "Port": 0}},
            {"encap": "vxlan", "port": 8472, "vni": 1},
        ),
        (
            {
                "Network": "10.5.0.0/16",
                "SubnetLen": 20,
                "SubnetMin": "10.5.16.0",
                "SubnetMax": "10.5.224.0",
                "Backend": {"Type": "vxlan", "DirectRouting": True, "GBP": False},
            },
            {
                "subnet_len": 20,
                "subnet_min": "10.5.16.0",
                "subnet_max": "10.5.224.0",
                "encap": "vxlan",
                "port": 8472,
                "vni": 1,
            },
        ),
    ],
)
def test_what_flannel_reads_is_read(document: object, keys: dict[str, object]) -> None:
    assert parse(document) == NetConf({"network": "10.5.0.0/16", **keys})


def test_an_ipv6_network_alone() -> None:
    document = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00::/48"}
    assert parse({**document, "Backend": {"Type": "vxlan"}}).keys["network"] == "fd00::/48"


def test_the_range_of_an_ipv6_network_is_its_own() -> None:
    document = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00::/48", "SubnetMin": "10.5.1.0"}
    assert parse({**document, "IPv6SubnetMin": "fd00:0:0:10::"}).keys["subnet_min"] == "fd00:0:0:10::"


def test_both_families_are_one_network_and_a_note() -> None:
    text = '{"Network": "10.5.0.0/16",\n "IPv6Network": "fd00::/48",\n "EnableIPv6": true}'
    conf = parse_net_conf_untrusted(PATH, text.encode())
    assert (conf.keys["network"], conf.mistakes) == ("10.5.0.0/16", ())
    (note,) = conf.notes
    assert note.startswith("net-conf.json:3: EnableIPv6 beside IPv4: only the IPv4 network is used")
    assert parse({"Network": "10.5.0.0/16", "IPv6Network": "fd00::/48"}).notes == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"Network": "10.5.0.0/16",\n "Backend": {"Type": "vxlan"', ["net-conf.json:2: not JSON"]),
        ("", ["net-conf.json:1: not JSON"]),
        ("[]", ["net-conf.json:1: expected an object"]),
        ("[" * 100_000, ["net-conf.json: not JSON"]),
        ('{"a": ' + "9" * 5000 + "}", ["net-conf.json: not JSON"]),
        ("{}", ["net-conf.json:1: Network: expected the whole overlay's subnet, found nothing"]),
        ('{"Network": 10}', ["net-conf.json:1: Network: expected a subnet"]),
        ('{"Network": "10.5.0.0/30"}', ["net-conf.json:1: Network: expected a prefix of at most /28"]),
        ('{"Network": "fd00::/64"}', ["net-conf.json:1: Network: expected an IPv4 subnet"]),
        (
            (
                '{\n"EnableIPv4": "yes",\n"network": "10.5.0.0/16",\n"SubnetLen": 17,\n'
                '"subnetmin": "10.6.0.0",\n"Backend": {"Type": "vxlan",\n "Port": -1,\n "VNI": 16777216}}'
            ),
            [
                "net-conf.json:2: EnableIPv4: expected true or false",
                "net-conf.json:4: SubnetLen: expected a number of 18 to 30, found 17",
                "net-conf.json:5: SubnetMin: 10.6.0.0 is outside the network 10.5.0.0/16",
                "net-conf.json:7: Backend.Port: expected a number of 0 to 65535, found -1",
                "net-conf.json:8: Backend.VNI: expected a number of 0 to 16777215, found 16777216",
            ],
        ),
        (
            '{"Network": "10.5.0.0/16", "SubnetMin": "10.5.1.7"}',
            ["net-conf.json:1: SubnetMin: expected the base of a /24, found 10.5.1.7"],
        ),
        (
            '{"Network": "10.5.0.0/16", "SubnetMin": "10.5.9.0", "SubnetMax": "10.5.2.0"}',
            ["net-conf.json:1: SubnetMin: expected at most SubnetMax, 10.5.2.0, found 10.5.9.0"],
        ),
        (
            '{"Network": "10.5.0.0/16", "Backend": {"Type": []}}',
            ["net-conf.json:1: Backend.Type: expected vxlan or udp, found []"],
        ),
        (
            '{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}',
            ['net-conf.json:1: Backend.Type: expected vxlan or udp, found "host-gw"'],
        ),
    ],
)
def test_every_mistake_is_told_with_its_line(text: str, expected: list[str]) -> None:
    found = mistakes(text)
    assert len(found) == len(expected)
    assert all(each.startswith(start) for each, start in zip(found, expected, strict=True)), found


def test_what_was_meant_is_suggested() -> None:
    assert parse({"Netwrok": "10.5.0.0/16"}).mistakes[0].suggestion == "Network"
    misspelt = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlna"}}
    assert parse(misspelt).mistakes[0].suggestion == "vxlan"


@given(st.binary(max_size=200))
def test_any_octets_are_keys_or_mistakes(octets: bytes) -> None:
    conf = parse_net_conf_untrusted(PATH, octets)
    assert conf.mistakes or "network" in conf.keys


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["Network", "backend", "TYPE", "SubnetLen", "port", "SubnetMin", "VNI"]),
                inner,
            )
        ),
    )
)
def test_any_document_is_keys_or_mistakes(document: object) -> None:
    conf = parse(document)
    assert conf.mistakes or "network" in conf.keys


def test_every_truncation_is_a_mistake() -> None:
    text = json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}})
    for length in range(len(text)):
        assert parse_net_conf_untrusted(PATH, text[:length].encode()).mistakes


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (mistake,) = read_net_conf(str(tmp_path / PATH)).mistakes
    assert mistake.why.endswith("cannot be read: No such file or directory")


# ── In our own file ─────────────────────────────────────────────────────────────────────────────────────


def written(tmp_path: Path, conf: str, more: str = "") -> Path:
    (tmp_path / PATH).write_text(conf)
    file = tmp_path / "weft.toml"
    network = f'[[network]]\nnet_conf = "{tmp_path / PATH}"\nsubnet = "10.5.1.0/24"\n'
    file.write_text(network + more)
    return file


def test_founders_lease_of_the_files_range(tmp_path: Path) -> None:
    conf = '{"Network": "10.5.0.0/16", "SubnetMin": "10.5.16.0", "Backend": {"Type": "vxlan"}}'
    (network,) = load(written(tmp_path, conf, 'founders = ["n1"]\n[gossip]\n'), {}, {}).networks
    plan = configured_plan(network)
    assert plan is not None
    assert plan.block("n1") == range(16, 256)


def test_what_is_noted_of_the_file_is_kept_for_the_operator(tmp_path: Path) -> None:
    conf = '{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48"}'
    (note,) = load(written(tmp_path, conf), {}, {}).notes
    assert note.startswith(f"network[0].net_conf: {tmp_path / PATH}:1: EnableIPv6 beside IPv4")


def test_the_network_takes_its_keys_from_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, '{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}')
    config = load(file, {}, {})
    check_supported(config)
    (network,) = config.networks
    assert (network.mode, network.encap, network.vni, network.port) == (Mode.ROUTED, Encap.VXLAN, 1, 8472)
    assert str(network.network) == "10.5.0.0/16"
    assert config.origins["network[0].network"] == str(tmp_path / PATH)


def test_what_both_say_must_be_one_thing(tmp_path: Path) -> None:
    conf = '{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}'
    load(written(tmp_path, conf, 'network = "10.5.0.0/16"\nvni = 1\n'), {}, {})
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, conf, "vni = 7\nport = 99\n"), {}, {})
    assert [(each.line, each.path) for each in caught.value.problems] == [
        (4, "network[0].vni"),
        (5, "network[0].port"),
    ]


def test_its_mistakes_are_reported_among_the_others(tmp_path: Path) -> None:
    file = written(tmp_path, '{"Netwrok": "10.5.0.0/16",\n"Backend": {"Type": "vxlna"}}', "ageing = 3\n")
    with pytest.raises(ConfigError) as caught:
        load(file, {}, {})
    told = [(each.line, each.path, each.suggestion) for each in caught.value.problems]
    assert (2, "network[0].net_conf", "Network") in told
    assert (2, "network[0].net_conf", "vxlan") in told
    assert (4, "network[0].ageing", "ageing_s") in told
