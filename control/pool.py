"""This node's part in the pool: identity, keys, memory, and the core that speaks for it.

    open    read the disk → bind the sockets → write the new epoch       nothing has been said yet
    run     gossip, look named seeds up, write down what changes         until cancelled, or departed

The epoch is on disk before the first datagram leaves, so that no start of this node can be taken for an
earlier one; and the sockets are ours before it is written, so that a daemon that cannot be is no start.
Names among the seeds are resolved here, again and again; everything after that is the core's
(`membership.peer`), which this file feeds through its shell (`membership.gossip`).  Over 500 lines: all that
the rest of the daemon may ask of the pool is asked here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from control.intent.leases import Self
from control.intent.shared import Trouble
from control.leasing import Leasing
from control.membership.config import FIRST_REJOIN, REJOIN_INTERVAL, GossipConfig
from control.membership.events import (
    Answer,
    Cloned,
    Departed,
    Event,
    JoinFailed,
    JoinSucceeded,
    KeyringChanged,
    KeysAnswered,
    MemberChanged,
    NameConflict,
    RecordChanged,
    RecordForked,
    UdpBlocked,
)
from control.membership.gossip import Gossip
from control.membership.keyquery import KeyStep
from control.membership.keys import parse_key_untrusted
from control.membership.member import Endpoint, Member, MemberState, state_word
from control.membership.peer import Peer
from control.membership.recordbody import LeaseWord, NetworkRecord
from control.membership.records import RecordStatistics
from control.membership.secure import Envelope
from control.membership.snapshot import Snapshot
from control.membership.tags import WEFT_EPOCH, WEFT_ID
from control.operator import fields
from control.operator.problems import DEFAULT
from control.operator.schema import Config, NetworkConfig, default_bind
from control.operator.schema import GossipConfig as GossipTable
from control.operator.views import KeysView, LeaseView
from control.pool_files import PoolFiles
from control.resolver import look_up
from control.seeds import Seeds
from control.troubles import Troubles
from overlay.addr import IpAddress, NetworkId, is_address, parse_ip
from overlay.errors import (
    ConfigError,
    DeviceError,
    Ground,
    LeaseError,
    MembershipError,
    Problem,
    WireError,
)
from overlay.route import IpNetwork

# Ours
SNAPSHOT_SECONDS = 10.0  # between two looks whether the snapshot changed
LEAVE_SECONDS = 8.0  # how long a leave may take before we go without having been heard
ANSWER_SECONDS = 30.0  # how long an operator waits for a join or a key query

log = logging.getLogger("weft.pool")


class Pool:
    """One node in its pool.  `open` makes it able to speak; `run` gossips until cancelled or departed.

    Attributes:
        core: The member, and the records of all.
        changed: Called when a member or a record is another.
        was_cloned: Whether the pool has heard words of ours that we never said.
    """

    def __init__(
        self, settings: GossipConfig, table: GossipTable, files: PoolFiles, leasing: Leasing | None = None
    ) -> None:
        self._clock = asyncio.get_running_loop().time
        self._files = files
        self._leasing = leasing
        envelope = Envelope(files.keyring, nonce=os.urandom)
        self.core = Peer(settings, rng=random.SystemRandom(), envelope=envelope, now=self._clock())
        self._gossip = Gossip(self.core, bind_endpoint(table), self._event)
        self._tell: Callable[[str], None] = log.debug
        self.changed: Callable[[], None] = _nobody_listens
        names = (seed for seed in table.join if not is_address(seed.host))
        self._seeds = Seeds(settings.endpoint, settings.seeds, names)
        self._conflicts = Troubles()
        self._blocked = Troubles()
        self._doubled = Troubles()
        self._unsaid = Troubles()
        self.was_cloned = False
        self._departed = asyncio.Event()
        self._answers: dict[int, asyncio.Future[KeysAnswered]] = {}
        self._joins: dict[Endpoint, list[asyncio.Future[str | None]]] = {}

    @classmethod
    async def open(cls, config: Config, underlays: Iterable[IpAddress], tell: Callable[[str], None]) -> Pool:
        """The pool as the configuration has it, with what the disk remembers; its address is taken.

        `tell(text)` is called with what an operator who watches wants to know.

        Raises:
            ConfigError: The keyring or the snapshot is not one, or there is no address to advertise.
            DeviceError: The gossip's port is taken, or the state cannot be read or written.
        """
        table = config.gossip
        if table is None:
            raise ValueError("expected a [gossip] table, found none")
        addresses = tuple(underlays)
        if config.origins.get("gossip.bind") == DEFAULT.text:
            table = table.model_copy(update={"bind": default_bind(addresses)})
        own = advertised(table, addresses)
        with ExitStack() as undo:
            files = PoolFiles.open(Path(config.node.state_dir), table.keyring)
            undo.callback(files.close)
            settings = _settings(config.node.name, own, table, files.start)
            us = Self(config.node.name, files.start.weft_id, str(own))
            leasing = Leasing.open(config, us, is_first=files.start.epoch == 1, now=_now())
            pool = cls(settings, table, files, leasing)
            pool._tell = tell
            await pool._gossip.bind()
            undo.callback(pool._gossip.close)
            files.begin()
            undo.pop_all()
        return pool

    def close(self) -> None:
        """Gives back what `open` took.  Idempotent."""
        self._gossip.close()
        self._files.close()

    async def run(self) -> None:
        """Gossips, joins the seeds, and writes down what changes, until cancelled or departed."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = (
                    group.create_task(self._gossip.run(), name="gossip"),
                    group.create_task(self._join_named_seeds(), name="seeds"),
                    group.create_task(self._remember(), name="snapshot"),
                )
                await self._departed.wait()
                for task in tasks:
                    task.cancel()
        finally:
            self._files.keep(self.core)

    # ── What the operator asks for ──────────────────────────────────────────────────────────────────────

    @property
    def members(self) -> list[Member]:
        """Everybody known, by name, ourselves and the gone included; once we have left, ourselves alone."""
        if self.has_left:
            return [self.core.ourselves]
        return sorted(self.core.members, key=lambda member: member.name)

    @property
    def is_encrypted(self) -> bool:
        return bool(self._files.keyring)

    @property
    def has_left(self) -> bool:
        return self._departed.is_set()

    async def join(self, hosts: Iterable[str]) -> list[tuple[str, str | None]]:
        """Joins the pool these are in; for each what went wrong, or None.

        Raises:
            MembershipError: One is no host at all, or we have left.
        """
        self._require_membership("join")
        asked = [(host, _endpoint_of(host)) for host in hosts]
        answers = await asyncio.gather(*(self._join(endpoint) for _, endpoint in asked))
        return [(host, why) for (host, _), why in zip(asked, answers, strict=True)]

    async def _join(self, host: fields.Endpoint) -> str | None:
        try:
            endpoint, *_ = await self._resolve(host)
        except MembershipError as error:
            return str(error)
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._joins.setdefault(endpoint, []).append(answer)
        self.core.join(endpoint, now=self._clock())
        self._gossip.wake()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        except TimeoutError:
            return f"no answer in {ANSWER_SECONDS:g} s"

    async def leave(self) -> None:
        """Leaves the pool so that everybody knows; returns when it was heard, or after LEAVE_SECONDS."""
        self.core.leave(now=self._clock())
        self._gossip.wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._departed.wait()
        self._departed.set()  # not heard, we go all the same
        self.changed()

    async def keys(self, step: str, key: str | None) -> KeysView:
        """Has the whole pool take a step of a key rotation; what it answered.

        Raises:
            MembershipError: No such step, not a key, the pool does not encrypt, or we have left.
        """
        if step not in _KEY_STEPS:
            raise MembershipError(
                f"keys: expected one of {', '.join(_KEY_STEPS)}, found {step!r}",
                why="a rotation has no other step",
                advice="weft keys --help",
                ground=Ground.QUESTION,
            )
        self._require_membership("keys")
        if not self.is_encrypted:
            raise MembershipError(
                "keys: this pool is not encrypted",
                why="this node was started without a keyring",
                advice="weft run --keyring FILE, on every node of the pool",
            )
        try:
            octets = b"" if step == "list" else parse_key_untrusted(key or "")
        except WireError as error:
            raise MembershipError(
                f"keys {step}: {error}",
                why="a key is 16, 24 or 32 octets, written in base64",
                advice="weft keys list, or $(head -c 32 /dev/urandom | base64) for a new one",
                ground=Ground.QUESTION,
            ) from None
        number = self.core.ask_keys(_KEY_STEPS[step], octets, now=self._clock())
        answered: asyncio.Future[KeysAnswered] = asyncio.get_running_loop().create_future()
        self._answers[number] = answered
        self._gossip.wake()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                event = await answered
        except TimeoutError:
            raise MembershipError(
                f"keys: no answer in {ANSWER_SECONDS:g} s",
                why="the question to the pool has not ended",
                advice="weft members, then the same step again",
                ground=Ground.TIME,
            ) from None
        finally:
            self._answers.pop(number, None)
        return KeysView(event.members, event.responses, event.errors, event.keys, event.primary_keys)

    def vteps_of(self, name: str) -> tuple[IpAddress, ...]:
        """Where a peer says it receives; nothing as long as it has not said anything."""
        record = self.core.records.lookup(name)
        networks = record.networks if record is not None else ()
        return tuple(dict.fromkeys(address for network in networks for address in network.vteps))

    def record_counts(self) -> RecordStatistics:
        """What was counted of the records."""
        return self.core.records.statistics()

    def publish(self, networks: Sequence[NetworkRecord]) -> None:
        """Says this of ourselves from now on; where it is more than one node may say, what we said stands."""
        if self.has_left:
            return
        try:
            is_news = self.core.publish(networks, now=self._clock())
        except MembershipError as error:
            if self._unsaid.note("", str(error), now=self._clock()):
                log.error("%s", error)
            return
        self._unsaid.forget("")
        if is_news:
            self._gossip.wake()

    # ── Leases ──────────────────────────────────────────────────────────────────────────────────────────

    async def lease(self) -> None:
        """Does what follows for the leases from what the others say; `held` and `lease_words` show it."""
        if self._leasing is not None:
            await self._leasing.advance(self.core, is_cloned=self.was_cloned, now=self._clock())

    def take_over(self, networks: Iterable[NetworkConfig]) -> None:
        """Goes by the networks as the operator has them now."""
        if self._leasing is not None:
            self._leasing.take_over(networks)

    def call_founders(self) -> None:
        """Calls back dead founders we hold a subnet of: one that lost its book must hear that it had one."""
        if self._leasing is None or self.has_left:
            return
        for name in self._leasing.founders():
            member = self.core.lookup(name)
            if member is not None and member.state is MemberState.DEAD:
                self.core.call_back(name, now=self._clock())
        self._gossip.wake()

    def held(self, network: NetworkId) -> IpNetwork | None:
        """The subnet this node has leased in that network."""
        return self._leasing.held(network) if self._leasing is not None else None

    def lease_words(self) -> dict[NetworkId, LeaseWord]:
        """What this node says of the leases of its networks."""
        return self._leasing.words() if self._leasing is not None else {}

    @property
    def waits_for_leases(self) -> bool:
        return self._leasing is not None and self._leasing.is_waiting

    def leases(self) -> list[LeaseView]:
        """Every subnet anybody has."""
        return self._leasing.rows() if self._leasing is not None else []

    def lease_troubles(self) -> list[Trouble]:
        """What is wrong with the leases."""
        return list(self._leasing.troubles()) if self._leasing is not None else []

    async def release(self, subnet: str) -> None:
        """Takes a leased subnet back from a node that will not come back.

        Raises:
            LeaseError: It is not ours to take back, or its holder is alive.
        """
        await self._require_leases().release(subnet)
        self.changed()

    async def adopt(self, without: Iterable[str]) -> dict[str, int]:
        """Takes what the pool holds of our blocks for our book; how many grants it has, by network.

        Raises:
            LeaseError: We are no founder, or somebody is missing that might hold a subnet.
        """
        told = await self._require_leases().adopt(self.core, without)
        self.was_cloned = False
        self.changed()
        return told

    def _require_leases(self) -> Leasing:
        if self._leasing is None:
            raise LeaseError(
                "leases: no network here has `founders`",
                why="every subnet is static, or no network is routed",
                advice='founders = ["n1"] under [[network]]',
                ground=Ground.ABSENT,
            )
        return self._leasing

    def _require_membership(self, what: str) -> None:
        if self.has_left:
            raise MembershipError(
                f"{what}: this node has left the pool",
                why="the others know it as gone for good, until it starts anew",
                advice="restart weft to be in the pool again",
            )

    # ── What is not as it should be ─────────────────────────────────────────────────────────────────────

    @property
    def conflicts(self) -> list[str]:
        """Names used twice, as the operator should read it."""
        return self._conflicts.current(now=self._clock())

    @property
    def blocked(self) -> list[str]:
        """Members that answer over TCP and not over UDP."""
        return self._blocked.current(now=self._clock())

    @property
    def doubled(self) -> list[str]:
        """Nodes that are there twice: their disk was copied, or set back."""
        return self._doubled.current(now=self._clock())

    @property
    def unsaid(self) -> list[str]:
        """Why the others do not hear what is so here now."""
        return self._unsaid.current(now=self._clock())

    @property
    def unreached(self) -> Trouble | None:
        """Why nobody of the pool has answered yet, where this node was told whom to ask."""
        if self.has_left or len(self.core.members) > 1:
            return None
        return self._seeds.trouble(self.core.ourselves.endpoint.port)

    @property
    def unwritten(self) -> list[DeviceError]:
        """Why the disk does not hold what it should."""
        return self._files.problems

    # ── What the core tells ─────────────────────────────────────────────────────────────────────────────

    def _event(self, event: Event) -> None:
        match event:
            case MemberChanged(member, _):
                word = state_word(member.state)
                self._blocked.forget(member.name)
                log.info("member %s %s is %s", member.name, member.endpoint, word)
                self._tell(f"member {member.name} {member.endpoint} is {word}")
                self.changed()
            case NameConflict(name, known, claimed):
                text = f"{name} is used at {known} and at {claimed}"
                if self._conflicts.note(name, text, now=self._clock()):
                    log.error("name conflict: %s", text)
                    self._tell(f"name conflict: {text}")
            case UdpBlocked(name):
                if self._blocked.note(name, name, now=self._clock()):
                    log.warning("member %s answers over TCP and not over UDP", name)
                    self._tell(f"member {name} answers over TCP and not over UDP")
            case JoinSucceeded(endpoint):
                self._seeds.answered(endpoint)
                self._join_ended(endpoint, None)
            case JoinFailed(endpoint, why, answer):
                self._note_failed(endpoint, answer, why)
                self._join_ended(endpoint, why)
            case KeyringChanged():
                self._files.keep_keyring()
            case KeysAnswered(query):
                if (answered := self._answers.get(query)) is not None and not answered.done():
                    answered.set_result(event)
            case Departed():
                self._departed.set()
            case _:
                self._record_event(event)

    def _record_event(self, event: Event) -> None:
        match event:
            case RecordForked(name):
                self._note_double(name, f"{name} says two things under one version")
            case Cloned(epoch):
                self.was_cloned = True
                self._files.note_epoch(epoch)
                name = self.core.ourselves.name
                self._note_double(name, f"{name} (this node) has said what it never said")
            case RecordChanged():
                pass
            case _:
                return
        self.changed()

    def _note_double(self, name: str, text: str) -> None:
        if self._doubled.note(name, text, now=self._clock()):
            log.error("%s: a copied disk, or one that was set back", text)
            self._tell(text)

    def _note_failed(self, endpoint: Endpoint, answer: Answer, why: str) -> None:
        """Told once for each address, as long as nobody there was ever a member: of members that is told."""
        log.debug("join %s: %s", endpoint, why)
        if self.core.member_at(endpoint) is None and (words := self._seeds.failed(endpoint, answer, why)):
            log.warning("join %s: %s; weft tries again until it can", endpoint, words)

    def _join_ended(self, endpoint: Endpoint, why: str | None) -> None:
        for future in self._joins.pop(endpoint, []):
            if not future.done():
                future.set_result(why)

    # ── Seeds and memory ────────────────────────────────────────────────────────────────────────────────

    async def _join_named_seeds(self) -> None:
        """Seeds given by name are looked up anew every round: a name outlives the address behind it.

        The retry of this layer: soon while we are alone, for at boot the resolver may come up after us.
        """
        delay = FIRST_REJOIN
        while self._seeds.names:
            for seed in self._seeds.names:
                await self._join_named(seed)
            is_alone = not any(m.is_here for m in self.core.members if m.name != self.core.ourselves.name)
            await asyncio.sleep(delay if is_alone else REJOIN_INTERVAL)
            delay = min(2 * delay, REJOIN_INTERVAL)

    async def _join_named(self, seed: fields.Endpoint) -> None:
        try:
            found = await self._resolve(seed)
        except MembershipError as error:
            if self._seeds.unresolved(seed, str(error)):
                log.warning("%s; weft tries again until it can", error)
            return
        self._seeds.resolved(seed, found)
        known = [self.core.member_at(endpoint) for endpoint in found]
        lost = [endpoint for endpoint, member in zip(found, known, strict=True) if not _is_here(member)]
        self.core.join(*lost, now=self._clock())
        self._gossip.wake()

    async def _resolve(self, host: fields.Endpoint) -> list[Endpoint]:
        """The addresses of a host, of the family we gossip over; at least one."""
        family = socket.AF_INET6 if ":" in self.core.ourselves.endpoint.host else socket.AF_INET
        try:
            found = await look_up(host.host, host.port, family=family)
        except OSError as error:
            raise MembershipError(f"join {host}: {error.strerror}") from None
        except UnicodeError:
            raise MembershipError(f"join {host}: not a host name") from None
        return [Endpoint(*each) for each in found]

    async def _remember(self) -> None:
        while True:
            await asyncio.sleep(SNAPSHOT_SECONDS)
            await self._files.keep_in_thread(self.core)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _nobody_listens() -> None:
    """What is called until somebody wants to be."""


