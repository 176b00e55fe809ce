"""The daemon, and the composition root: the only file that knows everybody.

    open       underlays → devices → engine → tables (desired → reconcile → apply) → carrier
               → pool → leases → API → READY
    serve      one TaskGroup: upkeep every second, the netlink doorbell, the pool, signals
    close      the reverse, whatever was reached: nothing of ours is left on the host

Netlink and imports block, so they run before the loop turns or in a thread; everything else runs on the loop.
Over 500 lines: what is opened, kept up and closed here is one daemon, and its order is the point.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from control.device_macs import keep_macs, remembered_macs
from control.intent.desired import DesiredTables, Node
from control.intent.reconcile import Step, reconcile
from control.introspection import Introspector, Parts
from control.loop_lag import LagWatch
from control.network import ServedNetwork, UnderlaySurvey, device_addresses, survey
from control.operator import config as configuration
from control.operator.build import native_obstacle
from control.operator.schema import Config, Mode, NetworkConfig, NodeConfig, Switch
from control.operator.systemd import notify, reloading
from control.operator.takeover import take_over
from control.routed import serve, sweep
from control.steering import Steering, next_release, nodes_that_count, survey_of
from control.upkeep import aged, look_pause, refresh
from control.watching import Events
from overlay.addr import IpAddress, Mac, NetworkId
from overlay.errors import ConfigError, DatapathUnavailableError, DeviceError, Problem
from overlay.tables import Tables
from tunnel import ladder
from tunnel.datapath import NATIVE, Choice, open_datapath
from tunnel.datapath import choose as choose_datapath
from tunnel.injector import Injector, InjectTaps
from tunnel.ladder import Switches
from tunnel.netlink import Doorbell
from tunnel.underlay import UdpUnderlay, choose, resolve_underlays
from tunnel.xfrm import policy_bell

if TYPE_CHECKING:
    from control.pool import Pool

# Ours
UPKEEP_SECONDS = 1.0
UPKEEP_SLICE = 1024  # flows whose activity is read before the loop gets a turn
SURVEY_REST_SECONDS = 0.25  # between two surveys: a storm of netlink messages is one change
POOL_REST_SECONDS = 0.05  # the same of a storm of records
POOL_REST_MAX = 1.0
STEPS_PER_TURN = 64  # of a plan, before the loop may turn to others

log = logging.getLogger("weft")


def run(config: Config) -> int:
    """Serves until SIGTERM (0) or SIGINT (130).

    Raises:
        ConfigError: This build cannot run the configuration.
        DeviceError: The host refused something; everything made so far is gone again.
    """
    configuration.check_supported(config)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    log.setLevel(config.node.log.upper())  # what libraries have to say below a warning is theirs
    for note in config.notes:
        log.warning("%s", note)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Daemon(config).serve())


def choose_engine(config: Config) -> Choice:
    """Which engine carries, said aloud: the choice is never silent.

    Raises:
        ConfigError: More workers are wanted than the engine has, or cores that it or this process has not.
        DatapathUnavailableError: The native engine is wanted and cannot be had.
    """
    node = config.node
    choice = choose_datapath(node.engine.value, obstacle=native_obstacle())
    if problems := list(_what_is_not_to_be_had(node, choice)):
        raise ConfigError(*problems)
    reasons = [choice.reason]
    if node.workers > 1:
        reasons.append(f"{node.workers} workers")
    if node.cores:
        reasons.append(f"pinned to {_cores(node.cores)}")
    return replace(choice, reason="; ".join(reasons), workers=node.workers, cores=node.cores)


def _what_is_not_to_be_had(node: NodeConfig, choice: Choice) -> Iterator[Problem]:
    """Threads that the engine has not, and cores that this process may not use."""
    if choice.kind != NATIVE:
        why = f"the engine in Python has one thread, the daemon's ({choice.reason})"
        if node.workers > 1:
            yield Problem("node.workers", f"expected 1, found {node.workers}: {why}")
        if node.cores:
            yield Problem("node.cores", f"expected none, found {_cores(node.cores)}: {why}")
        return
    usable = os.sched_getaffinity(0)
    if missing := [core for core in node.cores if core not in usable]:
        why = f"expected cores this process may use ({_cores(sorted(usable))}), found {_cores(missing)}"
        yield Problem("node.cores", why)


def _cores(cores: Iterable[int]) -> str:
    return ", ".join(str(core) for core in cores)


def waits_for_lease(config: NetworkConfig) -> bool:
    """Whether the network can only be opened once its subnet is known."""
    return config.mode is Mode.ROUTED and config.subnet is None


def ladder_switches(config: Config) -> Switches:
    """What the operator says of each rung, in the tunnel's words."""
    return {
        feature: ladder.Switch(getattr(config.offload, feature.value).value) for feature in ladder.Feature
    }


