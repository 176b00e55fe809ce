"""Every drop has a name, a sentence, a direction, a place that gives it and a test that sees it."""

from __future__ import annotations

import ast
import re

import pytest
from support.source import sources

from overlay.verdict import DropReason

SENTENCE = re.compile(r"^[a-z].*[^. ] \[(ingress|egress|both)\]$")


def reasons_named(*folders: str, but: str) -> set[str]:
    """Every X of a `DropReason.X` in the folders' files, other than the file named."""
    return {
        node.attr
        for source in sources(*folders)
        if not source.name.startswith(but)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "DropReason"
    }


@pytest.mark.parametrize("reason", DropReason, ids=lambda reason: reason.name)
def test_every_reason_is_a_sentence_with_a_direction(reason: DropReason) -> None:
    assert SENTENCE.match(reason.value), (
        f"expected 'what happened [ingress|egress|both]', found {reason.value!r}"
    )


def test_every_reason_is_given_somewhere() -> None:
    given = reasons_named("overlay", "tunnel", "control", but="overlay/verdict.py")
    missing = [reason.name for reason in DropReason if reason.name not in given]
    assert not missing, f"no code drops a frame for: {', '.join(missing)}"


def test_every_reason_is_seen_by_a_test() -> None:
    seen = reasons_named("tests", but="tests/arch/")
    missing = [reason.name for reason in DropReason if reason.name not in seen]
    assert not missing, f"no test names DropReason.{{{', '.join(missing)}}}"
