"""A file's first line is its promise; a long file says why it is long."""

from __future__ import annotations

import ast
import re

import pytest
from support.source import ROOT, Source, sources

LONG = 500  # lines; STYLE: a file over it needs a sentence in its docstring saying why

WHY_LONG = re.compile(r"\bover 500 lines: |\blonger than most because ", re.IGNORECASE)

EVERYTHING = (*sources(), *sources("tests", "scripts"))


@pytest.mark.parametrize("source", EVERYTHING, ids=lambda source: source.name)
def test_the_first_line_is_a_promise(source: Source) -> None:
    promise = (ast.get_docstring(source.tree) or "").partition("\n")[0]
    first = next((line for line in source.text.splitlines() if not line.startswith("#!")), "")
    assert promise, "expected a docstring"
    assert promise in first, f"expected the docstring on the first line, found {first!r}"


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.name)
def test_a_long_file_says_why(source: Source) -> None:
    lines = source.text.count("\n")
    told = WHY_LONG.search(ast.get_docstring(source.tree) or "")
    assert lines <= LONG or told, f"{lines} lines: expected 'Over {LONG} lines: why' in the docstring"


def test_there_is_no_package_under_tests() -> None:
    # With one, pytest would import tests/overlay as the package overlay.
    assert not list((ROOT / "tests").rglob("__init__.py"))
