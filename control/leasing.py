"""The leases of this node's networks, kept: what is decided goes to disk, and only then is so.

    state_dir/leases.json     `intent.leasememory`: the founder's book, and the lease held, of each network

A file that is torn is told from one that never was: the node has run before, so a founder without its book
has lost it (`intent.leases`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from control.intent.leasememory import LeaseMemory, encode_memory, parse_memory_untrusted
from control.intent.leaseplan import LeasePlan
from control.intent.leases import Leases, Self, Static, Word
from control.intent.shared import Trouble, pair
from control.membership.events import Refusal
from control.membership.recordbody import LeaseWord
from control.membership.tags import identity_of
from control.operator.lease_plan import configured_plan, whole_network
from control.operator.schema import Config, Mode, NetworkConfig
from control.operator.views import LeaseView
from control.state import KeptFile, read_file
from overlay.addr import NetworkId
from overlay.errors import ConfigError, DeviceError, Ground, LeaseError, Problem, WireError
from overlay.route import IpNetwork

if TYPE_CHECKING:
    from control.membership.peer import Peer

# Ours
LEASES_FILE = "leases.json"

log = logging.getLogger("weft.leases")


@dataclass(slots=True)
class _Leased:
    """One network's; `leases` is None until somebody has said who its founders are."""

    config: NetworkConfig
    leases: Leases | None = None


