"""The pool's commands print what it answered, and their exit status says whether it did."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import Result
from support.introspection import NEW_KEY, OLD_KEY, FakePool

from control.operator.views import KeysView
from overlay.errors import Ground, MembershipError

Run = Callable[..., Result]

MEMBERS = """\
MEMBER  ADDRESS             STATE  INCARNATION  TAGS
n1      192.0.2.1:7946      alive  4            weft_epoch=2,weft_id=3f
n3      [2001:db8::3]:7946  dead   9            weft_epoch=1,weft_id=5a
db      192.0.2.9:7946      alive  1            role=db
old     192.0.2.8:7946      left   2
"""
KEYS = f"""\
KEY                       MEMBERS  ENCRYPTS
{OLD_KEY}  3        yes
{NEW_KEY}  2
"""
CODES = [(Ground.STATE, 1), (Ground.QUESTION, 2), (Ground.ABSENT, 5), (Ground.TIME, 6)]
COMMANDS = [("members",), ("join", "192.0.2.2"), ("leave",), ("keys", "list")]


def data(result: Result, schema: str) -> object:
    answer = json.loads(result.stdout)
    assert answer["schema"] == schema
    return answer["data"]


@pytest.mark.usefixtures("pool", "api")
def test_members_are_this_table(run: Run) -> None:
    result = run("members")
    assert (result.exit_code, result.stdout, result.stderr) == (0, MEMBERS, "")


@pytest.mark.usefixtures("pool", "api")
def test_members_as_json_have_exactly_these_keys(run: Run) -> None:
    told = data(run("members", "--json"), "weft.members/1")
    assert isinstance(told, list)
    assert [list(member) for member in told] == [["name", "address", "state", "incarnation", "tags"]] * 4


@pytest.mark.usefixtures("pool", "api")
def test_join_says_of_each_host_and_is_0_if_one_answered(pool: FakePool, run: Run) -> None:
    pool.absent = ("192.0.2.9",)
    result = run("join", "192.0.2.2", "192.0.2.9")
    assert (result.exit_code, result.stdout) == (0, "192.0.2.2: joined\n192.0.2.9: no answer\n")
    told = data(run("join", "192.0.2.2", "--json"), "weft.join/1")
    assert told == [{"host": "192.0.2.2", "joined": True, "why": ""}]
    pool.absent = ("192.0.2.2", "192.0.2.9")
    assert run("join", "192.0.2.2", "192.0.2.9").exit_code == 1


@pytest.mark.usefixtures("pool", "api")
def test_leave_is_told_and_says_so(pool: FakePool, run: Run) -> None:
    result = run("leave")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "left the pool\n")
    assert data(run("leave", "--json"), "weft.leave/1") == {"left": True}
    assert pool.asked == [("leave",), ("leave",)]


@pytest.mark.usefixtures("pool", "api")
def test_keys_list_is_this_table(pool: FakePool, run: Run) -> None:
    result = run("keys", "list")
    assert (result.exit_code, result.stdout, result.stderr) == (0, KEYS, "3 of 3 members answered\n")
    assert pool.asked == [("keys", "list", None)]


@pytest.mark.usefixtures("pool", "api")
def test_a_step_is_complete_when_everybody_took_it(pool: FakePool, run: Run) -> None:
    for answer, code in (
        (KeysView(3, 3, {}, {}, {}), 0),
        (KeysView(3, 2, {}, {}, {}), 1),
        (KeysView(3, 3, {"n3": "keyring is read-only"}, {}, {}), 1),
    ):
        pool.answer = answer
        result = run("keys", "install", NEW_KEY)
        said = [f"{answer.responses} of 3 members answered"]
        said += [f"{name}: {why}" for name, why in answer.errors.items()]
        assert (result.exit_code, result.stdout, result.stderr.splitlines()) == (code, "", said)
    assert data(run("keys", "use", NEW_KEY, "--json"), "weft.keys/1") == {
        "members": 3,
        "responses": 3,
        "errors": {"n3": "keyring is read-only"},
        "keys": {},
        "primary_keys": {},
    }


@pytest.mark.usefixtures("pool", "api")
@pytest.mark.parametrize("arguments", [("list", NEW_KEY), ("install",), ("rotate",), ()])
def test_a_step_written_wrongly_is_2_and_asks_nobody(
    pool: FakePool, run: Run, arguments: tuple[str, ...]
) -> None:
    result = run("keys", *arguments)
    assert result.exit_code == 2
    assert [line.split(": ")[0].strip() for line in result.stderr.splitlines()] == ["weft", "why", "try"]
    assert pool.asked == []


@pytest.mark.usefixtures("pool", "api")
@pytest.mark.parametrize("command", COMMANDS[1:], ids=lambda command: command[0])
@pytest.mark.parametrize(("ground", "code"), CODES)
def test_what_the_pool_refuses_is_told_in_its_words_with_the_code_of_its_ground(
    pool: FakePool, run: Run, command: tuple[str, ...], ground: Ground, code: int
) -> None:
    pool.refusal = MembershipError("key: expected base64", why="it is none", advice="weft", ground=ground)
    result = run(*command)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == "weft: error: key: expected base64\n  why: it is none\n  try: weft\n"
    told = data(run(*command, "--json"), "weft.error/1")
    assert told == {"error": "key: expected base64", "why": "it is none", "try": "weft"}


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_where_gossip_is_off_there_is_no_such_object(run: Run, command: tuple[str, ...]) -> None:
    result = run(*command)
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr.splitlines() == [
        "weft: error: gossip is off",
        "  why: this node has static peers only",
        "  try: weft run --join HOST, or --gossip-bind",
    ]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_where_there_is_no_daemon_it_is_3(run: Run, command: tuple[str, ...]) -> None:
    assert run(*command).exit_code == 3


@pytest.mark.usefixtures("pool", "api")
def test_status_has_a_line_for_the_pool(run: Run) -> None:
    told = "192.0.2.1:7946  2 members alive  encrypted  health 1  refused MALFORMED 12, WRONG_KEY 3"
    assert f"\ngossip      {told}\n" in run("status").stdout