_KEY_STEPS: Mapping[str, KeyStep] = {
    "list": KeyStep.LIST,
    "install": KeyStep.INSTALL,
    "use": KeyStep.USE,
    "remove": KeyStep.REMOVE,
}


def bind_endpoint(table: GossipTable) -> Endpoint:
    """Where the sockets are bound.

    Raises:
        ConfigError: It is a name.
    """
    return _addressed("bind", table.bind)


def advertised(table: GossipTable, underlays: Iterable[IpAddress]) -> Endpoint:
    """Where the others are told to find us: as configured, else the bound address, else an underlay's.

    Raises:
        ConfigError: None of these is an address another node could use.
    """
    if table.advertise is not None:
        return _addressed("advertise", table.advertise)
    host, port = bind_endpoint(table)
    bound = parse_ip(host)
    if not bound.is_unspecified:
        return Endpoint(host, port)
    for underlay in underlays:
        if underlay.version == bound.version and not underlay.is_link_local:
            return Endpoint(str(underlay), port)
    why = f"expected an IPv{bound.version} underlay address to advertise, found none; name one here"
    raise ConfigError(Problem("gossip.advertise", why))


def _addressed(key: str, endpoint: fields.Endpoint) -> Endpoint:
    try:
        address = parse_ip(endpoint.host)
    except ValueError:
        why = f"expected an address, found the name {endpoint.host}"
        raise ConfigError(Problem(f"gossip.{key}", why)) from None
    return Endpoint(str(address), endpoint.port)


def _settings(name: str, own: Endpoint, table: GossipTable, start: Snapshot) -> GossipConfig:
    """What the core is told of this start."""
    return GossipConfig(
        name=name,
        endpoint=own,
        tags={WEFT_ID: start.weft_id, WEFT_EPOCH: str(start.epoch)},
        seeds=tuple(_addressed("join", seed) for seed in table.join if is_address(seed.host)),
        remembered=tuple(endpoint for _, endpoint in start.members),
        former=start.endpoint if start.endpoint != own else None,
        incarnation=start.incarnation,
        lamport=start.lamport,
    )


def _is_here(member: Member | None) -> bool:
    return member is not None and member.is_here


def _endpoint_of(text: str) -> fields.Endpoint:
    try:
        return fields.parse_endpoint(text, default_port=fields.GOSSIP_PORT)
    except ValueError as error:
        raise MembershipError(
            f"join {text}: {error}",
            why="a member is reached by an address or a host name, and a port",
            advice=f"weft join 192.0.2.2, or 192.0.2.2:{fields.GOSSIP_PORT}",
            ground=Ground.QUESTION,
        ) from None
