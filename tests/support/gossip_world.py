"""A pool of whole members in one process: virtual time, one seed, and a network with every fault there is.

Nothing here sleeps, opens a descriptor or reads a clock.  One `Random(seed)` decides everything, members are
visited in a fixed order, so a seed is an execution; a failure prints it and writes what was last on the wire
under `tests/artifacts/`, as a pcapng for a packet analyser and as a Mermaid sequence diagram for a reader.
"""

from __future__ import annotations

import gc
import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from support.pcapng import write_pcapng

from control.membership.config import GossipConfig
from control.membership.events import Event, MemberChanged
from control.membership.member import Endpoint, MemberState
from control.membership.secure import Envelope, Keyring
from control.membership.serf import Serf
from control.membership.tags import encode_tags
from control.membership.wire import parse_untrusted, unwrap_untrusted
from overlay.errors import WireError

ARTIFACTS = Path(__file__).parents[1] / "artifacts"
REMEMBERED_DATAGRAMS = 4000
STREAM_CHUNK = 1400


@dataclass(slots=True)
class Weather:
    """What a link does to datagrams.

    Attributes:
        loss: Probability that one is lost.
        duplication: Probability that one arrives twice.
        delay: Seconds, smallest and largest; drawn per datagram, so a wide range reorders.
    """

    loss: float = 0.0
    duplication: float = 0.0
    delay: tuple[float, float] = (0.0005, 0.002)


@dataclass(slots=True)
class Actor:
    """One member in the world, and what the world does to it."""

    name: str
    endpoint: Endpoint
    core: Serf
    keyring: Keyring
    is_running: bool = True
    paused_until: float = 0.0
    rate: float = 1.0
    started_at: float = 0.0
    stepped: float = 0.0
    armed_for: float = -1.0
    backlog: list[Callable[[], None]] = field(default_factory=list)
    events: list[tuple[float, Event]] = field(default_factory=list)

    def clock(self, at: float) -> float:
        """This member's own monotonic clock."""
        return self.started_at * 0.37 + (at - self.started_at) * self.rate + self.stepped


@dataclass(slots=True)
class Pipe:
    """One TCP connection: which stream it is at either end."""

    client: Actor
    client_stream: int
    server: Actor
    server_stream: int


