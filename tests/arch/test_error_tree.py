"""The tree drawn in overlay/errors.py is the tree Python sees."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from support.source import sources

from overlay import errors

BRANCH = re.compile(r"^ {4}(?P<rails>(?:│   |    )*)(?:[├└]── )?(?P<name>[A-Z]\w+)\b")


def drawn() -> dict[str, str | None]:
    """Each error of the drawing with its parent."""
    parents: dict[str, str | None] = {}
    line_of_descent: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if branch := BRANCH.match(line):
            depth = len(branch["rails"]) // 4 + ("── " in line)
            line_of_descent[depth:] = [branch["name"]]
            parents[branch["name"]] = line_of_descent[depth - 1] if depth else None
    return parents


def derived(error: type[Exception], parent: str | None = None) -> dict[str, str | None]:
    """Each error defined in overlay/errors.py with its parent."""
    parents = {error.__name__: parent}
    for child in error.__subclasses__():
        if child.__module__ == errors.__name__:
            parents |= derived(child, error.__name__)
    return parents


def test_the_drawing_is_the_tree() -> None:
    assert drawn() == derived(errors.WeftError)


def test_every_error_of_the_module_is_in_the_tree() -> None:
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert {cls.__name__ for cls in classes} == set(drawn())


def test_no_error_is_derived_outside_the_drawing() -> None:
    known = set(drawn())
    elsewhere = [
        f"{source.name}:{node.lineno}: {node.name}"
        for source in sources()
        if source.path != Path(errors.__file__)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef)
        and known & {base.id for base in node.bases if isinstance(base, ast.Name)}
    ]
    assert not elsewhere, "belongs into the tree of overlay/errors.py:\n" + "\n".join(elsewhere)
