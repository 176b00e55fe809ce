"""We say the words of the field, and only those."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.source import ROOT, Source, sources

# What we never say, and what we say.
WORDS = {
    r"mac[ _-]?tables?": "FDB",
    r"vnids?": "VNI",
    r"arp[ _-]?(cache|table)s?": "neighbor table",
    r"(physical|virtual)[ _](network|net)s?": "underlay, overlay",
    r"(inner|outer)[ _](network|net)s?": "overlay, underlay",
    r"miss[ _]handlers?": "upcall",
    r"full[ _]sync": "anti-entropy, push-pull",
}
NEVER = re.compile("|".join(rf"(?<![A-Za-z]){word}(?![A-Za-z])" for word in WORDS), re.IGNORECASE)


def texts() -> Iterator[Path]:
    """Code and documents, but for the files about words."""
    for folder in ("overlay", "tunnel", "control", "bench", "tests", "scripts", "docs"):
        for suffix in ("*.py", "*.md", "*.toml"):
            yield from (path for path in sorted((ROOT / folder).rglob(suffix)) if path.parent.name != "arch")
    yield from (ROOT / "README.md", ROOT / "CHANGELOG.md")


@pytest.mark.parametrize("path", list(texts()), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_forbidden_words_are_not_said(path: Path) -> None:
    said = [
        f"line {number}: {found[0]}"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for found in NEVER.finditer(line)
    ]
    assert not said, f"{'; '.join(said)} (we say: {WORDS})"


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.name)
def test_nothing_is_called_get(source: Source) -> None:
    got = [
        f"line {node.lineno}: {node.name}"
        for node in own_functions(source.tree)
        if node.name.lstrip("_").startswith("get_") and not node.name.endswith("__")
    ]
    assert not got, f"{'; '.join(got)} (a function is named by what comes back)"


def own_functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions we name ourselves: not the methods a base class demands."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and node.bases:
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        yield from own_functions(node)