class Daemon:
    """One node: everything it opened, and what keeps it as it must be."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._tables = Tables()
        self._underlays: tuple[UdpUnderlay, ...] = ()
        self._networks: dict[NetworkId, ServedNetwork] = {}
        self._pool: Pool | None = None
        self._macs: dict[str, Mac] = {}  # device → what it had when it was ours last
        self._unopened: dict[NetworkId, str] = {}  # those that have a lease and are not open, and why
        self._opens_again = False  # upkeep's word: they may be tried again
        self._repairs = config.offload.rx_repair is not Switch.OFF
        self._pool_changed = asyncio.Event()
        self._plans = 0
        self._telling = asyncio.Lock()  # two threads must not tell the kernel two things at once
        self._lag = LagWatch()
        self._inject_taps = InjectTaps()
        self._injectors: tuple[Injector, ...] = ()
        self._stopped = asyncio.Event()
        self._rang = asyncio.Event()  # the doorbell, or somebody who knows that the kernel must be looked at
        self._exit_code = 0
        self._failure: DatapathUnavailableError | None = None
        self._seen_until = time.monotonic()

    async def serve(self) -> int:
        """Opens, serves until told to stop, closes; the process's exit code."""
        async with AsyncExitStack() as stack:
            await self._open(stack)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._keep_up(), name="upkeep"),
                    group.create_task(self._lag.run(), name="lag"),
                    group.create_task(self._answer_the_door(stack), name="doorbell"),
                ]
                if self._pool is not None:
                    tasks.append(group.create_task(self._pool.run(), name="pool"))
                    tasks.append(group.create_task(self._follow(), name="steering"))
                await self._stopped.wait()
                notify("STOPPING=1")
                if self._pool is not None:
                    await self._pool.leave()
                for task in tasks:
                    task.cancel()
        if self._failure is not None:
            raise self._failure
        return self._exit_code

    # ── Opening ─────────────────────────────────────────────────────────────────────────────────────────

    async def _open(self, stack: AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
            loop.add_signal_handler(number, self._stop, code)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)  # nothing to reload before it is all there
        engine = choose_engine(self._config)
        log.info("engine %s: %s", engine.kind, engine.reason)

        self._doorbells = (Doorbell(), *policy_bell())  # before anything is looked at: no change goes unheard
        for bell in self._doorbells:
            stack.callback(bell.close)
        await asyncio.to_thread(self._open_underlays, stack)
        await asyncio.to_thread(self._open_networks, stack)
        stack.callback(self._close_all_leased)
        self._steering = Steering([underlay.address for underlay in self._underlays])
        self._open_datapath(stack, loop, engine)
        for network in self._networks.values():
            await self._announce(network)
            if network.unwritten is not None:
                raise network.unwritten
        await self._open_for_others(stack, engine)
        gc.freeze()  # what is there now stays: no collection walks it again
        gc.enable()  # `weft run` has put it aside for so long
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        self._introspector.ready = True
        notify("READY=1")

    def _open_datapath(self, stack: AsyncExitStack, loop: asyncio.AbstractEventLoop, engine: Choice) -> None:
        """The engine with its networks and tables; from here on frames cross."""
        self._datapath = open_datapath(
            engine,
            self._tables,
            self._underlays,
            reactor=loop,
            choose_underlay=self._choose_underlay,
            on_failure=self._fail,
        )
        stack.callback(self._datapath.close)
        for network in self._networks.values():
            self._program(network)  # before its port opens: who sends already is no stranger
            self._datapath.attach(network.attachment(repairs=self._repairs))

    async def _open_for_others(self, stack: AsyncExitStack, engine: Choice) -> None:
        """The pool and the local API.

        Their libraries take longer to import than everything else there is to do, so they are imported when
        frames cross already, and in a thread, so that they go on crossing.
        """
        await asyncio.to_thread(import_module, "control.operator.api")
        if self._config.gossip is not None:
            await asyncio.to_thread(import_module, "control.pool")
        from control.operator.api import ApiServer

        events = Events(self._datapath, self._tables, time.monotonic)
        if self._config.gossip is not None:
            from control.pool import Pool

            addresses = [underlay.address for underlay in self._underlays]
            self._pool = await Pool.open(self._config, addresses, tell=events.tell_peer)
            stack.callback(self._pool.close)
            self._pool.changed = self._pool_changed.set
            await self._follow_leases()
            self._note_devices(await asyncio.to_thread(device_addresses, self._devices()))
        parts = Parts(
            version=version("weft"),
            engine=engine,
            tables=self._tables,
            datapath=self._datapath,
            networks=self._networks,
            underlays=self._underlays,
            pool=self._pool,
            clock=time.monotonic,
            steering=self._steering,
            lag=self._lag,
        )
        self._introspector = Introspector(self._config, parts, events)
        api = ApiServer(
            self._introspector,
            path=str(self._config.node.socket),
            listen=self._config.api.listen,
            pool=self._pool,
        )
        stack.push_async_callback(api.close)
        await api.start()

    def _open_underlays(self, stack: AsyncExitStack) -> None:
        """Blocks for netlink."""
        switches = ladder_switches(self._config)
        stack.callback(self._inject_taps.close)
        for facts in resolve_underlays([str(name) for name in self._config.node.underlay]):
            underlay = UdpUnderlay(facts.address, facts.device, facts.mtu, switches=switches)
            stack.callback(underlay.close)
            self._underlays += (underlay,)
            injector = Injector(underlay, self._inject_taps, ring=self._rang.set)
            self._injectors += (injector,)
            underlay.super_doors = injector
            log.info("underlay %s on %s, MTU %d", facts.address, facts.device, facts.mtu)

    def _open_networks(self, stack: AsyncExitStack) -> None:
        """Blocks for netlink."""
        sweep(self._config.networks)
        if self._config.gossip is not None:
            self._macs = remembered_macs(Path(self._config.node.state_dir))
        for config in self._config.networks:
            if waits_for_lease(config):
                continue
            network = self._serve(config)
            stack.callback(network.close)
            self._networks[network.id] = network
            log.info("network %s on %s, MTU %d", network.id, config.device, network.mtu)

    def _serve(self, config: NetworkConfig) -> ServedNetwork:
        """The network with its device open, a queue for each worker; blocks for netlink."""
        mac, workers = self._macs.get(config.device), self._config.node.workers
        return serve(config, self._tables, self._underlays, mac, workers)

    def _choose_underlay(self, address: IpAddress) -> UdpUnderlay | None:
        return choose(self._underlays, address)

    async def _announce(self, network: ServedNetwork) -> None:
        """Has kernel and tables know the network and its peers, in `control.intent.reconcile`'s order."""
        async with self._telling:
            if self._is_served(network):
                await self._announce_locked(network)

    async def _announce_locked(self, network: ServedNetwork) -> None:
        wanted = self._look()[network.id]
        network.nodes = wanted.nodes
        await asyncio.to_thread(network.prepare)
        for step in reconcile({network.id: wanted}, self._tables, now=time.monotonic()):
            self._take(step)
        await asyncio.to_thread(network.announce)

    def _is_served(self, network: ServedNetwork) -> bool:
        """Whether it is still there: one whose lease was taken back goes while others wait."""
        return self._networks.get(network.id) is network

    def _program(self, network: ServedNetwork) -> None:
        """Makes the network's tables hold what is wanted now."""
        self._plans += 1
        wanted = {network.id: self._look()[network.id]}
        for step in reconcile(wanted, self._tables, now=time.monotonic()):
            self._take(step)

    def _look(self) -> DesiredTables:
        """What all tables must hold now."""
        now = time.monotonic()
        return self._steering.look(self._effective(), self._nodes(now=now), now=now)

    def _nodes(self, *, now: float) -> tuple[Node, ...]:
        pool = self._pool
        return () if pool is None or pool.has_left else nodes_that_count(pool.core, now=now)

    def _effective(self) -> list[NetworkConfig]:
        """The networks as they are now: one that leases its subnet has it from where it was opened on."""
        served = self._networks
        return [served[each.id].config if each.id in served else each for each in self._config.networks]

    def _take(self, step: Step) -> None:
        log.info("%s", step.what)
        self._tables.apply(step.delta)

    # ── The pool ────────────────────────────────────────────────────────────────────────────────────────

    async def _follow(self) -> None:
        """When a member or a record changes, or one of the dead no longer counts: programs what follows.

        A storm is one change: we rest for as long as what followed from the last one took.
        """
        rest = POOL_REST_SECONDS
        while True:
            await self._wait_for_pool()
            await asyncio.sleep(rest)
            self._pool_changed.clear()
            await self._follow_leases()
            started_at = time.monotonic()
            tables = await self._look_aside()
            await self._take_in_turns(self._steps_to(tables))
            await self._tell_kernel(tables)
            self._publish()
            rest = max(POOL_REST_SECONDS, min(POOL_REST_MAX, time.monotonic() - started_at))

    async def _follow_leases(self) -> None:
        """Opens a network when its subnet is leased, and closes it when it is no longer."""
        pool = self._pool
        if pool is None:
            return
        await pool.lease()
        self._steering.leases = pool.lease_words()
        opens_again, self._opens_again = self._opens_again, False
        for config in filter(waits_for_lease, self._config.networks):
            served, held = self._networks.get(config.id), pool.held(config.id)
            if served is not None and served.config.subnet != held:
                await self._close_leased(served)
            elif held is None:
                self._unopened.pop(config.id, None)
            elif served is None and (opens_again or config.id not in self._unopened):
                await self._try_leased(config.model_copy(update={"subnet": held}))

    async def _try_leased(self, config: NetworkConfig) -> None:
        """Opens it; where the host refuses, upkeep has it tried again."""
        try:
            await self._open_leased(config)
        except (DeviceError, OSError) as error:
            if self._unopened.get(config.id) != str(error):
                log.error("network %s: %s; weft tries again", config.id, error)
            self._unopened[config.id] = str(error)
        else:
            self._unopened.pop(config.id, None)

    async def _open_leased(self, config: NetworkConfig) -> None:
        """Opens it as at the start.

        Raises:
            DeviceError: The host refused something; nothing of the network is left behind.
        """
        network = await asyncio.to_thread(self._serve, config)
        self._networks[network.id] = network
        try:
            self._program(network)
            self._datapath.attach(network.attachment(repairs=self._repairs))
        except (DeviceError, OSError):
            await self._forget(network)
            raise
        log.info("network %s on %s, subnet %s", network.id, config.device, config.subnet)
        try:
            await self._announce(network)
        except DeviceError as error:  # the doorbell's round tries again, every second
            log.error("network %s: %s; %s", network.id, error, error.why)
            network.problem = error
            self._rang.set()
        await self._tell_addresses()

    async def _close_leased(self, network: ServedNetwork) -> None:
        log.error("network %s: its subnet %s is no longer ours", network.id, network.config.subnet)
        async with self._telling:  # who is at it has its device, and ends first
            self._datapath.detach(network.id)
            await self._forget(network)

    async def _forget(self, network: ServedNetwork) -> None:
        """Takes a network away that no engine carries."""
        del self._networks[network.id]
        await asyncio.to_thread(network.close)
        self._tables.remove_network(network.id)

    def _close_all_leased(self) -> None:
        """At the end: the networks that were opened when their subnet was leased."""
        for config in filter(waits_for_lease, self._config.networks):
            if (network := self._networks.get(config.id)) is not None:
                network.close()

    async def _look_aside(self) -> DesiredTables:
        """As `_look`, the loop turning meanwhile."""
        now = time.monotonic()
        scene = self._steering.scene(self._effective(), self._nodes(now=now), now=now)
        return self._steering.note(await asyncio.to_thread(survey_of, scene), now=now)

    def _steps_to(self, tables: DesiredTables) -> tuple[Step, ...]:
        """What the networks need that are known to our tables alone."""
        self._plans += 1
        ours = [each.id for each in self._networks.values() if not each.programs_kernel and each.id in tables]
        return reconcile({network: tables[network] for network in ours}, self._tables, now=time.monotonic())

    async def _tell_kernel(self, tables: DesiredTables) -> None:
        """Has the kernel know the nodes of the networks it routes, where they are others than before."""
        for network in tuple(self._networks.values()):
            wanted = tables.get(network.id)
            if not network.programs_kernel or wanted is None or wanted.nodes == network.nodes:
                continue
            try:
                await self._announce(network)
            except (DeviceError, OSError) as error:  # its device went: the doorbell has rung for that
                log.warning("network %s: %s", network.id, error)
                network.nodes = ()

    async def _wait_for_pool(self) -> None:
        due = next_release(self._pool.core.members, now=time.monotonic()) if self._pool is not None else None
        with suppress(TimeoutError):
            async with asyncio.timeout(None if due is None else max(0.0, due - time.monotonic())):
                await self._pool_changed.wait()

    async def _take_in_turns(self, steps: tuple[Step, ...]) -> None:
        """Takes the steps a few at a time; gives up where somebody has made another plan meanwhile."""
        plan = self._plans
        for number, step in enumerate(steps, 1):
            self._take(step)
            if number % STEPS_PER_TURN == 0:
                await asyncio.sleep(0)
                if plan != self._plans:
                    self._pool_changed.set()
                    return

    def _publish(self) -> None:
        """Says in the pool what is ours now."""
        if self._pool is not None:
            self._pool.publish(self._steering.own(self._effective(), now=time.monotonic()))

    def _keep_macs(self) -> None:
        """Has the disk know the MACs of our devices, so that a node is known wherever it comes back."""
        served = self._networks.values()
        macs = {network.config.device: network.own_mac for network in served if any(network.own_mac)}
        if not macs.items() <= self._macs.items():
            self._macs = self._macs | macs
            keep_macs(Path(self._config.node.state_dir), self._macs)

    def _devices(self) -> list[str]:
        return [network.config.device for network in self._networks.values()]

    def _note_devices(self, addresses: Mapping[str, Sequence[IpAddress]]) -> None:
        self._keep_macs()
        for network in self._networks.values():
            config = network.config
            if not any(network.own_mac):
                continue  # a TUN: it has none, and nothing is behind it but packets
            self._steering.serve(
                config, network.device.mac, addresses.get(config.device, ()), ageing=config.ageing_s
            )
        self._publish()

    # ── Serving ─────────────────────────────────────────────────────────────────────────────────────────

    def _stop(self, code: int) -> None:
        self._exit_code = code
        self._stopped.set()

    def _fail(self, error: DatapathUnavailableError) -> None:
        """The engine broke: nothing crosses any more, so everything is removed and the reason told."""
        log.error("%s; leaving", error)
        self._failure = error
        self._stopped.set()

    async def _keep_up(self) -> None:
        """Every second: expire flows, sample rates; every few, refresh what was seen and age what was not."""
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            now = time.monotonic()
            try:
                self._datapath.expire(now=now)
            except OSError as error:  # no descriptor left to read a counter with: frames still cross
                log.warning("upkeep: %s", error)
            if now - self._seen_until >= look_pause(each.config.ageing_s for each in self._networks.values()):
                await self._age(now=now)
            for network in tuple(self._networks.values()):
                if network.unwritten is not None:
                    await asyncio.to_thread(network.tell)
            for underlay in self._underlays:
                for feature in underlay.ladder.due(now=now):
                    is_on = underlay.probe(feature)
                    log.info("%s: %s again: %s", underlay.address, feature.value, "on" if is_on else "off")
            if self._pool is not None:
                self._pool.call_founders()
                if self._pool.waits_for_leases or self._unopened:
                    self._opens_again = True
                    self._pool_changed.set()
                self._steering.see(self._datapath.flows(), self._effective(), now=now)
                self._publish()
            for injector in self._injectors:
                await self._keep_doors(injector, now=now)
            self._introspector.tick(now=now)

    async def _age(self, *, now: float) -> None:
        """Notes which MACs were seen since the last time, and only then removes what has not been."""
        activity = iter(self._datapath.activity(since=self._seen_until))
        while seen := tuple(islice(activity, UPKEEP_SLICE)):
            self._tables.apply(refresh(each for each in seen if each.network in self._tables))
            await asyncio.sleep(0)
        self._seen_until = now
        for network in self._networks.values():
            delta = aged(network.id, self._tables[network.id], now=now, ageing=network.config.ageing_s)
            self._tables.apply(delta)

    async def _keep_doors(self, injector: Injector, *, now: float) -> None:
        """Names what got lost behind a door in use, and has one looked at that was shut long enough."""
        if now - injector.used_at < 2 * UPKEEP_SECONDS:
            try:
                await asyncio.to_thread(injector.poll)
            except DeviceError as error:
                log.warning("inject TAP: %s", error)
        if injector.is_due(now=now):
            self._rang.set()

    async def _answer_the_door(self, stack: AsyncExitStack) -> None:
        """When links, addresses or routes change: looks at everything again and restores what is ours."""
        loop = asyncio.get_running_loop()
        for bell in self._doorbells:
            loop.add_reader(bell.fileno(), self._answer, bell)
            stack.callback(loop.remove_reader, bell.fileno())
        self._rang.set()  # what there was to hear before anybody listened
        while True:
            await self._wait_for_change()
            for found in await self._survey():
                self._note_underlay(found)
            for injector in self._injectors:
                doors = await asyncio.to_thread(injector.survey)
                injector.take(doors, now=time.monotonic())
            self._datapath.reroute()
            for network in tuple(self._networks.values()):
                await self._restore(network)
            if self._pool is not None:
                await self._tell_addresses()
            await asyncio.sleep(SURVEY_REST_SECONDS)

    async def _tell_addresses(self) -> None:
        try:
            self._note_devices(await asyncio.to_thread(device_addresses, self._devices()))
        except DeviceError as error:  # the lists changed while they were read: the doorbell has rung for that
            log.debug("%s", error)

    def _answer(self, bell: Doorbell) -> None:
        """Reads the bell at once: left ringing, it would wake the loop without end while we look."""
        if bell.ring():
            for injector in self._injectors:
                injector.suspend()
            self._rang.set()

    async def _survey(self) -> tuple[UnderlaySurvey, ...]:
        """What the kernel says, asked again while its lists change under the reader (NLM_F_DUMP_INTR)."""
        while True:
            try:
                return await asyncio.to_thread(survey, self._underlays)
            except DeviceError as error:
                log.warning("%s: looking again", error)
                await asyncio.sleep(SURVEY_REST_SECONDS)

    async def _wait_for_change(self) -> None:
        """Returns when the doorbell rang, or after a second while something is still missing."""
        is_whole = all(network.problem is None for network in self._networks.values())
        patience = None if is_whole else UPKEEP_SECONDS
        try:
            async with asyncio.timeout(patience):
                await self._rang.wait()
        except TimeoutError:
            return
        self._rang.clear()

    def _note_underlay(self, found: UnderlaySurvey) -> None:
        missing = self._introspector.missing_underlays
        if found.mtu is None or found.device is None:
            if found.underlay not in missing:
                log.warning("underlay address %s is gone", found.underlay.address)
            missing.add(found.underlay)
            return
        if found.underlay in missing:
            log.info("underlay address %s is back on %s", found.underlay.address, found.device)
            missing.discard(found.underlay)
        self._rebind(found.underlay)
        found.underlay.device, found.underlay.mtu = found.device, found.mtu

    def _rebind(self, underlay: UdpUnderlay) -> None:
        try:
            underlay.rebind()
        except DeviceError as error:
            log.error("%s: %s", error, error.why)

    async def _restore(self, network: ServedNetwork) -> None:
        """Gives the network its device back, whatever happened to it."""
        async with self._telling:
            if self._is_served(network):
                await self._restore_locked(network)

    async def _restore_locked(self, network: ServedNetwork) -> None:
        mtu_before = network.mtu
        try:
            replaced = await asyncio.to_thread(network.restore, self._underlays)
        except DeviceError as error:
            if network.problem is None:
                log.error("network %s: %s; %s", network.id, error, error.why)
            network.problem = error
            self._program(network)
            return
        if replaced is not None or network.problem is not None or network.mtu != mtu_before:
            log.info("network %s on %s, MTU %d", network.id, network.config.device, network.mtu)
            network.problem = None
            self._datapath.replace_device(network.id, network.device, network.mtu)
        if replaced is not None:
            replaced.close()
        try:
            await self._announce_locked(network)
        except (DeviceError, OSError) as error:  # it went again meanwhile: the doorbell has rung for that
            log.warning("network %s: %s", network.id, error)

    def _reload(self) -> None:
        """SIGHUP: takes over changed peers, and names what waits for a restart."""
        notify(reloading())
        self._take_over()
        notify("READY=1")

    def _take_over(self) -> None:
        try:
            new = configuration.reload(self._config)
            configuration.check_supported(new)
        except ConfigError as error:
            log.error("configuration not reloaded: %s", error)
            return
        taken = take_over(self._config, new)
        if taken.waiting:
            log.warning("changed and needs a restart: %s", ", ".join(taken.waiting))
        self._config = taken.config
        self._introspector.use_config(self._config)
        if self._pool is not None:
            self._pool.take_over(self._config.networks)
        configs = {config.id: config for config in self._config.networks}
        for network in self._networks.values():
            network.config = configs[network.id].model_copy(update={"subnet": network.config.subnet})
            if not network.programs_kernel:
                self._program(network)
        self._rang.set()  # the rest takes a thread: neighbors and routes have their order with the tables
