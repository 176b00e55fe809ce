"""What is measured: each scenario sends its traffic over one overlay, once, and says what arrived.

Every one has a value that is compared (`measure`), a direction in which it is better, and more figures beside
it.  A run takes its time from `--seconds`; what a scenario takes altogether is its `cost`, from which the
time left is told.

Over 500 lines: one scenario is understood by the next, and the list of all of them ends the file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from ipaddress import ip_interface

from bench.lab import checks
from bench.lab.commands import POLL_S, LabError
from bench.lab.namespaces import Place
from bench.meter import Meter, Usage
from bench.search import RateSearch
from bench.stage import Overlay
from bench.statistics import percentile
from bench.traffic.iperf import iperf_server, run_client, segment_payload
from bench.traffic.tool import Tool
from bench.traffic.udp import QUIET_S

# From the specification
ETHERNET_HEADER = 14

# Ours
TRAFFIC_PORT = 5300
RR_RATE = 1000  # requests/s
MANY_PAIRS = 10_000
PEERS = (1, 4, 16)
PEERS_RATE = 8000  # frames/s, to all peers together: what any forwarder carries, so that cost is compared
BROADCAST_RATE = 500
SEGMENTS_OF_EXCHANGE = 10  # of a connection: three to open it, four to close it, three with data or its ack
PRIMING_RATE = 5000  # frames/s: slow enough for any forwarder to learn each one
SMALL = 64
GRACE_S = 5.0  # for a program to say its result after its time is over
IDLE_AFTER_S = 5.0  # a host greets a new device for some seconds: duplicate addresses, routers, multicast
IDLE_S = 10.0  # a daemon's time is counted in ticks of 10 ms: one of them is 0.1 % then
SETTLE_S = 1.0
IDLE_BEFORE_S = 0.5
FIRST_ANSWER_WITHIN_S = 15.0
PERCENTILES = (50, 90, 99)
CDF_PERCENTILES = (0.0, 0.1, 0.5, 1.0, 2.0, *map(float, range(5, 95, 5)), 95.0, 98.0, 99.0, 99.5, 99.9, 100.0)


class Better(Enum):
    """Which way a value is better."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run brought.

    Attributes:
        octets: Of payload that arrived while metered.
        frames: Overlay frames that carried it; of TCP, as many as segments of full size make.
        measures: Figures by name; the scenario's own `measure` is among them.
        curves: Points [x, y] by name: what one figure does not tell.
    """

    octets: int
    frames: int
    measures: Mapping[str, float]
    usage: Usage
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Situation:
    """One run about to happen.

    Attributes:
        seconds: How long traffic flows.
        is_odd: Every other round; a scenario of two parts does the second first then.
    """

    overlay: Overlay
    seconds: float
    is_odd: bool = False

    @property
    def sender(self) -> Place:
        return self.overlay.stage.place(0)

    @property
    def receiver(self) -> Place:
        return self.overlay.stage.place(1)

    @contextmanager
    def metered(self) -> Iterator[Meter]:
        """A meter of the machine and of both hosts' daemons, running while the block lasts."""
        meter = Meter([partial(self.overlay.work, 0), partial(self.overlay.work, 1)])
        meter.start()
        yield meter
        meter.stop()

    def warm_up(self) -> None:
        """Neighbours resolved, flows remembered: a first frame's fate is not what is measured."""
        checks.ping(self.sender, self.overlay.address(1), count=2, interval_s=0.01)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing to measure.

    Attributes:
        measure: The name of the value that is compared.
        cost: Seconds one run takes, by the seconds its traffic flows.
        nodes: How many the stage needs.
        most_rounds: More would tell no more; None: as many as asked for.
        by_difference: Compared with the bare underlay by what is added to it, not by a ratio.
        is_alone: Compared with nothing: the value stands for itself.
    """

    name: str
    title: str
    measure: str
    unit: str
    better: Better
    run: Callable[[Situation], Outcome] = field(repr=False)
    cost: Callable[[float], float] = field(repr=False, default=lambda seconds: seconds + 1.0)
    nodes: int = 2
    most_rounds: int | None = None
    by_difference: bool = False
    is_alone: bool = False


# ── TCP ─────────────────────────────────────────────────────────────────────────────────────────────────


def run_tcp(situation: Situation, *options: str) -> Outcome:
    """One iperf3 run; `options` as its client takes them."""
    situation.warm_up()
    address, mtu = situation.overlay.address(1), situation.overlay.mtu
    with iperf_server(situation.receiver, address), situation.metered() as meter:
        run = run_client(situation.sender, address, situation.seconds, mtu, *options)
    segment = segment_payload(mtu)
    measures = {
        "gbit_s": run.gbit_s,
        "retransmits": float(run.retransmits),
        "segment_octets": float(segment),
    }
    return Outcome(run.octets, -(-run.octets // segment), measures, meter.usage)


def tcp(name: str, title: str, *options: str) -> Scenario:
    """A TCP scenario, by iperf3's options."""
    return Scenario(
        name, title, "gbit_s", "Gb/s", Better.HIGHER, lambda situation: run_tcp(situation, *options)
    )


