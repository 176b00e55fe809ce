"""Tables a simulation measured, kept in the repository: the same seed must measure the same.

A change of behaviour shows as a changed cell in review.  `UPDATE_SNAPSHOTS=1` writes them anew.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "data" / "membership"


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Rows under a head, as a Markdown table with aligned columns."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def assert_snapshot(name: str, text: str) -> None:
    """The text is what was kept under this name."""
    path = FOLDER / f"{name}.md"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(text)
    assert path.read_text() == text, f"{path} differs; if that is meant, run with UPDATE_SNAPSHOTS=1"
