"""A leased network is opened and closed while the daemon serves, and a failure leaves nothing behind.

The kernel, the engine and the pool are stand-ins; all else is the daemon's own.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import Callable, Coroutine
from ipaddress import ip_network
from typing import Any

import pytest

from control import daemon as daemon_module
from control.daemon import Daemon
from control.operator.config import load
from control.operator.schema import NetworkConfig
from control.steering import Steering
from overlay.addr import Mac, NetworkId, parse_ip
from overlay.errors import DeviceError
from overlay.route import IpNetwork
from overlay.tables import Tables

PODS = NetworkId("pods")
S1, S2 = ip_network("10.5.1.0/24"), ip_network("10.5.2.0/24")
FILE = """
[node]
name = "n1"
underlay = ["192.0.2.1"]
[gossip]
[[network]]
name = "pods"
mode = "routed"
vni = 42
network = "10.5.0.0/16"
founders = ["n1"]
"""


class Served:
    """What stands for a network with its device: it notes what is done to it, and may be held up."""

    programs_kernel = True
    mtu = 1400
    nodes: Any = ()
    problem: DeviceError | None = None
    unwritten: DeviceError | None = None
    own_mac = Mac(bytes(6))
    device = None

    def __init__(self, host: Host, config: NetworkConfig) -> None:
        self.host = host
        self.config = config
        self.is_closed = False

    @property
    def id(self) -> NetworkId:
        return self.config.id

    def attachment(self, *, repairs: bool) -> None:
        return

    def restore(self, underlays: object) -> None:
        self._do("restore")

    def prepare(self) -> None:
        self._do("prepare")

    def announce(self) -> None:
        self._do("announce")

    def close(self) -> None:
        self.host.closed_on_loop += threading.current_thread() is threading.main_thread()
        self.is_closed = True

    def _do(self, what: str) -> None:
        self.host.begun.set()
        if self.host.held_up == what:
            self.host.go_on.wait(10.0)
        self.host.done.append(f"{what} {'a closed' if self.is_closed else 'an open'} network")


class Host:
    """Kernel, engine and pool in one: what they refuse is told, what they were asked for is noted."""

    waits_for_leases = False
    has_left = True  # nobody else is there

    def __init__(self) -> None:
        self.leased: IpNetwork | None = S1
        self.refuses: str = ""
        self.tries = 0
        self.served: list[Served] = []
        self.attached: list[NetworkId] = []
        self.done: list[str] = []
        self.held_up = ""
        self.closed_on_loop = 0
        self.begun, self.go_on = threading.Event(), threading.Event()

    # The kernel.

    def serve(self, config: NetworkConfig, tables: Tables, *_: object) -> Served:
        self.tries += 1
        if self.refuses == "device":
            raise DeviceError("weft0", errno.EBUSY)
        tables.add_network(config.id)
        self.served.append(Served(self, config))
        return self.served[-1]

    # The engine.

    def attach(self, _: object) -> None:
        if self.refuses == "port":
            raise DeviceError("udp 192.0.2.1:8472", errno.EADDRINUSE)
        self.attached.append(PODS)

    def detach(self, network: NetworkId) -> None:
        self.attached.remove(network)

    def replace_device(self, *_: object) -> None:
        """Nothing follows here."""

    # The pool.

    async def lease(self) -> None:
        """Whatever is leased is."""

    def held(self, _: NetworkId) -> IpNetwork | None:
        return self.leased

    def lease_words(self) -> dict[NetworkId, Any]:
        return {}

    def publish(self, _: object) -> None:
        """Nobody listens."""


Story = Callable[[Host, Daemon], Coroutine[None, None, None]]


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[[Story], None]:
    """Runs a story with a daemon that is open but for its leased network."""

    def run(story: Story) -> None:
        host = Host()
        file = tmp_path / "weft.toml"
        file.write_text(FILE)
        daemon = Daemon(load(file, {"state_dir": str(tmp_path)}, {}))
        for name, stand_in in (("_pool", host), ("_datapath", host)):
            monkeypatch.setattr(daemon, name, stand_in, raising=False)
        monkeypatch.setattr(daemon, "_steering", Steering([parse_ip("192.0.2.1")]), raising=False)
        monkeypatch.setattr(daemon_module, "serve", host.serve)
        monkeypatch.setattr(daemon_module, "device_addresses", lambda _: {})
        asyncio.run(story(host, daemon))

    return run


@pytest.mark.parametrize("refused", ["device", "port"])
def test_what_the_host_refuses_leaves_nothing_and_is_tried_again_by_upkeep_alone(
    tell: Callable[[Story], None], caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    async def story(host: Host, daemon: Daemon) -> None:
        host.refuses = refused
        for _ in range(5):
            await daemon._follow_leases()
        assert host.tries == 1, "a change in the pool is no reason to try again"
        assert daemon._networks == {}
        assert PODS not in daemon._tables
        assert all(network.is_closed for network in host.served)
        daemon._opens_again = True
        await daemon._follow_leases()
        assert host.tries == 2
        assert len([each for each in caplog.records if each.levelno == logging.ERROR]) == 1

        host.refuses, daemon._opens_again = "", True
        await daemon._follow_leases()
        assert host.attached == [PODS]
        assert list(daemon._networks) == [PODS]
        assert not daemon._unopened

    tell(story)


def test_a_subnet_that_changes_closes_the_network_and_opens_it_anew(tell: Callable[[Story], None]) -> None:
    async def story(host: Host, daemon: Daemon) -> None:
        await daemon._follow_leases()
        host.leased = S2
        await daemon._follow_leases()
        await daemon._follow_leases()
        assert [each.is_closed for each in host.served] == [True, False]
        assert [each.config.subnet for each in host.served] == [S1, S2]
        assert host.attached == [PODS]
        assert host.closed_on_loop == 0, "netlink blocks"
        daemon._close_all_leased()
        assert all(each.is_closed for each in host.served)

    tell(story)


@pytest.mark.parametrize("held_up", ["restore", "prepare", "announce"])
def test_a_network_is_not_closed_under_who_is_at_it_and_not_touched_after(
    tell: Callable[[Story], None], held_up: str
) -> None:
    async def story(host: Host, daemon: Daemon) -> None:
        await daemon._follow_leases()
        [network] = daemon._networks.values()
        host.begun.clear()
        host.held_up, host.leased = held_up, None
        at_it = asyncio.create_task(daemon._restore(network))
        await asyncio.to_thread(host.begun.wait, 10.0)
        closing = asyncio.create_task(daemon._follow_leases())
        waits = [asyncio.create_task(each(network)) for each in (daemon._restore, daemon._announce)]
        await asyncio.sleep(0.05)
        assert host.attached == [PODS]
        host.go_on.set()
        await asyncio.gather(at_it, closing, *waits)
        assert host.served[0].is_closed
        assert host.attached == []
        assert not [each for each in host.done if "closed" in each]
        assert PODS not in daemon._tables

    tell(story)