# ── UDP ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class UdpRun:
    """Datagrams of one run, with the sender's and the receiver's own durations."""

    sent: int
    received: int
    sending_s: float
    receiving_s: float
    usage: Usage

    @property
    def loss(self) -> float:
        return max(0.0, 1 - self.received / self.sent) if self.sent else 1.0


def send_udp(situation: Situation, length: int, seconds: float, rate: float = 0.0) -> UdpRun:
    """One run of our own sender and receiver; rate 0 floods."""
    address = situation.overlay.address(1)
    timing = ["--length", length, "--seconds", seconds, "--rate", rate]
    with (
        Tool(situation.receiver, "udp", "receive", address, TRAFFIC_PORT) as receiver,
        Tool(situation.sender, "udp", "send", address, TRAFFIC_PORT, *timing) as sender,
        situation.metered() as meter,
    ):
        sender.begin()
        sent = sender.result(within=seconds + GRACE_S)
        received = receiver.result(within=QUIET_S + GRACE_S)
    if not received["received"]:
        raise LabError(f"none of {sent['sent']} datagrams arrived")
    return UdpRun(sent["sent"], received["received"], sent["seconds"], received["seconds"], meter.usage)


def run_udp_flood(situation: Situation, length: int) -> Outcome:
    """How many frames a second reach the receiving program when the sender does what it can."""
    situation.warm_up()
    run = send_udp(situation, length, situation.seconds)
    delivered = run.received / max(run.receiving_s, run.sending_s)
    measures = {
        "kpps": delivered / 1e3,
        "sent_kpps": run.sent / run.sending_s / 1e3,
        "loss": run.loss,
        "gbit_s": delivered * length * 8 / 1e9,
    }
    return Outcome(run.received * length, run.received, measures, run.usage)


def run_udp_lossless(situation: Situation, length: int) -> Outcome:
    """The highest rate at which at most one frame in a thousand is lost."""
    situation.warm_up()
    flood = send_udp(situation, length, situation.seconds / 2)
    search = RateSearch(flood.received / flood.sending_s)
    best: UdpRun | None = None
    tried: list[tuple[float, float]] = [(flood.sent / flood.sending_s / 1e3, flood.loss)]
    while (rate := search.next_rate()) is not None:
        run = send_udp(situation, length, situation.seconds / 2, rate)
        tried.append((run.sent / run.sending_s / 1e3, run.loss))
        if search.record(sent=run.sent, received=run.received, seconds=run.sending_s):
            best = run
    if best is None or search.best is None:
        raise LabError("no rate was carried without loss, however low")
    measures = {
        "kpps": search.best / 1e3,
        "loss": best.loss,
        "flood_kpps": flood.received / flood.sending_s / 1e3,
    }
    curves = {"loss_at_kpps": sorted(tried)}
    return Outcome(best.received * length, best.received, measures, best.usage, curves)


def udp_flood(length: int) -> Scenario:
    """A flood of datagrams of one length."""
    return Scenario(
        f"udp-{length}",
        f"UDP {length} B, flood, delivered",
        "kpps",
        "kframes/s",
        Better.HIGHER,
        lambda situation: run_udp_flood(situation, length),
        cost=lambda seconds: seconds + 1.5,
    )


