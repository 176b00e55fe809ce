"""From a record to Markdown: what was measured, what follows from it, and what it was measured on.

Read downwards: a summary with a row for each scenario, the floors, then each scenario in full, the machine,
and everything that did not go as planned.  `summary` alone is what stands in the README.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import median

from bench.floors import Judgement, judge
from bench.meter import STEAL_MOST
from bench.record import AGAIN, Entry, Record, Run
from bench.scenarios import SCENARIOS, Better, Scenario
from bench.statistics import Estimate, estimate_difference, estimate_level, estimate_ratio

# Ours
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
NOTHING = "–"
KERNEL, BARE = "kernel", "bare"
MEASURE_TITLES = {
    "p50_us": "p50 µs",
    "p90_us": "p90 µs",
    "p99_us": "p99 µs",
    "idle_percent": "idle, % of a core",
    "resident_mb": "resident MB",
    "sent_kpps": "sent, kframes/s",
    "one_kpps": "one pair, kframes/s",
    "sender_us_per_frame": "of it the sending daemon's",
    "many_kpps": "many, kframes/s",
}
MORE_MEASURES = {
    "rr": ("p90_us", "p99_us"),
    "churn": ("p50_us", "p99_us", "failed"),
    "peers": ("sender_us_per_frame", "loss"),
    "broadcast": ("sender_us_per_frame", "loss"),
    "macs": ("one_kpps", "many_kpps"),
    "daemon": ("idle_percent", "resident_mb"),
    "udp": ("sent_kpps", "loss"),
    "tcp": ("retransmits",),
}
"""By scenario, or by what its name begins with."""

METHOD = (
    "Medians. A ratio is the median of the ratios within a round; after ≥ (or ≤) stands the bound it holds "
    "with 95 % confidence, by Student's t on the paired log-ratios. In every round each forwarder has one "
    "turn, every other round in reverse order."
)


def render(record: Record) -> str:
    """The whole report."""
    parts = [f"# weft bench, suite {record.suite}, {record.started_at}", ""]
    if record.partial:
        parts += ["**Partial: it was interrupted.** What follows is what there is.", ""]
    parts += [*summary(record), *_floors(record)]
    for underlay, name in record.measured():
        parts += _scenario(record, underlay, SCENARIOS[name])
    parts += [*_machine(record), *_remarks(record)]
    return "\n".join(parts).rstrip() + "\n"


def summary(record: Record) -> list[str]:
    """A row for each scenario and underlay, a column for each forwarder that was there."""
    titles = _present(record)
    rows = []
    for underlay, name in record.measured():
        scenario = SCENARIOS[name]
        cells = [_summary_cell(record, underlay, scenario, forwarder) for forwarder in titles]
        rows.append([f"{scenario.title}, {scenario.unit}", underlay, *cells])
    if not rows:
        return ["Nothing was measured.", ""]
    pairs = f"{record.pairs} rounds of {record.seconds:g} s"
    wake = f"wake-up {record.machine.wake_us:g} µs" if record.machine.wake_us is not None else "one core"
    machine = f"{record.machine.cores} × {record.machine.cpu}, {wake}, Linux {record.machine.kernel}"
    legend = "In brackets ÷ kernel VXLAN and its 95 % bound; for latencies, added to no overlay."
    return [*table(["", "underlay", *titles.values()], rows), "", f"{machine}; {pairs}. {legend}", ""]


def embed(text: str, record: Record, *, block: str = "", plots: Sequence[str] = ()) -> str:
    """The document with the summary between its markers, and after it the plots that are named.

    Raises:
        ValueError: It has no markers.
    """
    begin_line = f"{BEGIN.removesuffix(' -->')} {block} -->" if block else BEGIN
    before, begin, rest = text.partition(begin_line)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected {begin_line} and {END}, found no such lines")
    pictures = [f"![{path.rpartition('/')[2].removesuffix('.svg')}]({path})" for path in plots]
    lines = "\n".join([*summary(record), *pictures]).strip()
    return f"{before}{begin}\n{lines}\n{end}{after}"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown; the first column to the left, the others to the right, padded for a terminal."""
    cells = [list(headers), *map(list, rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(headers))]
    lines = ["| " + " | ".join(_padded(row, widths)) + " |" for row in cells]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [lines[0], "| " + " | ".join(rule) + " |", *lines[1:]]


def _padded(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    yield row[0].ljust(widths[0])
    yield from (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))


def _present(record: Record) -> dict[str, str]:
    """Name → title of the forwarders that have runs."""
    ran = {run.forwarder for run in record.runs}
    return {name: title for name, title in record.titles().items() if name in ran}


# ── figures ─────────────────────────────────────────────────────────────────────────────────────────────