class World:
    """Members, their links, and the time.

    Args:
        seed: Decides everything.
        keeps_events: Whether each actor's events are kept for the test to read.
        core: What a member is made of: `Serf`, or a whole `Peer`.
    """

    def __init__(self, seed: int, *, keeps_events: bool = True, core: type[Serf] = Serf) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.now = 1000.0
        self.weather = Weather()
        self.links: dict[tuple[str, str], Weather] = {}
        self.cut: set[tuple[str, str]] = set()
        self.actors: dict[str, Actor] = {}
        self.by_endpoint: dict[Endpoint, Actor] = {}
        self.recent: deque[tuple[float, Endpoint, Endpoint, bytes]] = deque(maxlen=REMEMBERED_DATAGRAMS)
        self.sent = Counter[str]()
        self.octets = Counter[str]()
        self.watchers: list[Callable[[Actor, Event], None]] = []
        self._keeps_events = keeps_events
        self._core = core
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._pipes: dict[tuple[str, int], Pipe] = {}

    # Members.

    def add(self, name: str, **changes: object) -> Actor:
        """Start a member; its address follows from how many there are, unless `endpoint` is given."""
        endpoint = changes.pop("endpoint", None) or self.endpoint_of(len(self.by_endpoint) + 1)
        assert isinstance(endpoint, Endpoint)
        keys = changes.pop("keys", ())
        label = str(changes.get("label", ""))
        tags = changes.pop("tags", {"weft_id": name})
        config = replace(GossipConfig(name, endpoint, tags), **changes)  # type: ignore[arg-type]
        keyring = Keyring(keys)  # type: ignore[arg-type]
        envelope = Envelope(keyring, label, nonce=self.rng.randbytes)
        rng = Random(self.rng.getrandbits(64))
        actor = Actor(f"{name}@{endpoint}", endpoint, None, keyring, started_at=self.now)  # type: ignore[arg-type]
        actor.name = name
        actor.core = self._core(config, rng=rng, envelope=envelope, now=actor.clock(self.now))
        key = name if name not in self.actors or not self.actors[name].is_running else f"{name}@{endpoint}"
        self.actors[key] = actor
        self.by_endpoint[endpoint] = actor
        self._settle(actor)
        return actor

    def endpoint_of(self, number: int) -> Endpoint:
        """The address of the member that is added as this one, counted from 1."""
        return Endpoint(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 7946)

    def pool(self, count: int, **changes: object) -> list[Actor]:
        """A pool that has converged already: everybody knows everybody."""
        actors = [self.add(f"n{number:04}", **changes) for number in range(count)]
        self.converge(actors)
        return actors

    def converge(self, actors: list[Actor]) -> None:
        """Have everybody know everybody, as if they had talked for long."""
        ourselves = [replace(actor.core.ourselves, changed_at=0.0) for actor in actors]
        for actor in actors:
            roster = actor.core._swim.context.roster
            for member in ourselves:
                if member.name != actor.name:
                    roster.put(member)
        gc.freeze()  # millions of objects that stay: not worth visiting again and again

    def kill(self, actor: Actor) -> None:
        """Stop a member at once: kill -9."""
        actor.is_running = False

    def pause(self, actor: Actor, seconds: float) -> None:
        """Let a member stand still; what arrives waits in its sockets."""
        actor.paused_until = max(actor.paused_until, self.now + seconds)
        self.at(actor.paused_until, lambda: self._resume(actor))

    def step_clock(self, actor: Actor, seconds: float) -> None:
        """Let a member's clock jump, back or forth."""
        actor.stepped += seconds
        actor.armed_for = -1.0
        self._fire(actor)

    def _resume(self, actor: Actor) -> None:
        if not actor.is_running or actor.paused_until > self.now:
            return
        # As the shell does: what waited in the sockets first, then the timers.
        backlog, actor.backlog = actor.backlog, []
        for action in backlog:
            action()
        self._fire(actor)

    # The network.

    def partition(self, *sides: Iterable[Actor]) -> None:
        """Cut every link between the sides, both ways."""
        groups = [[actor.name for actor in side] for side in sides]
        for index, here in enumerate(groups):
            for there in groups[:index] + groups[index + 1 :]:
                self.cut.update((a, b) for a in here for b in there)

    def heal(self) -> None:
        """Mend every cut link."""
        self.cut.clear()

    def _weather_between(self, sender: str, receiver: str) -> Weather:
        return self.links.get((sender, receiver), self.weather) if self.links else self.weather

    def carry(self, sender: Actor, data: bytes, to: Endpoint) -> None:
        """Put one datagram on the network."""
        self.sent[sender.name] += 1
        self.octets[sender.name] += len(data)
        self.recent.append((self.now, sender.endpoint, to, data))
        receiver = self.by_endpoint.get(to)
        if receiver is None or (self.cut and (sender.name, receiver.name) in self.cut):
            return
        weather = self._weather_between(sender.name, receiver.name)
        if weather.loss and self.rng.random() < weather.loss:
            return
        copies = 2 if weather.duplication and self.rng.random() < weather.duplication else 1
        for _ in range(copies):
            self.at(
                self.now + self.rng.uniform(*weather.delay), _Delivery(self, receiver, data, sender.endpoint)
            )

    def inject(self, data: bytes, to: Actor, sender: Endpoint) -> None:
        """Have a stranger's datagram arrive now."""
        self.deliver(to, data, sender)

    def deliver(self, receiver: Actor, data: bytes, sender: Endpoint) -> None:
        """Hand a datagram to its receiver, or to its sockets while it stands still."""
        if not receiver.is_running:
            return
        if receiver.paused_until > self.now:
            receiver.backlog.append(lambda: self.deliver(receiver, data, sender))
            return
        receiver.core.receive_datagram(data, sender, now=receiver.clock(self.now))
        self._settle(receiver)

    # Streams: ordered, whole, and as slow as three crossings; they fail where a link is cut either way.

    def _open_stream(self, client: Actor, number: int, to: Endpoint, data: bytes) -> None:
        crossing = 3 * self.weather.delay[1]
        self.at(self.now + crossing, lambda: self._connect(client, number, to, data))

    def _connect(self, client: Actor, number: int, to: Endpoint, data: bytes) -> None:
        server = self.by_endpoint.get(to)
        if server is None or not server.is_running or not self._is_connected(client, server):
            self._on(client, lambda now: client.core.stream_closed(number, now=now, why="no answer"))
            return
        self._on(server, lambda now: self._accept(client, number, server, data, now))

    def _accept(self, client: Actor, number: int, server: Actor, data: bytes, now: float) -> None:
        server_number = server.core.accept_stream(Endpoint(client.endpoint.host, 40000), now=now)
        if server_number is None:
            self._on(client, lambda at: client.core.stream_closed(number, now=at, why="refused"))
            return
        self._pipes[server.endpoint.host, server_number] = Pipe(client, number, server, server_number)
        for start in range(0, len(data), STREAM_CHUNK):
            server.core.receive_stream(server_number, data[start : start + STREAM_CHUNK], now=now)

    def _write_stream(self, server: Actor, number: int, data: bytes) -> None:
        pipe = self._pipes.pop((server.endpoint.host, number), None)
        if pipe is None or not data or not self._is_connected(pipe.client, server):
            return
        self.at(self.now + 2 * self.weather.delay[1], lambda: self._reply(pipe, data))

    def _reply(self, pipe: Pipe, data: bytes) -> None:
        client = pipe.client
        self._on(client, lambda now: client.core.receive_stream(pipe.client_stream, data, now=now))

    def _is_connected(self, one: Actor, other: Actor) -> bool:
        return not self.cut or (
            (one.name, other.name) not in self.cut and (other.name, one.name) not in self.cut
        )

    # Time.

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Have something happen at that time."""
        self._order += 1
        heapq.heappush(self._queue, (when, self._order, action))

    def _on(self, actor: Actor, action: Callable[[float], None]) -> None:
        if not actor.is_running:
            return
        if actor.paused_until > self.now:
            actor.backlog.append(lambda: self._on(actor, action))
            return
        action(actor.clock(self.now))
        self._settle(actor)

    def settle(self, actor: Actor) -> None:
        """Carry away what a test has just made a member say."""
        self._settle(actor)

    def _settle(self, actor: Actor) -> None:
        core, now = actor.core, actor.clock(self.now)
        for datagram in core.datagrams_to_send(now=now):
            self.carry(actor, datagram.data, datagram.to)
        for opening in core.streams_to_open(now=now):
            self._open_stream(actor, opening.stream, opening.to, opening.data)
        for writing in core.streams_to_write(now=now):
            self._write_stream(actor, writing.stream, writing.data)
        while (event := core.next_event()) is not None:
            if self._keeps_events:
                actor.events.append((self.now, event))
            for watcher in self.watchers:
                watcher(actor, event)
        deadline = core.next_deadline()
        if deadline is not None and (deadline < actor.armed_for or actor.armed_for < 0):
            actor.armed_for = deadline
            due = actor.started_at + (deadline - actor.stepped - actor.started_at * 0.37) / actor.rate
            self.at(max(self.now, due) + 1e-9, _Firing(self, actor, deadline))

    def _fire(self, actor: Actor) -> None:
        if not actor.is_running or actor.paused_until > self.now:
            return
        actor.armed_for = -1.0
        actor.core.handle_timer(now=actor.clock(self.now))
        self._settle(actor)

    def run(self, seconds: float) -> None:
        """Let that much time pass."""
        end = self.now + seconds
        queue = self._queue
        while queue and queue[0][0] <= end:
            self.now, _, action = heapq.heappop(queue)
            action()
        self.now = end

    def run_until(self, claim: Callable[[], bool], *, within: float, step: float = 0.1) -> float:
        """Let time pass until the claim holds.  Returns the seconds it took.

        Raises:
            AssertionError: It does not hold within that time.
        """
        start = self.now
        while not claim():
            assert self.now - start < within, f"seed {self.seed}: still not so after {within} s"
            self.run(step)
        return self.now - start

    # What is believed.

    def running(self) -> list[Actor]:
        """The members that run."""
        return [actor for actor in self.actors.values() if actor.is_running]

    def is_one_pool(self, actors: Iterable[Actor] | None = None) -> bool:
        """Whether every one of these holds every one of these alive."""
        actors = list(self.running() if actors is None else actors)
        return all(believes(actor, other.name, MemberState.ALIVE) for actor in actors for other in actors)

    def write_artifacts(self, name: str) -> Path:
        """What was last on the wire, as pcapng and as Mermaid."""
        ARTIFACTS.mkdir(exist_ok=True)
        path = ARTIFACTS / f"{name}-seed{self.seed}"
        datagrams = list(self.recent)
        write_pcapng(
            path.with_suffix(".pcapng"), ((at, *src, *dst, data) for at, src, dst, data in datagrams)
        )
        path.with_suffix(".mmd").write_text(flow_log(self, datagrams[-200:]))
        return path


class _Delivery:
    """A datagram under way.  A class, because a thousand members have very many."""

    __slots__ = ("data", "receiver", "sender", "world")

    def __init__(self, world: World, receiver: Actor, data: bytes, sender: Endpoint) -> None:
        self.world, self.receiver, self.data, self.sender = world, receiver, data, sender

    def __call__(self) -> None:
        self.world.deliver(self.receiver, self.data, self.sender)


class _Firing:
    """A member's next deadline, unless an earlier one was set since."""

    __slots__ = ("actor", "deadline", "world")

    def __init__(self, world: World, actor: Actor, deadline: float) -> None:
        self.world, self.actor, self.deadline = world, actor, deadline

    def __call__(self) -> None:
        if self.actor.armed_for == self.deadline:
            self.world._fire(self.actor)


