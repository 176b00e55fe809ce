"""A record as pictures: SVG whose octets depend on the record alone.

    bars-<underlay>-<scenario>.svg    medians, with each run as a dot and the range of all as a line
    cdf-<underlay>-<scenario>.svg     how many requests were answered in how many microseconds
    knee-<underlay>-<scenario>.svg    how much is lost at which rate

No clock, no font file and no random name gets into them, so that a picture in the repository changes when its
figures do and at no other time.  matplotlib is the extra `bench`: without it everything but this works.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.record import AGAIN, Record
from bench.scenarios import SCENARIOS, Scenario

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Ours
WIDTH_IN, ROW_IN, CURVE_IN = 7.0, 0.36, 3.6
LEAST_LOSS = 0.01  # percent: below it the axis of losses is linear, so that nothing lost has a place too
SETTINGS: Any = {
    "svg.hashsalt": "weft",  # element names are hashes of this and the content
    "svg.fonttype": "none",  # text stays text, drawn in the reader's font
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
}
NO_DATE = {"Date": None, "Creator": None}
GREYS = {"bare": "#c4c4c4", "kernel": "#7a7a7a"}
OURS = ("#1b6ca8", "#3f9bd8", "#0b3c5d", "#74b9e8", "#14507c", "#a6d3f2")
OTHERS = ("#d98e32", "#b5651d", "#e8b877")


def why_no_plots() -> str | None:
    """Why nothing can be drawn here; None: it can."""
    try:
        import matplotlib as _  # noqa: F401, ICN001, PLC0415 - an extra, and slow to import
    except ImportError as error:
        return f"matplotlib cannot be imported: {str(error).strip().splitlines()[0]}"
    return None


def draw(record: Record, directory: Path) -> list[Path]:
    """Writes every plot there are runs for; those written.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, svg in plots(record):
        path = directory / f"{name}.svg"
        path.write_text(svg)
        written.append(path)
    return written


def plots(record: Record) -> Iterator[tuple[str, str]]:
    """Name and SVG of each plot, in the order of the record."""
    for underlay, name in record.measured():
        scenario = SCENARIOS[name]
        about = slug(f"{underlay}-{name}")
        values = _values(record, underlay, scenario)
        if values:
            yield f"bars-{about}", _picture(_bars(record, underlay, scenario), ROW_IN * len(values) + 1.0)
        for curve, (kind, draw_curve) in CURVES.items():
            found = _curves(record, underlay, name, curve)
            if found:
                title = f"{scenario.title} · {underlay}"
                yield f"{kind}-{about}", _picture(draw_curve(record, title, found), CURVE_IN)


def slug(text: str) -> str:
    """Fit for a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _picture(paint: Callable[[Axes], None], height_in: float) -> str:
    from matplotlib import rc_context  # noqa: PLC0415 - an extra, and slow to import
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="tight")
        paint(figure.add_subplot())
        octets = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(octets, metadata=NO_DATE)  # type: ignore[no-untyped-call]
    return octets.getvalue().decode()


# ── bars ────────────────────────────────────────────────────────────────────────────────────────────────


def _values(record: Record, underlay: str, scenario: Scenario) -> dict[str, list[float]]:
    """By forwarder, of those that have any."""
    found = {
        name: list(record.values(underlay, scenario.name, name, scenario.measure).values())
        for name in record.titles()
    }
    return {name: values for name, values in found.items() if values}


def _bars(record: Record, underlay: str, scenario: Scenario) -> Callable[[Axes], None]:
    values, titles = _values(record, underlay, scenario), record.titles()
    colours = colours_of(list(titles))

    def paint(axes: Axes) -> None:
        for row, (name, figures) in enumerate(values.items()):
            axes.barh(row, median(figures), color=colours[name], height=0.7)
            axes.plot([min(figures), max(figures)], [row, row], color="black", linewidth=1)
            axes.plot(figures, [row] * len(figures), "o", color="black", markersize=3, alpha=0.6)
        axes.set_yticks(range(len(values)), [titles[name] for name in values])
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{scenario.unit} ({scenario.better.value} is better)")
        axes.set_title(f"{scenario.title} · {underlay}", loc="left")

    return paint


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Greys for the yardsticks, blues for weft, browns for others; the same for the same names."""
    ours = [name for name in names if name.startswith(("weft", "nodes"))]
    others = [name for name in names if name not in ours and name.partition(":")[0] not in GREYS]
    found = {name: OURS[place % len(OURS)] for place, name in enumerate(ours)}
    found |= {name: OTHERS[place % len(OTHERS)] for place, name in enumerate(others)}
    return found | {name: GREYS[name.partition(":")[0]] for name in names if name not in found}


# ── curves ──────────────────────────────────────────────────────────────────────────────────────────────

Curve = list[tuple[float, float]]


def _curves(record: Record, underlay: str, scenario: str, name: str) -> dict[str, list[Curve]]:
    """By forwarder, a curve for each of its runs that has one."""
    found: dict[str, list[Curve]] = {}
    for run in record.runs:
        if (run.underlay, run.scenario) == (underlay, scenario) and name in run.curves:
            points = [(float(x), float(y)) for x, y in run.curves[name]]
            found.setdefault(run.forwarder, []).append(points)
    return {forwarder: curves for forwarder, curves in found.items() if not forwarder.endswith(AGAIN)}


def _cdf(record: Record, title: str, found: dict[str, list[Curve]]) -> Callable[[Axes], None]:
    titles, colours = record.titles(), colours_of(list(record.titles()))

    def paint(axes: Axes) -> None:
        for name, curves in found.items():
            points = middle_curve(curves)
            times, shares = [y for _, y in points], [x for x, _ in points]
            axes.plot(times, shares, color=colours[name], label=titles[name])
        axes.set_xscale("log")
        axes.set_xlabel("µs, at most")
        axes.set_ylabel("% of all")
        axes.set_title(title, loc="left")
        axes.legend(fontsize="small", frameon=False)

    return paint


def middle_curve(curves: Sequence[Curve]) -> Curve:
    """At every x that all have, the median of their y."""
    by_x = [dict(curve) for curve in curves]
    common = [x for x, _ in curves[0] if all(x in each for each in by_x)]
    return [(x, median(each[x] for each in by_x)) for x in common]


def _knee(record: Record, title: str, found: dict[str, list[Curve]]) -> Callable[[Axes], None]:
    titles, colours = record.titles(), colours_of(list(record.titles()))

    def paint(axes: Axes) -> None:
        for name, curves in found.items():
            points = sorted(point for curve in curves for point in curve)
            rates, losses = [x for x, _ in points], [100 * y for _, y in points]
            axes.plot(rates, losses, "o", color=colours[name], label=titles[name], markersize=4, alpha=0.7)
        axes.set_yscale("symlog", linthresh=LEAST_LOSS)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.set_xlabel("kframes/s offered")
        axes.set_ylabel("% lost")
        axes.set_title(title, loc="left")
        axes.legend(fontsize="small", frameon=False)

    return paint


CURVES = {"cdf_us": ("cdf", _cdf), "loss_at_kpps": ("knee", _knee)}
"""The curve's name in a run → the kind of plot, and what draws it."""
