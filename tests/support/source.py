"""The project's own source as trees, for tests about its shape."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("overlay", "tunnel", "control", "bench")


@dataclass(frozen=True)
class Source:
    """One Python file: where, what it says, and how Python reads it."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """The path below the root, as an editor opens it."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def words(self) -> frozenset[str]:
        """Every identifier the file mentions: names, attributes, imports."""
        return _words(self.tree)


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    """The Python files of the packages (or of these folders), in a stable order."""
    return tuple(
        _read(path) for folder in folders or PACKAGES for path in sorted((ROOT / folder).rglob("*.py"))
    )


@cache
def _read(path: Path) -> Source:
    text = path.read_text()
    return Source(path, text, ast.parse(text, str(path)))


@cache
def _words(tree: ast.Module) -> frozenset[str]:
    return frozenset(_mentions(tree))


def _mentions(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield name
            case ast.alias(name=name) | ast.ImportFrom(module=str(name)):
                yield from name.split(".")
