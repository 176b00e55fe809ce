"""The daemon, and the composition root: the only file that knows everybody.

    open       underlays → devices → engine → tables (desired → reconcile → apply) → carrier
               → pool → API → READY
    serve      one TaskGroup: upkeep every second, the netlink doorbell, signals
    close      the reverse, whatever was reached: nothing of ours is left on the host

Netlink blocks, so it runs before the loop turns or in a thread; everything else runs on the loop.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from contextlib import AsyncExitStack
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING

import uvloop

from control.intent.desired import desired
from control.intent.reconcile import reconcile
from control.introspection import EngineChoice, Introspector, Parts
from control.network import ServedNetwork, UnderlaySurvey, survey
from control.operator import config as configuration
from control.operator.schema import Config, Engine, Switch
from control.operator.systemd import notify, reloading
from control.routed import serve, sweep
from control.upkeep import aged, refresh
from control.watching import Events
from overlay.addr import IpAddress, NetworkId
from overlay.errors import ConfigError, DatapathUnavailableError, DeviceError
from overlay.tables import Tables
from tunnel import ladder
from tunnel.injector import Injector, InjectTaps
from tunnel.ladder import Switches
from tunnel.netlink import Doorbell
from tunnel.poller import Poller
from tunnel.pydatapath import PythonDatapath
from tunnel.underlay import UdpUnderlay, choose, resolve_underlays
from tunnel.xfrm import policy_bell

if TYPE_CHECKING:
    from control.pool import Pool

# Ours
UPKEEP_SECONDS = 1.0
UPKEEP_SLICE = 1024  # flows whose activity is read before the loop gets a turn
SURVEY_REST_SECONDS = 0.25  # between two surveys: a storm of netlink messages is one change

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
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Daemon(config).serve())


def choose_engine(config: Config) -> EngineChoice:
    """Which engine carries, said aloud: the choice is never silent."""
    if config.node.engine is Engine.NATIVE:
        raise DatapathUnavailableError("native", "this build has none")
    if config.node.engine is Engine.PYTHON:
        return EngineChoice("python", "the configuration asks for it")
    return EngineChoice("python", "this build has no native engine")


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
        self._inject_taps = InjectTaps()
        self._injectors: tuple[Injector, ...] = ()
        self._stopped = asyncio.Event()
        self._rang = asyncio.Event()  # the doorbell, or somebody who knows that the kernel must be looked at
        self._exit_code = 0
        self._seen_until = time.monotonic()

    async def serve(self) -> int:
        """Opens, serves until told to stop, closes; the process's exit code."""
        async with AsyncExitStack() as stack:
            await self._open(stack)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._keep_up(), name="upkeep"),
                    group.create_task(self._answer_the_door(stack), name="doorbell"),
                ]
                if self._pool is not None:
                    tasks.append(group.create_task(self._pool.run(), name="pool"))
                await self._stopped.wait()
                notify("STOPPING=1")
                if self._pool is not None:
                    await self._pool.leave()
                for task in tasks:
                    task.cancel()
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
        self._open_datapath(stack, loop)
        for network in self._networks.values():
            await self._announce(network)
        await self._open_for_others(stack, engine)
        gc.freeze()  # what is there now stays: no collection walks it again
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        self._introspector.ready = True
        notify("READY=1")

    def _open_datapath(self, stack: AsyncExitStack, loop: asyncio.AbstractEventLoop) -> None:
        """The engine with its networks and tables; from here on frames cross."""
        self._datapath = PythonDatapath(
            self._tables,
            self._underlays,
            reactor=Poller(loop, time.monotonic),
            clock=time.monotonic,
            choose_underlay=self._choose_underlay,
        )
        stack.callback(self._datapath.close)
        repairs = self._config.offload.rx_repair is not Switch.OFF
        for network in self._networks.values():
            self._program(network)  # before its port opens: who sends already is no stranger
            self._datapath.attach(network.attachment(repairs=repairs))

    async def _open_for_others(self, stack: AsyncExitStack, engine: EngineChoice) -> None:
        """The pool and the local API.

        Their libraries take longer to import than everything else together, so they are imported here,
        when frames cross already.
        """
        from control.operator.api import ApiServer

        events = Events(self._datapath, self._tables, time.monotonic)
        if self._config.gossip is not None:
            from control.pool import Pool

            addresses = [underlay.address for underlay in self._underlays]
            self._pool = await Pool.open(self._config, addresses, tell=events.tell_peer)
            stack.callback(self._pool.close)
        parts = Parts(
            version=version("weft"),
            engine=engine,
            tables=self._tables,
            datapath=self._datapath,
            networks=self._networks,
            underlays=self._underlays,
            pool=self._pool,
            clock=time.monotonic,
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
        for config in self._config.networks:
            network = serve(config, self._tables, self._underlays)
            stack.callback(network.close)
            self._networks[network.id] = network
            log.info("network %s on %s, MTU %d", network.id, config.device, network.mtu)

    def _choose_underlay(self, address: IpAddress) -> UdpUnderlay | None:
        return choose(self._underlays, address)

    async def _announce(self, network: ServedNetwork) -> None:
        """Has kernel and tables know the network and its peers, in `control.intent.reconcile`'s order."""
        await asyncio.to_thread(network.prepare)
        self._program(network)
        await asyncio.to_thread(network.announce)

    def _program(self, network: ServedNetwork) -> None:
        """Makes the network's tables hold what is wanted now."""
        wanted = desired([network.config])
        for step in reconcile(wanted, self._tables, now=time.monotonic()):
            log.info("%s", step.what)
            self._tables.apply(step.delta)

    # ── Serving ─────────────────────────────────────────────────────────────────────────────────────────

    def _stop(self, code: int) -> None:
        self._exit_code = code
        self._stopped.set()

    async def _keep_up(self) -> None:
        """Every second: refresh what was seen, age what was not, expire flows, sample rates."""
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            now = time.monotonic()
            try:
                self._datapath.expire(now=now)
            except OSError as error:  # no descriptor left to read a counter with: frames still cross
                log.warning("upkeep: %s", error)
            activity = iter(self._datapath.activity(since=self._seen_until))
            while seen := tuple(islice(activity, UPKEEP_SLICE)):
                self._tables.apply(refresh(seen))
                await asyncio.sleep(0)
            self._seen_until = now
            for network in self._networks.values():
                delta = aged(network.id, self._tables[network.id], now=now, ageing=network.config.ageing_s)
                self._tables.apply(delta)
            for underlay in self._underlays:
                for feature in underlay.ladder.due(now=now):
                    is_on = underlay.probe(feature)
                    log.info("%s: %s again: %s", underlay.address, feature.value, "on" if is_on else "off")
            for injector in self._injectors:
                await self._keep_doors(injector, now=now)
            self._introspector.tick(now=now)

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
            for network in self._networks.values():
                await self._restore(network)
            await asyncio.sleep(SURVEY_REST_SECONDS)

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
            await self._announce(network)
        except (DeviceError, OSError) as error:  # it went again meanwhile: the doorbell has rung for that
            log.warning("network %s: %s", network.id, error)

    def _reload(self) -> None:
        """SIGHUP: takes over changed peers, and names what needs a restart."""
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
        changed = configuration.differences(self._config, new)
        if tuple(network.id for network in new.networks) != tuple(self._networks):
            log.warning("networks were added or removed: restart to take that over")
            return
        kept = [key for key in changed if ".peers" not in key]
        if kept:
            log.warning("changed and needs a restart: %s", ", ".join(kept))
        served = {network.id: network for network in self._config.networks}
        networks = tuple(
            served[network.id].model_copy(update={"peers": network.peers}) for network in new.networks
        )
        self._config = self._config.model_copy(update={"networks": networks})
        self._introspector.use_config(self._config)
        for config in networks:
            network = self._networks[config.id]
            network.config = config
            if not network.programs_kernel:
                self._program(network)
        self._rang.set()  # the rest takes a thread: neighbors and routes have their order with the tables