# ── request and response ────────────────────────────────────────────────────────────────────────────────


def run_rr(situation: Situation) -> Outcome:
    """Round-trip times of single requests at RR_RATE."""
    situation.warm_up()
    address = situation.overlay.address(1)
    timing = ["--rate", RR_RATE, "--seconds", situation.seconds]
    with (
        Tool(situation.receiver, "echo", "answer", address, TRAFFIC_PORT),
        Tool(situation.sender, "echo", "ask", address, TRAFFIC_PORT, *timing) as asker,
        situation.metered() as meter,
    ):
        asker.begin()
        said = asker.result(within=situation.seconds + GRACE_S)
    times_ns = said["round_trips_ns"]
    if not times_ns:
        raise LabError(f"none of {said['sent']} requests was answered")
    measures = {f"p{percent}_us": percentile(times_ns, percent) / 1e3 for percent in PERCENTILES}
    measures["unanswered"] = float(said["sent"] - len(times_ns))
    frames = 2 * len(times_ns)
    curves = {"cdf_us": cdf_us(times_ns)}
    return Outcome(frames * SMALL, frames, measures, meter.usage, curves)


def cdf_us(times_ns: Sequence[int]) -> list[tuple[float, float]]:
    """Points of the cumulative distribution: [percent, microseconds], closer together towards the ends."""
    return [(percent, percentile(times_ns, percent) / 1e3) for percent in CDF_PERCENTILES]


# ── connections that come and go ────────────────────────────────────────────────────────────────────────


def run_churn(situation: Situation) -> Outcome:
    """TCP connections of one exchange each, one after another."""
    situation.warm_up()
    address = situation.overlay.address(1)
    with (
        Tool(situation.receiver, "churn", "answer", address, TRAFFIC_PORT),
        Tool(
            situation.sender, "churn", "ask", address, TRAFFIC_PORT, "--seconds", situation.seconds
        ) as asker,
        situation.metered() as meter,
    ):
        asker.begin()
        said = asker.result(within=situation.seconds + GRACE_S)
    times_ns = said["times_ns"]
    if not times_ns:
        raise LabError(f"none of {said['failed']} connections was answered")
    measures = {f"p{percent}_us": percentile(times_ns, percent) / 1e3 for percent in PERCENTILES}
    measures |= {"per_s": len(times_ns) / situation.seconds, "failed": float(said["failed"])}
    frames = len(times_ns) * SEGMENTS_OF_EXCHANGE
    return Outcome(frames * SMALL, frames, measures, meter.usage, {"cdf_us": cdf_us(times_ns)})


# ── many peers ──────────────────────────────────────────────────────────────────────────────────────────


def run_peers(situation: Situation, *, is_broadcast: bool) -> Outcome:
    """What a frame costs when the first node sends to every other, in turn or to all at once."""
    overlay = situation.overlay
    for index in overlay.stage.others(0):
        checks.ping(situation.sender, overlay.address(index), count=1)
    everybody = [overlay.address(index) for index in overlay.stage.others(0)]
    to = ip_interface(f"{everybody[0]}/24").network.broadcast_address if is_broadcast else None
    targets = str(to) if to else ",".join(map(str, everybody))
    timing = ["--seconds", situation.seconds, "--rate", BROADCAST_RATE if is_broadcast else PEERS_RATE]
    with ExitStack() as stack:
        receivers = [
            stack.enter_context(
                Tool(overlay.stage.place(index), "udp", "receive", to or overlay.address(index), TRAFFIC_PORT)
            )
            for index in overlay.stage.others(0)
        ]
        sender = stack.enter_context(
            Tool(situation.sender, "udp", "send", targets, TRAFFIC_PORT, "--length", SMALL, *timing)
        )
        with situation.metered() as before:
            time.sleep(IDLE_BEFORE_S)
        meter = stack.enter_context(situation.metered())
        sender.begin()
        sent = sender.result(within=situation.seconds + GRACE_S)["sent"]
        received = sum(each.result(within=QUIET_S + GRACE_S)["received"] for each in receivers)
    if not received:
        raise LabError(f"none of {sent} datagrams arrived")
    expected = sent * (len(everybody) if is_broadcast else 1)
    measures = {
        "us_per_frame": max(0.0, _added_cpu_s(before.usage, meter.usage)) / sent * 1e6,
        "sender_us_per_frame": meter.usage.daemons[0].cpu_s / sent * 1e6,
        "loss": max(0.0, 1 - received / expected),
    }
    return Outcome(received * SMALL, received, measures, meter.usage)


