"""What came of asking each seed is told once, and what mends it fits what came of it."""

from __future__ import annotations

import pytest

from control.membership.events import Answer
from control.membership.member import Endpoint
from control.operator import fields
from control.seeds import TOLD_MAX, Seeds

OWN, A, B = (Endpoint(f"192.0.2.{host}", 7946) for host in (1, 2, 3))
NAME = fields.Endpoint("n2.example", 7946)


def told(seeds: Seeds) -> tuple[str, str]:
    trouble = seeds.trouble(7946)
    assert trouble is not None
    return trouble.problem.removeprefix("no member of the pool has answered yet: "), trouble.fix


def test_who_has_nobody_to_ask_has_no_trouble() -> None:
    assert Seeds(OWN, [OWN], []).trouble(7946) is None
    alone = Seeds(OWN, [], [NAME])
    alone.resolved(NAME, [OWN])
    assert alone.trouble(7946) is None


@pytest.mark.parametrize(
    ("answer", "problem", "fix"),
    [
        (Answer.NOTHING, "nobody answers there (Connection refused)", "is UDP and TCP 7946 open?"),
        (Answer.CLOSED, "it answers and hangs up, as on another key", "has it the same keyring?"),
        (Answer.OTHER_KEY, "it answers, but with another key", "has it the same keyring?"),
        (Answer.REFUSED, "not as a member of this pool: Connection refused", "has it the same keyring?"),
    ],
)
def test_each_answer_has_its_words_and_is_news_once(answer: Answer, problem: str, fix: str) -> None:
    seeds = Seeds(OWN, [A, B], [])
    words = seeds.failed(A, answer, "Connection refused")
    assert words is not None
    assert problem in words
    assert seeds.failed(A, answer, "timed out") is None
    assert seeds.failed(B, answer, "timed out") is not None
    assert f"{A}: " in told(seeds)[0]
    assert fix in told(seeds)[1]


def test_another_answer_is_news_and_so_is_the_same_after_a_welcome() -> None:
    seeds = Seeds(OWN, [A], [])
    assert seeds.failed(A, Answer.NOTHING, "timed out")
    assert seeds.failed(A, Answer.CLOSED, "closed")
    assert not seeds.failed(A, Answer.CLOSED, "closed")
    seeds.answered(A)
    assert seeds.failed(A, Answer.CLOSED, "closed")


def test_whom_we_were_not_told_to_ask_is_not_told_of() -> None:
    assert Seeds(OWN, [A], []).failed(B, Answer.NOTHING, "timed out") is None


def test_a_name_is_told_until_it_is_known_and_then_who_is_behind_it() -> None:
    seeds = Seeds(OWN, [], [NAME])
    assert told(seeds)[0] == "asking n2.example:7946"
    assert seeds.unresolved(NAME, "join n2.example:7946: Name or service not known")
    assert not seeds.unresolved(NAME, "join n2.example:7946: Name or service not known")
    problem, fix = told(seeds)
    assert problem == "join n2.example:7946: Name or service not known"
    assert "does the name resolve here?" in fix
    seeds.resolved(NAME, [A, B])
    assert told(seeds)[0] == f"asking {A}, {B}"
    seeds.failed(A, Answer.NOTHING, "timed out")
    seeds.resolved(NAME, [B])
    assert told(seeds)[0] == f"asking {B}"


def test_of_many_seeds_only_some_are_shown() -> None:
    many = [Endpoint(f"192.0.2.{host}", 7946) for host in range(10, 20)]
    seeds = Seeds(OWN, many, [])
    for each in many:
        seeds.failed(each, Answer.NOTHING, "timed out")
    problem, _ = told(seeds)
    assert problem.count("nobody answers there") == TOLD_MAX
    assert problem.endswith(f"; and {len(many) - TOLD_MAX} more")