class Leasing:
    """One node's leases, in every network that has founders, or hopes to hear of some.

    Args:
        own: Who we are in the pool.
        is_first: Whether this node has never run before.
    """

    def __init__(self, file: KeptFile, memory: dict[str, LeaseMemory], own: Self, *, is_first: bool) -> None:
        self._file = file
        self._memory = memory
        self._own = own
        self._is_first = is_first
        self._networks: dict[NetworkId, _Leased] = {}
        self._pools: dict[NetworkId, int] = {}
        self._writing = asyncio.Lock()  # the file holds all networks: an older text must not come last

    @classmethod
    def open(cls, config: Config, own: Self, *, is_first: bool, now: float) -> Leasing | None:
        """Reads what the disk holds; None: there is nothing to lease.

        Raises:
            ConfigError: A network cannot be divided so, or the disk holds leases of another pool.
            DeviceError: The file cannot be read.
        """
        leased = [(index, each) for index, each in enumerate(config.networks) if is_leased(each)]
        if not leased:
            return None
        path = Path(config.node.state_dir) / LEASES_FILE
        memory = _remembered(path)
        leasing = cls(KeptFile(path), memory or {}, own, is_first=is_first and memory is not None)
        for index, network in leased:
            leasing._networks[network.id] = found = _Leased(network)
            known = leasing._memory.get(network.name)
            try:
                if (plan := _plan(network, known)) is not None:
                    found.leases = leasing._leases(network, plan, now=now)
            except LeaseError as error:
                raise ConfigError(Problem(f"network[{index}].founders", f"{error}; see {path}")) from None
        return leasing

    def _leases(self, network: NetworkConfig, plan: LeasePlan, *, now: float) -> Leases:
        return Leases(
            plan,
            self._own,
            self._memory.get(network.name),
            is_first=self._is_first,
            now=now,
            static=_static(network),
        )

    def take_over(self, networks: Iterable[NetworkConfig]) -> None:
        """Minds the static peers as the operator has them now."""
        for network in networks:
            if (leased := self._networks.get(network.id)) is not None:
                leased.config = leased.config.model_copy(update={"peers": network.peers})
                if leased.leases is not None:
                    leased.leases.static = _static(leased.config)

    # What is so.

    def _known(self) -> Iterator[tuple[NetworkId, Leases]]:
        return ((network, each.leases) for network, each in self._networks.items() if each.leases is not None)

    def words(self) -> dict[NetworkId, LeaseWord]:
        """What we say of each network."""
        return {network: leases.word() for network, leases in self._known()}

    def held(self, network: NetworkId) -> IpNetwork | None:
        """The subnet we have leased there."""
        leased = self._networks.get(network)
        return leased.leases.held if leased is not None and leased.leases is not None else None

    @property
    def is_waiting(self) -> bool:
        """Whether time alone may change something: somebody waits for a subnet."""
        return any(each.leases is None or each.leases.is_waiting for each in self._networks.values())

    def founders(self) -> set[str]:
        """Those we hold a subnet of."""
        held = (leases.memory.held for _, leases in self._known())
        return {each.founder for each in held if each is not None}

    def rows(self) -> list[LeaseView]:
        """Every subnet anybody has, by network and subnet."""
        return [
            LeaseView(network, str(row.subnet), row.node, row.state)
            for network, leases in self._known()
            for row in leases.rows()
        ]

    def troubles(self) -> Iterator[Trouble]:
        """What is not as it should be, by network."""
        for network, leases in self._known():
            for trouble in leases.troubles():
                yield Trouble(f"network {network}: {trouble.problem}", trouble.fix)
        for network, each in self._networks.items():
            if each.leases is None:
                pools = self._pools.get(network, 0)
                problem = (
                    f"{pools} pools meet here, and this node is told of none" if pools else "nobody leases"
                )
                yield Trouble(
                    f"network {network} has no subnet: {problem}",
                    f"subnet or founders under [[network]] {network}",
                )

    # What follows.

    async def advance(self, core: Peer, *, is_cloned: bool, now: float) -> None:
        """Decides what follows from what the others say, and writes it down."""
        has_strangers = _is_among_strangers(core)
        for network, each in self._networks.items():
            words = list(_words(core, each.config))
            if each.leases is None:
                self._learn(each, words, now=now)
            if each.leases is not None:
                each.leases.consider(
                    words,
                    is_cloned=is_cloned,
                    has_strangers=has_strangers,
                    elsewhere=self._grants_but_of(network),
                    now=now,
                )
                await self._write(network, each.leases)

    def _grants_but_of(self, network: NetworkId) -> int:
        return sum(len(leases.memory.grants) for other, leases in self._known() if other != network)

    def _learn(self, leased: _Leased, words: Iterable[Word], *, now: float) -> None:
        """Takes over what everybody else goes by; where they differ, the operator has to say."""
        plans = {
            (word.leases.pool_id, word.leases.founders, word.leases.subnet_len, word.leases.within)
            for word in words
            if word.leases is not None and word.leases.founders
        }
        self._pools[leased.config.id] = len(plans)
        if len(plans) != 1:
            return
        ((pool_id, founders, length, within),) = plans
        try:
            plan = LeasePlan(whole_network(leased.config), length, founders, within)
            if plan.pool_id != pool_id:  # of another network, whatever it is called
                self._pools[leased.config.id] = 2
                return
            leased.leases = self._leases(leased.config, plan, now=now)
        except LeaseError as error:
            log.error("network %s: %s", leased.config.id, error)

    async def _write(self, network: NetworkId, leases: Leases) -> None:
        async with self._writing:
            memory = leases.to_write()
            if memory is None:
                return
            before = leases.memory
            self._memory[network] = memory
            try:
                await asyncio.to_thread(self._file.write, encode_memory(self._memory))
            except DeviceError as error:
                self._memory[network] = before
                leases.not_written(str(error))
                log.error("leases of network %s: %s; %s", network, error, error.why)
                return
            leases.written()
            _tell(network, before, leases.memory)

    # What the operator asks for.

    async def release(self, subnet: str) -> None:
        """Takes a subnet back from a node that will not come back.

        Raises:
            LeaseError: It is no subnet, not ours to take back, its holder is alive, or the disk refused.
        """
        try:
            wanted = ip_network(subnet)
        except ValueError as error:
            raise LeaseError(
                f"release {subnet}: expected a subnet like 10.5.2.0/24, no host bits set",
                why=str(error),
                advice="weft leases",
                ground=Ground.QUESTION,
            ) from None
        for network, leases in self._known():
            if leases.plan.slot_of(wanted) is not None:
                leases.release(wanted)
                await self._carry_out(network, leases)
                return
        divided = [f"{leases.plan.network} in /{leases.plan.subnet_len}" for _, leases in self._known()]
        raise LeaseError(
            f"release {subnet}: expected a subnet of a leased network, found none",
            why=f"leased here: {', '.join(divided) or 'nothing yet'}",
            advice="weft leases",
            ground=Ground.ABSENT,
        )

    async def adopt(self, core: Peer, without: Iterable[str]) -> dict[str, int]:
        """Takes what the pool holds for our book, in every network we are a founder of; grants in each.

        Raises:
            LeaseError: We are no founder, somebody is missing that might hold a subnet, or the disk refused.
        """
        told: dict[str, int] = {}
        gone = tuple(without)
        for network, leases in self._known():
            if core.ourselves.name in leases.plan.founders:
                missing = _silent(core, self._networks[network].config)
                told[network] = leases.adopt(without=gone, missing=missing)
                await self._carry_out(network, leases)
        if not told:
            founders = {founder for _, leases in self._known() for founder in leases.plan.founders}
            raise LeaseError(
                "adopt: this node is a founder of no network",
                why=f"founders here: {', '.join(sorted(founders)) or 'none is known yet'}",
                advice="weft leases adopt, on a founder",
                ground=Ground.ABSENT,
            )
        return told

    async def _carry_out(self, network: NetworkId, leases: Leases) -> None:
        await self._write(network, leases)
        if (why := leases.unwritten) != "":
            raise LeaseError(
                f"network {network}: nothing was changed, the disk refused it",
                why=why,
                advice="make room and let weft write under its state_dir, then ask again",
            )