def _added_cpu_s(before: Usage, during: Usage) -> float:
    """What the machine was busy for beyond what it is without any traffic: much, at these rates."""
    return during.cpu_s - before.cpu_s / before.seconds * during.seconds


def peers(count: int, *, is_broadcast: bool = False) -> Scenario:
    """A scenario with so many nodes beside the first."""
    return Scenario(
        f"{'broadcast' if is_broadcast else 'peers'}-{count}",
        f"{'broadcast' if is_broadcast else 'unicast in turn'} to {count} peers, CPU",
        "us_per_frame",
        "µs/frame sent",
        Better.LOWER,
        lambda situation: run_peers(situation, is_broadcast=is_broadcast),
        cost=lambda seconds: seconds + IDLE_BEFORE_S + 1.0 + 0.2 * count,
        nodes=count + 1,
        most_rounds=5,
    )


# ── many MAC pairs ──────────────────────────────────────────────────────────────────────────────────────


def run_mac_pairs(situation: Situation) -> Outcome:
    """What is delivered between many MAC pairs, as a share of what is delivered between one."""
    situation.warm_up()
    priming = ["--pairs", MANY_PAIRS, "--rate", PRIMING_RATE, "--seconds", _priming_s()]
    station = situation.sender.run(["cat", f"/sys/class/net/{situation.overlay.device}/address"]).stdout
    _send_frames(situation, situation.receiver, *priming, "--announce-to", station.strip())
    _send_frames(situation, situation.sender, *priming)
    counts = (MANY_PAIRS, 1) if situation.is_odd else (1, MANY_PAIRS)
    rates, usage = {}, None
    for pairs in counts:
        rates[pairs], usage_now = _flood_frames(situation, pairs)
        usage = usage_now if pairs == MANY_PAIRS else usage
    if usage is None or not rates[1]:
        raise LabError("no frame arrived between one MAC pair")
    measures = {
        "ratio": rates[MANY_PAIRS] / rates[1],
        "one_kpps": rates[1] / 1e3,
        "many_kpps": rates[MANY_PAIRS] / 1e3,
    }
    frames = round(rates[MANY_PAIRS] * situation.seconds)
    return Outcome(frames * SMALL, frames, measures, usage)


def _priming_s() -> float:
    return MANY_PAIRS / PRIMING_RATE + 0.2


def _send_frames(situation: Situation, place: Place, *options: object) -> float:
    """How many seconds the frames took."""
    with Tool(place, "frames", situation.overlay.device, *options) as sender:
        sender.begin()
        return float(sender.result(within=_priming_s() + situation.seconds + GRACE_S)["seconds"])


def _flood_frames(situation: Situation, pairs: int) -> tuple[float, Usage]:
    """Frames a second that reached the far device, and what that took."""
    before = _received(situation)
    with situation.metered() as meter:
        timing = ["--pairs", pairs, "--seconds", situation.seconds]
        seconds = _send_frames(situation, situation.sender, *timing)
        after = _received_when_quiet(situation)
    return (after - before) / seconds, meter.usage


def _received_when_quiet(situation: Situation) -> int:
    """The counter, once it has stopped moving: queues are empty."""
    count = _received(situation)
    while True:
        time.sleep(POLL_S)
        now = _received(situation)
        if now - count <= 1:  # neighbor discovery may come in at any time
            return now
        count = now


def _received(situation: Situation) -> int:
    counter = f"/sys/class/net/{situation.overlay.device}/statistics/rx_packets"
    return int(situation.receiver.run(["cat", counter]).stdout)


