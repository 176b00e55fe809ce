"""What is done with records when nothing is measured: `weft bench report` and `compare`; and `serve`.

    weft bench report results/…                       print the report again
    weft bench report bench/history/0.1.0.json --readme README.md --plots docs/plots
    weft bench compare bench/history/0.1.0.json results/… --threshold 10
    weft bench serve /run/bench/far2.sock             be a station, in a container beside a bench's

A record is a directory of `results/`, or one JSON document as `--json` prints it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from bench.compare import Change, render_comparison, rows_as_data
from bench.compare import compare as compare_records
from bench.lab.commands import sigterm_as_exit
from bench.plots import draw, why_no_plots
from bench.record import SCHEMA, Record, as_document
from bench.report import embed, render
from bench.results import read_results
from bench.station.serve import Station
from control.operator.cli.output import print_json
from control.operator.failure import ExitCode, Failure

# Ours
COMPARE_SCHEMA = "weft.bench.compare/1"
THRESHOLD_PERCENT = 10.0

existing = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("record", type=existing)
@click.option(
    "--readme",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Write the summary between this document's markers instead of printing the report.",
)
@click.option("--block", default="", metavar="NAME", help="Of the document's markers, those with this name.")
@click.option(
    "--plots", type=click.Path(file_okay=False, path_type=Path), help="Draw the plots there, as SVG."
)
@click.option("--json", "as_json", is_flag=True, help=f"Print the record as JSON ({SCHEMA}).")
def report(record: Path, readme: Path | None, block: str, plots: Path | None, as_json: bool) -> None:
    """Print the report of RECORD: a directory of results, or a JSON file of an earlier bench."""
    found = _read(record)
    drawn = _draw(found, plots) if plots is not None else []
    if readme is not None:
        _embed(found, readme, block, drawn)
    elif as_json:
        click.echo(json.dumps(as_document(found)))
    elif plots is None:
        click.echo(render(found), nl=False)


@click.command()
@click.argument("before", type=existing)
@click.argument("after", type=existing)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1000),
    default=THRESHOLD_PERCENT,
    show_default=True,
    metavar="PERCENT",
    help="What is worse by more, and surely worse, has regressed.",
)
@click.option("--json", "as_json", is_flag=True, help=f"Print the rows as JSON ({COMPARE_SCHEMA}).")
def compare(before: Path, after: Path, threshold: float, as_json: bool) -> int:
    """Compare two records; exits with 1 if weft has regressed from BEFORE to AFTER."""
    records = _read(before), _read(after)
    rows = list(compare_records(*records, threshold / 100))
    if as_json:
        print_json(COMPARE_SCHEMA, rows_as_data(rows))
    else:
        click.echo(render_comparison(*records, rows, threshold / 100), nl=False)
    regressed = any(row.change is Change.REGRESSED for row in rows)
    return ExitCode.CHECK_FAILED if regressed else ExitCode.OK


@click.command()
@click.argument("socket", type=click.Path(path_type=Path))
def serve(socket: Path) -> None:
    """Run in this container what `weft bench --far SOCKET` in another asks for, until it is stopped.

    SOCKET lies on a volume that both have; whoever can open it can run anything here.
    """
    try:
        station = Station(socket)
    except OSError as error:
        raise Failure(
            f"cannot listen on {socket}: {error.strerror}",
            why="a Unix socket cannot be made there",
            advice="name a socket on a volume that both containers have mounted",
        ) from error
    with sigterm_as_exit(), contextlib.closing(station):
        station.serve()


@contextlib.contextmanager
def writing(where: Path) -> Iterator[None]:
    """A full disk, or one that may not be written, becomes three lines.

    Raises:
        Failure: What was written by then is kept.
    """
    try:
        yield
    except OSError as error:
        advice = "weft bench --out DIRECTORY, on another disk"
        if error.errno == errno.ENOSPC:
            advice = "make room, or weft bench --out DIRECTORY on another disk"
        refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        raise Failure(
            f"cannot write {error.filename or where}: {os.strerror(error.errno or errno.EIO)}",
            why="results are written run by run; what there is so far is kept",
            advice=advice,
            code=ExitCode.PERMISSION if refused else ExitCode.CHECK_FAILED,
        ) from error


def _read(path: Path) -> Record:
    try:
        return read_results(path)
    except (ValueError, OSError) as error:
        raise Failure(f"no report of {path}", why=str(error), advice="weft bench") from error


def _draw(record: Record, directory: Path) -> list[Path]:
    if (why_not := why_no_plots()) is not None:
        raise Failure("cannot draw plots", why=why_not, advice="pip install 'weft[bench]'")
    with writing(directory):
        return draw(record, directory)


def _embed(record: Record, document: Path, block: str, plots: Sequence[Path]) -> None:
    links = [os.path.relpath(path, document.parent) for path in plots]
    try:
        with writing(document):
            document.write_text(embed(document.read_text(), record, block=block, plots=links))
    except ValueError as error:
        advice = "put the two lines where the summary is to stand"
        raise Failure(f"no summary in {document}", why=str(error), advice=advice) from error
