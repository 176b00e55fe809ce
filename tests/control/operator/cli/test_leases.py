"""`weft leases` prints whose each subnet is, and hands what an operator decides to the founder."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import Result
from support.introspection import FakePool

from overlay.errors import Ground, LeaseError

Run = Callable[..., Result]

LEASES = """\
NETWORK  SUBNET       NODE  STATE
pods     10.5.1.0/24  n1    held
pods     10.5.2.0/24  n3    released
"""


@pytest.mark.usefixtures("pool", "api")
def test_leases_are_this_table(run: Run) -> None:
    result = run("leases")
    assert (result.exit_code, result.stdout, result.stderr) == (0, LEASES, "")
    assert run("leases", "--network", "lab").stderr == "no leases\n"
    assert run("leases", "--network", "nowhere").exit_code == 5


@pytest.mark.usefixtures("pool", "api")
def test_leases_as_json_have_exactly_the_contracts_keys(run: Run) -> None:
    told = json.loads(run("leases", "--json").stdout)
    assert told["schema"] == "weft.leases/1"
    assert [list(each) for each in told["data"]] == [["network", "subnet", "node", "state"]] * 2


@pytest.mark.usefixtures("pool", "api")
def test_release_asks_the_founder(pool: FakePool, run: Run) -> None:
    result = run("leases", "release", "10.5.2.0/24")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "released 10.5.2.0/24\n")
    told = json.loads(run("leases", "release", "10.5.2.0/24", "--json").stdout)
    assert told == {"schema": "weft.release/1", "data": {"released": "10.5.2.0/24"}}
    assert pool.asked == [("release", "10.5.2.0/24")] * 2


@pytest.mark.usefixtures("pool", "api")
def test_adopt_names_whoever_will_not_come_back(pool: FakePool, run: Run) -> None:
    result = run("leases", "adopt", "--without", "n3", "--without", "n4")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "network pods: 3 grants adopted\n")
    assert json.loads(run("leases", "adopt", "--json").stdout)["data"] == {"grants": {"pods": 3}}
    assert pool.asked == [("adopt", "n3", "n4"), ("adopt",)]


@pytest.mark.usefixtures("pool", "api")
@pytest.mark.parametrize("command", [("release", "10.5.2.0/24"), ("adopt",)], ids=lambda each: each[0])
@pytest.mark.parametrize(("ground", "code"), [(Ground.STATE, 1), (Ground.QUESTION, 2), (Ground.ABSENT, 5)])
def test_what_the_founder_refuses_is_told_in_its_words_with_the_code_of_its_ground(
    pool: FakePool, run: Run, command: tuple[str, ...], ground: Ground, code: int
) -> None:
    pool.refusal = LeaseError("its holder n3 is alive", why="it runs", advice="stop it", ground=ground)
    result = run("leases", *command)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == "weft: error: its holder n3 is alive\n  why: it runs\n  try: stop it\n"


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("command", [("release", "10.5.2.0/24"), ("adopt",)], ids=lambda each: each[0])
def test_where_gossip_is_off_nobody_is_asked(run: Run, command: tuple[str, ...]) -> None:
    assert run("leases", *command).exit_code == 5