# ── the daemon itself ───────────────────────────────────────────────────────────────────────────────────


def run_start_and_idle(situation: Situation) -> Outcome:
    """From start to the first answer over the overlay, then what it takes to do nothing."""
    overlay = situation.overlay
    address = overlay.address(1)
    patience = ["--within", FIRST_ANSWER_WITHIN_S]
    overlay.stop_node(0)
    # The other side must not send to the MAC of the device that is gone.
    situation.receiver.run(["ip", "neighbor", "flush", "dev", overlay.device])
    with (
        Tool(situation.receiver, "echo", "answer", address, TRAFFIC_PORT),
        Tool(situation.sender, "echo", "first", address, TRAFFIC_PORT, *patience) as asker,
    ):
        asker.begin()
        began = time.monotonic()
        overlay.start_node(0)
        answered_at = asker.result(within=FIRST_ANSWER_WITHIN_S + GRACE_S)["answered_at"]
    if answered_at is None:
        raise LabError(f"no answer within {FIRST_ANSWER_WITHIN_S:g} s of its start")
    overlay.await_reachable()
    time.sleep(IDLE_AFTER_S)
    with situation.metered() as meter:
        time.sleep(IDLE_S)
    idle = meter.usage.daemons[0].cpu_s / meter.usage.seconds
    measures = {
        "start_s": answered_at - began,
        "idle_percent": 100 * idle,
        "resident_mb": overlay.resident_octets(0) / 1e6,
    }
    return Outcome(0, 0, measures, meter.usage)


# ── all of them ─────────────────────────────────────────────────────────────────────────────────────────

ALL = (
    tcp("tcp-1", "TCP, 1 stream"),
    tcp("tcp-1-reverse", "TCP, 1 stream, reverse", "-R"),
    tcp("tcp-1-cubic", "TCP, 1 stream, CUBIC", "-C", "cubic"),  # whatever this host's default is
    tcp("tcp-4", "TCP, 4 streams", "-P", "4"),
    tcp("tcp-16", "TCP, 16 streams", "-P", "16"),
    tcp("tcp-both-ways", "TCP, 1 stream each way", "--bidir"),
    udp_flood(SMALL),
    udp_flood(512),
    udp_flood(1400),
    Scenario(
        "rate-64",
        "UDP 64 B, highest rate at ≤ 0.1 % loss",
        "kpps",
        "kframes/s",
        Better.HIGHER,
        lambda situation: run_udp_lossless(situation, SMALL),
        cost=lambda seconds: 17 * (seconds / 2 + 0.7),  # a flood, and seven rates of two tries or so
    ),
    Scenario(
        "rr",
        f"request and response, {RR_RATE}/s, p50",
        "p50_us",
        "µs",
        Better.LOWER,
        run_rr,
        by_difference=True,
    ),
    Scenario(
        "churn",
        "TCP connections of one exchange, one after another",
        "per_s",
        "1/s",
        Better.HIGHER,
        run_churn,
        cost=lambda seconds: seconds + 0.8,
    ),
    Scenario(
        "macs",
        f"{MANY_PAIRS} MAC pairs ÷ one pair, frames delivered",
        "ratio",
        "×",
        Better.HIGHER,
        run_mac_pairs,
        cost=lambda seconds: 2 * seconds + 2 * _priming_s() + 1.5,
        most_rounds=10,
        is_alone=True,
    ),
    Scenario(
        "daemon",
        "start to first answer",
        "start_s",
        "s",
        Better.LOWER,
        run_start_and_idle,
        cost=lambda _seconds: IDLE_S + IDLE_AFTER_S + 2.0,
        nodes=3,
        most_rounds=5,
        is_alone=True,
    ),
    *(peers(count) for count in PEERS),
    *(peers(count, is_broadcast=True) for count in PEERS),
)
SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in ALL}


def parse_scenario(text: str) -> Scenario:
    """The scenario of that name.

    Raises:
        ValueError: There is none; says which there are.
    """
    if text not in SCENARIOS:
        raise ValueError(f"expected one of {', '.join(SCENARIOS)}, found {text!r}")
    return SCENARIOS[text]
