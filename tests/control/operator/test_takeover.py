"""Of a configuration that was read again peers are taken over, and all else is named."""

from __future__ import annotations

from pathlib import Path

from control.operator.config import Config, load
from control.operator.takeover import take_over

NODE = '[node]\nname = "n1"\nunderlay = ["192.0.2.1"]\nlog = "info"\n'
RED = '[[network]]\nname = "red"\nvni = 1\ndevice = "red0"\npeers = ["192.0.2.2"]\n'
BLUE = '[[network]]\nname = "blue"\nvni = 2\ndevice = "blue0"\npeers = ["192.0.2.3"]\n'
GREEN = '[[network]]\nname = "green"\nvni = 3\ndevice = "green0"\n'
PODS = (
    '[[network]]\nname = "pods"\nmode = "routed"\nencap = "flannel-udp"\nnetwork = "10.5.0.0/16"\n'
    'subnet = "10.5.1.0/24"\npeers = [{vtep = "192.0.2.2", subnet = "10.5.2.0/24"}]\n'
)


def read(tmp_path: Path, *networks: str, node: str = NODE) -> Config:
    path = tmp_path / "weft.toml"
    path.write_text("\n".join((node, *networks)))
    return load(path, {}, {})


def peers(config: Config) -> dict[str, list[str]]:
    return {network.name: [str(vtep.address) for vtep in network.vteps] for network in config.networks}


def test_the_order_of_networks_does_not_matter(tmp_path: Path) -> None:
    running = read(tmp_path, RED, BLUE)
    taken = take_over(running, read(tmp_path, BLUE.replace("192.0.2.3", "192.0.2.4"), RED))
    assert taken.waiting == ()
    assert peers(taken.config) == {"red": ["192.0.2.2"], "blue": ["192.0.2.4"]}
    assert [network.name for network in taken.config.networks] == ["red", "blue"]


def test_networks_that_come_and_go_are_named_and_the_others_peers_are_taken_over(tmp_path: Path) -> None:
    running = read(tmp_path, RED, BLUE)
    taken = take_over(running, read(tmp_path, GREEN, BLUE.replace("192.0.2.3", "192.0.2.4")))
    assert taken.waiting == ("network green (added)", "network red (removed)")
    assert peers(taken.config) == {"red": ["192.0.2.2"], "blue": ["192.0.2.4"]}


def test_every_other_key_waits_and_is_named_as_the_running_configuration_numbers_it(tmp_path: Path) -> None:
    running = read(tmp_path, RED, BLUE)
    changed = BLUE.replace("vni = 2", "vni = 4\nmtu = 1300"), RED.replace("vni = 1", "vni = 5")
    taken = take_over(running, read(tmp_path, *changed, node=NODE.replace("info", "debug")))
    assert taken.config == running
    assert set(taken.waiting) == {"node.log", "network[0].vni", "network[1].vni", "network[1].mtu"}


def test_peers_that_fit_only_keys_that_wait_wait_with_them(tmp_path: Path) -> None:
    running = read(tmp_path, RED, PODS)
    taken = take_over(running, read(tmp_path, RED.replace("0.2.2", "0.2.9"), PODS.replace("10.5.", "10.6.")))
    assert set(taken.waiting) == {"network[1].network", "network[1].subnet", "network[1].peers"}
    assert peers(taken.config) == {"red": ["192.0.2.9"], "pods": ["192.0.2.2"]}


def test_a_second_reading_starts_from_what_was_taken_over(tmp_path: Path) -> None:
    wanted = read(tmp_path, RED.replace("192.0.2.2", "192.0.2.9"))
    once = take_over(read(tmp_path, RED), wanted)
    assert take_over(once.config, wanted).config == once.config
    assert peers(once.config) == {"red": ["192.0.2.9"]}