def figure(value: float) -> str:
    """Three digits that mean something."""
    if value == 0:
        return "0"
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2 if abs(value) >= 0.0995 else 3
    return f"{value:.{digits}f}"


def _summary_cell(record: Record, underlay: str, scenario: Scenario, forwarder: str) -> str:
    value = _median(record, underlay, scenario, forwarder, scenario.measure)
    if value is None:
        return NOTHING
    compared = _comparison(record, underlay, scenario, forwarder)
    return figure(value) + (f" ({compared})" if compared else "")


def _median(record: Record, underlay: str, scenario: Scenario, forwarder: str, measure: str) -> float | None:
    values = record.values(underlay, scenario.name, forwarder, measure)
    return median(values.values()) if values else None


def _comparison(record: Record, underlay: str, scenario: Scenario, forwarder: str) -> str:
    """`0.52 ≥ 0.49`: with the baseline, and the bound on the side that counts against the forwarder."""
    if scenario.is_alone:
        values = record.values(underlay, scenario.name, forwarder, scenario.measure)
        return _bound(estimate_level(list(values.values())), scenario.better)
    compared = baseline_estimate(record, underlay, scenario, forwarder)
    if compared is None:
        return ""
    _, estimate = compared
    sign = "+" if scenario.by_difference and estimate.median >= 0 else ""
    return f"{sign}{figure(estimate.median)} {_bound(estimate, scenario.better)}".strip()


def baseline_estimate(
    record: Record, underlay: str, scenario: Scenario, forwarder: str
) -> tuple[str, Estimate] | None:
    """The baseline's name, and the ratio to it or what is added to it; None: there is nothing to compare."""
    baseline = BARE if scenario.by_difference else KERNEL
    if scenario.is_alone or forwarder == baseline:
        return None
    pairs = record.paired(underlay, scenario.name, (forwarder, baseline), scenario.measure)
    estimate = estimate_difference(pairs) if scenario.by_difference else estimate_ratio(pairs)
    return None if estimate is None else (baseline, estimate)


def _bound(estimate: Estimate | None, better: Better) -> str:
    if estimate is None or estimate.lower is None or estimate.upper is None:
        return ""
    return f"≥ {figure(estimate.lower)}" if better is Better.HIGHER else f"≤ {figure(estimate.upper)}"


# ── the parts below the summary ─────────────────────────────────────────────────────────────────────────


def _floors(record: Record) -> list[str]:
    judgements = list(judge(record))
    if not judgements:
        return []
    dear = " for machines where waking another core is dear" if record.machine.wakes_dearly else ""
    headers = ["floor of", "underlay", "forwarder", "compared with", "figure", "95 % bound", "floor", "aim"]
    headers += ["n", ""]
    rows = [_floor_row(judgement, record.titles()) for judgement in judgements]
    parts = ["## Floors", "", f"Floors{dear}, met when the 95 % bound reaches them.", ""]
    parts += table(headers, rows)
    if not all(judgement.may_be_published for judgement in judgements):
        parts += ["", "Ratios of fewer than 10 pairs are for orientation, not for publication."]
    return [*parts, ""]


def _floor_row(judgement: Judgement, titles: dict[str, str]) -> list[str]:
    floor, sign = judgement.floor, "≤" if judgement.floor.at_most else "≥"
    over = NOTHING if floor.over is None else titles.get(floor.over, floor.over)
    return [
        floor.title or SCENARIOS[floor.scenario].title,
        judgement.underlay,
        titles.get(judgement.forwarder, judgement.forwarder),
        ("added to " if floor.adds else "÷ " if floor.over else "") + over,
        figure(judgement.estimate.median),
        NOTHING if judgement.bound is None else f"{sign} {figure(judgement.bound)}",
        f"{sign} {judgement.needed:g}",
        NOTHING if floor.aim is None else f"{floor.aim:g}",
        str(judgement.estimate.count),
        judgement.verdict.value,
    ]


def _scenario(record: Record, underlay: str, scenario: Scenario) -> list[str]:
    more = _more_measures(scenario)
    compared = "95 %" if scenario.is_alone else "+ no overlay" if scenario.by_difference else "÷ kernel VXLAN"
    headers = ["forwarder", scenario.unit, "min … max", compared, *(MEASURE_TITLES.get(m, m) for m in more)]
    headers += ["CPU-s per GB", "CPU-s per Mframe", "daemons' CPU-s", "frames per write", "n"]
    titles = record.titles()
    rows = []
    for name in dict.fromkeys(run.forwarder for run in _runs(record, underlay, scenario)):
        title = f"{titles[name.removesuffix(AGAIN)]}, again (A/A)" if name.endswith(AGAIN) else titles[name]
        rows.append([title, *_scenario_cells(record, underlay, scenario, name, more)])
    return [f"## {scenario.title} · {underlay}", "", *table(*_without_empty_columns(headers, rows)), ""]


