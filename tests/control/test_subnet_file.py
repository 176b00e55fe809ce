"""subnet.env is Flannel's to the letter: keys, order, forms, mode; and shell scripts take it as it is."""

from __future__ import annotations

import subprocess
from ipaddress import ip_network
from pathlib import Path

import pytest

from control.subnet_file import kept_subnet_file, subnet_env
from overlay.errors import DeviceError

NETWORK, SUBNET = ip_network("10.5.0.0/16"), ip_network("10.5.72.0/24")

# What Docker's option maker does with the file: source it, and turn what it finds into options.
OPTION_MAKER = """
set -eu
. "$1"
ip_masq=true
[ "$FLANNEL_IPMASQ" = true ] && ip_masq=false
echo "--bip=$FLANNEL_SUBNET --ip-masq=$ip_masq --mtu=$FLANNEL_MTU"
"""


def test_the_text_is_flannels() -> None:
    assert subnet_env(NETWORK, SUBNET, mtu=1450, masquerade=True) == (
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )


def test_ipv6_has_keys_of_its_own() -> None:
    text = subnet_env(ip_network("fd00::/48"), ip_network("fd00:0:0:1::/64"), mtu=1430, masquerade=False)
    assert text == (
        "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\n"
        "FLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"
    )


@pytest.mark.parametrize("masquerade", [True, False])
def test_dockers_option_maker_makes_its_options_of_it(tmp_path: Path, masquerade: bool) -> None:
    file = tmp_path / "flannel" / "subnet.env"
    kept_subnet_file(str(file)).write(subnet_env(NETWORK, SUBNET, mtu=1450, masquerade=masquerade))
    made = subprocess.run(
        ["sh", "-c", OPTION_MAKER, "sh", str(file)], capture_output=True, text=True, check=True
    )
    inverse = str(not masquerade).lower()
    assert made.stdout == f"--bip=10.5.72.1/24 --ip-masq={inverse} --mtu=1450\n"


def test_the_file_is_everybodys_to_read_and_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "subnet.env"
    kept = kept_subnet_file(str(file))
    kept.write("a=1\n")
    before = file.stat().st_ino
    kept.write("a=2\n")
    assert (file.stat().st_mode & 0o777, file.read_text()) == (0o644, "a=2\n")
    assert file.stat().st_ino != before
    assert list(tmp_path.iterdir()) == [file]


def test_a_place_that_cannot_be_written_is_a_device_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError):
        kept_subnet_file(str(tmp_path / "file" / "subnet.env")).write("")