def is_leased(network: NetworkConfig) -> bool:
    """Whether there is anything to lease in this network, for us or by us."""
    return network.mode is Mode.ROUTED and (bool(network.founders) or network.subnet is None)


def _plan(network: NetworkConfig, known: LeaseMemory | None) -> LeasePlan | None:
    """The operator's plan; else that of those we joined, as it was when we were in their pool last."""
    if network.founders or known is None or not known.founders:
        return configured_plan(network, known.subnet_len if known is not None else None)
    return LeasePlan(whole_network(network), known.subnet_len, known.founders, known.within)


def _static(network: NetworkConfig) -> Static:
    """What the operator gave away."""
    return Static(network.subnet, tuple(node.subnet for node in network.nodes))


def _remembered(path: Path) -> dict[str, LeaseMemory] | None:
    """What the disk holds; nothing where there is no file; None where it cannot be understood."""
    text = read_file(path)
    if text is None:
        return {}
    try:
        return parse_memory_untrusted(text)
    except WireError as error:
        log.error("%s: %s; torn, or edited: whatever it held counts as lost", path, error)
        return None


def _words(core: Peer, network: NetworkConfig) -> Iterator[Word]:
    """What every other node says of this network."""
    for member in core.members:
        record = core.records.lookup(member.name)
        if member.name == core.ourselves.name or record is None or not member.is_peer:
            continue
        if record.key.weft_id != identity_of(member.meta)[0]:
            continue
        shared, _ = pair([network], record.networks, member.name)
        for each in shared:
            yield Word(member.name, record.key.weft_id, member.is_here, each.theirs)


def _is_among_strangers(core: Peer) -> bool:
    """Whether somebody unknown took us for a peer, and we have not heard everybody since."""
    if not core.statistics().refused.get(Refusal.NOT_A_PEER):
        return False
    own = core.ourselves.name
    peers = [each.name for each in core.members if each.is_here and each.is_peer and each.name != own]
    return not peers or any(core.records.lookup(name) is None for name in peers)


def _silent(core: Peer, network: NetworkConfig) -> list[str]:
    """Peers of which we hold no word: whatever they have, we do not know."""
    heard = {word.name for word in _words(core, network)}
    own = core.ourselves.name
    return [member.name for member in core.members if member.is_peer and member.name not in {*heard, own}]


def _tell(network: NetworkId, before: LeaseMemory, after: LeaseMemory) -> None:
    for grant in after.grants:
        if grant not in before.grants:
            what = "released by" if grant.is_released else "granted to"
            log.info("network %s: %s %s %s", network, grant.subnet, what, grant.node)
    if after.held != before.held:
        if after.held is None:
            log.error("network %s: our lease was released: it may be another node's now", network)
        else:
            log.info(
                "network %s: this node has %s, granted by %s", network, after.held.subnet, after.held.founder
            )
    if after.fence and after.fence != before.fence:
        log.error(
            "network %s: this founder grants nothing until `weft leases adopt`: %s", network, after.fence
        )