def believes(actor: Actor, name: str, state: MemberState) -> bool:
    """Whether a member holds another to be in that state."""
    member = actor.core._swim.context.roster.lookup(name)
    return member is not None and member.state is state


def changes_of(actor: Actor, name: str) -> list[tuple[float, MemberState]]:
    """When an actor was told which state of a member."""
    return [
        (at, event.member.state)
        for at, event in actor.events
        if isinstance(event, MemberChanged) and event.member.name == name
    ]


def weft_tags(weft_id: str, epoch: int = 1) -> dict[str, str]:
    """A weft node's tags."""
    assert encode_tags({"weft_id": weft_id})
    return {"weft_id": weft_id, "weft_epoch": str(epoch)}


def flow_log(world: World, datagrams: Iterable[tuple[float, Endpoint, Endpoint, bytes]]) -> str:
    """The datagrams as a Mermaid sequence diagram."""
    lines = ["sequenceDiagram", f"    Note over W: seed {world.seed}"]
    for at, sender, to, data in datagrams:
        receiver = world.by_endpoint.get(to)
        source = world.by_endpoint.get(sender)
        arrow = f"{source.name if source else sender.host}->>{receiver.name if receiver else to.host}"
        lines.append(f"    {arrow}: {at - 1000.0:.3f} s {describe(data)}")
    return "\n".join(lines) + "\n"


def describe(data: bytes) -> str:
    """The messages in a plain packet, in words."""
    try:
        messages = [parse_untrusted(raw) for raw in unwrap_untrusted(data)]
    except WireError:
        return f"{len(data)} octets"
    return ", ".join(
        f"{type(message).__name__} {getattr(message, 'node', '')}".strip() for message in messages
    )


@contextmanager
def world(seed: int, name: str, *, keeps_events: bool = True, core: type[Serf] = Serf) -> Iterator[World]:
    """A world that tells its seed and writes its artifacts when what is done in it fails."""
    made = World(seed, keeps_events=keeps_events, core=core)
    try:
        yield made
    except BaseException:
        path = made.write_artifacts(name)
        print(f"\n{name}: failed with seed {seed}; wrote {path}.pcapng and .mmd")
        raise
