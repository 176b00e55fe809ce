"""A node of Flannel's udp backend, written from the format alone: its own TUN, one socket, a list of routes.

Run as a program, in a namespace of its own; it imports nothing of weft, for it is what weft is compared with.

    flannel_node.py --public-ip 192.0.2.2 --etcd-prefix /coreos.com/network --store DIRECTORY
    flannel_node.py --public-ip 192.0.2.2 --network 10.5.0.0/16 --lease 10.5.2.0/24=192.0.2.2 --lease …

What Flannel's proxy does and a better router would not is done as well: a datagram longer than the MTU is cut
off, one without time left dies in silence, and whoever sends is believed.  `--store` holds etcd's keys as
files; the lease with our public IP is ours.
"""

from __future__ import annotations

import argparse
import fcntl
import ipaddress
import json
import os
import select
import socket
import struct
import subprocess
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
ENCAP_OVERHEAD = 28

Leases = list[tuple[ipaddress.IPv4Network, str]]


def main() -> None:
    """Joins, says so on standard output, and carries until it is ended."""
    arguments = parsed()
    if arguments.store:
        network, port, leases = from_store(Path(arguments.store), arguments.etcd_prefix)
    else:
        network, port = arguments.network, arguments.port
        leases = [
            (ipaddress.IPv4Network(subnet), public) for subnet, public in map(split_lease, arguments.lease)
        ]
    own = next(subnet for subnet, public in leases if public == arguments.public_ip)
    tun = open_tun(arguments.device)
    for command in (
        f"ip link set {arguments.device} mtu {arguments.mtu} up",
        f"ip address add {own.network_address}/32 dev {arguments.device}",
        f"ip route add {network} dev {arguments.device}",
    ):
        subprocess.run(command.split(), check=True)
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    bound.bind((arguments.public_ip, port))
    print("ready", flush=True)
    carry(tun, bound, [(subnet, (public, port)) for subnet, public in leases if subnet != own], arguments.mtu)


def carry(
    tun: int, bound: socket.socket, routes: list[tuple[ipaddress.IPv4Network, tuple[str, int]]], mtu: int
) -> None:
    """Both ways, one packet at a time."""
    while True:
        readable, _, _ = select.select([tun, bound.fileno()], [], [])
        if bound.fileno() in readable:
            packet = bytearray(bound.recv(mtu))
            if len(packet) >= 20 and decremented(packet):
                os.write(tun, packet)
        if tun in readable:
            packet = bytearray(os.read(tun, 65535))
            destination = ipaddress.IPv4Address(bytes(packet[16:20]))
            hop = next((hop for subnet, hop in routes if destination in subnet), None)
            if packet[0] >> 4 == 4 and hop is not None and decremented(packet):
                bound.sendto(packet, hop)


def decremented(packet: bytearray) -> bool:
    """Takes one off the time to live, as the format's own proxy patches the sum; False: none is left."""
    packet[8] = (packet[8] - 1) & 0xFF
    (check,) = struct.unpack_from("!H", packet, 10)
    check += 0x0100
    struct.pack_into("!H", packet, 10, (check + (check >= 0xFFFF)) & 0xFFFF)
    return packet[8] != 0


def open_tun(name: str) -> int:
    """A TUN's descriptor."""
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return tun


def from_store(store: Path, prefix: str) -> tuple[str, int, Leases]:
    """The network, its port and the leases, as etcd has them."""
    root = store / prefix.strip("/")
    config = json.loads((root / "config").read_text())
    leases = [
        (ipaddress.IPv4Network(file.name.replace("-", "/")), json.loads(file.read_text())["PublicIP"])
        for file in sorted((root / "subnets").iterdir())
    ]
    return config["Network"], config["Backend"]["Port"], leases


def split_lease(text: str) -> tuple[str, str]:
    """`subnet=public IP`."""
    subnet, public = text.split("=")
    return subnet, public


def parsed() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--public-ip", required=True)
    parser.add_argument("--etcd-endpoints")
    parser.add_argument("--etcd-prefix", default="/coreos.com/network")
    parser.add_argument("--store", default="")
    parser.add_argument("--network")
    parser.add_argument("--lease", action="append", default=[])
    parser.add_argument("--port", type=int, default=8285)
    parser.add_argument("--mtu", type=int, default=1500 - ENCAP_OVERHEAD)
    parser.add_argument("--device", default="flannel0")
    return parser.parse_args()


if __name__ == "__main__":
    main()