def _without_empty_columns(
    headers: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    kept = [column for column in range(len(headers)) if any(row[column] != NOTHING for row in rows)]
    return [headers[column] for column in kept], [[row[column] for column in kept] for row in rows]


def _runs(record: Record, underlay: str, scenario: Scenario) -> list[Run]:
    """Those of this scenario, in the order of the forwarders of the first round."""
    return [run for run in record.runs if (run.underlay, run.scenario) == (underlay, scenario.name)]


def _scenario_cells(
    record: Record, underlay: str, scenario: Scenario, name: str, more: Sequence[str]
) -> Iterator[str]:
    values = list(record.values(underlay, scenario.name, name, scenario.measure).values())
    if not values:
        yield from [NOTHING] * (len(more) + 7)
        yield "0"
        return
    yield figure(median(values))
    yield f"{figure(min(values))} … {figure(max(values))}"
    yield _comparison(record, underlay, scenario, name) or NOTHING
    for measure in (*more, "cpu_s_per_gb", "cpu_s_per_mframe", "daemon_cpu_s", "frames_per_write"):
        value = _median(record, underlay, scenario, name, measure)
        yield NOTHING if value is None else figure(value)
    yield str(len(values))


def _more_measures(scenario: Scenario) -> tuple[str, ...]:
    return MORE_MEASURES.get(scenario.name) or MORE_MEASURES.get(scenario.name.partition("-")[0], ())


def _machine(record: Record) -> list[str]:
    machine = record.machine
    wake = "one core" if machine.wake_us is None else f"{machine.wake_us:g} µs between two cores"
    facts = [
        f"{machine.cores} cores of {machine.cpu}, Linux {machine.kernel}, {machine.python}",
        f"waking another process: {wake}, {machine.wake_same_core_us} µs on one",
        f"layout: {machine.layout}",
        *([f"congestion control of TCP: {machine.congestion_control}"] if machine.congestion_control else []),
        f"load before: {machine.load:g}",
        *_pace(record),
        f"weft {machine.revision or 'outside a repository'}, native engine {machine.native}",
        *(version for version in machine.versions.values()),
    ]
    for stage, about in record.stages.items():
        if "why" in about:
            continue
        offloads = ", ".join(f"{name} {state}" for name, state in about["offloads"].items())
        facts.append(f"{stage}: MTU {about['mtu']}; {offloads}")
        facts.append(f"{stage}: all daemons, idle: {about['idle_daemons_percent']:g} % of a core")
    return ["## Machine and method", "", METHOD, "", *(f"- {fact}" for fact in facts), ""]


def _pace(record: Record) -> Iterator[str]:
    """How slow the cores were beside the runs; records from before this was looked at have nothing to say."""
    slowed = [run.measures["slowed"] for run in record.runs if "slowed" in run.measures]
    if slowed:
        shown = f"median {median(slowed):.0%}, at most {max(slowed):.0%}"
        yield f"the slowest core against its own best, before and after each run that counts: {shown} slower"


def _remarks(record: Record) -> list[str]:
    remarks = [f"{entry.title} ({_stage_of(entry)}): {entry.why}" for entry in record.entries if entry.why]
    for entry in record.entries:
        for rungs in (underlay["rungs"] for underlay in entry.facts.get("underlays", ())):
            chosen = f"egress {rungs['egress']}, ingress {rungs['ingress']}: {rungs['reason']}"
            remarks.append(f"{entry.title} ({_stage_of(entry)}): {chosen}")
    if record.steal_most > STEAL_MOST:
        allowed = f"{record.steal_most:.0%}"
        remarks.append(f"runs count from which up to {allowed} of the time was stolen: for orientation only")
    if record.slowed_most is not None:
        remarks.append(f"runs count before and after which no core was slower than {record.slowed_most:.0%}")
    remarks += [f"not measured: {about['why']}" for about in record.stages.values() if "why" in about]
    redone = sum(run.redone for run in record.runs)
    if redone:
        remarks.append(f"{redone} runs were done anew because time or pace had been taken from them")
    remarks += [
        f"{run.scenario}, {run.underlay}, {run.forwarder}, round {run.round + 1}: {run.error}"
        for run in record.runs
        if run.error
    ]
    return ["## Remarks", "", *(f"- {' '.join(remark.split())}" for remark in remarks), ""] if remarks else []


def _stage_of(entry: Entry) -> str:
    return f"{entry.underlay}, {entry.nodes} nodes"
