"""The command line finds its commands without importing them, and ends with the code the contract names."""

from __future__ import annotations

import errno
import gc
import json
import os
import platform
import subprocess
import sys
import types
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from control.operator.cli.main import COMMANDS, LazyGroup, weft
from control.operator.config import Config
from overlay.errors import (
    DatapathUnavailableError,
    DeviceError,
    Ground,
    LeaseError,
    TableError,
    WeftError,
)

Run = Callable[..., Result]

HEAVY = (
    "pydantic",
    "aiohttp",
    "rich",
    "prometheus_client",
    "asyncio",
    "control.daemon",
    "tunnel.interfaces",
    "bench",
)


def imported_by(*arguments: str) -> set[str]:
    """The modules one command line leaves imported, in a process of its own."""
    program = (
        "import sys\nfrom control.operator.cli.main import weft\n"
        f"weft.main({list(arguments)!r}, standalone_mode=False)\nprint(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--socket", "/nonexistent"], ["version"]])
def test_a_quick_command_imports_nothing_heavy(arguments: list[str]) -> None:
    assert imported_by(*arguments).isdisjoint(HEAVY)


def test_a_daemon_told_to_end_before_it_has_begun_ends_well() -> None:
    program = (
        "import os, signal\n"
        "from control.operator.cli import main, run\n"
        "run.load = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "main.weft.main(['run'])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_lists_every_command(run: Run) -> None:
    text = run("--help").stdout
    assert all(f"\n  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_where_the_table_says_and_has_help(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: weft {name}")


def test_no_command_at_all_is_usage(run: Run) -> None:
    result = run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Commands:" in result.stderr


def test_an_unknown_command_is_usage_with_a_guess(run: Run) -> None:
    result = run("stauts")
    assert (result.exit_code, result.stderr.splitlines()) == (
        2,
        ["weft: error: no such command: stauts", "  why: did you mean status?", "  try: weft status"],
    )


def test_an_unknown_option_is_usage(run: Run) -> None:
    result = run("fdb", "--jsn")
    assert result.exit_code == 2
    first, *_, last = result.stderr.splitlines()
    assert first.startswith("weft: error: No such option")
    assert last == "  try: weft fdb --help"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (("completion",), "weft completion"),
        (("completion", "tcsh"), "weft completion"),
        (("status", "--check"), "weft status"),
        (("config", "show", "--underlay"), "weft config show"),
        (("config", "peer", "--vni", "42"), "weft config peer"),
        (("--nothing",), "weft"),
    ],
)
def test_what_is_typed_wrongly_is_told_in_three_lines(
    run: Run, arguments: tuple[str, ...], command: str
) -> None:
    result = run(*arguments)
    error, why, advice = result.stderr.splitlines()
    assert (result.exit_code, error[:13]) == (2, "weft: error: ")
    assert why.startswith(f"  why: Usage: {command} [OPTIONS]")
    assert advice == f"  try: {command} --help"


def weft_with(stdout: int, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of `weft` as a process of its own, with this for its stdout."""
    program = [sys.executable, "-c", "from control.operator.cli.main import main; main()", *arguments]
    done = subprocess.run(program, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    return done.returncode, done.stderr


PRINTING = [
    ("--help",),
    ("version", "--json"),
    ("completion", "bash"),
    ("config", "schema"),
    ("fdb", "--json"),
]


@pytest.mark.parametrize("arguments", PRINTING, ids=lambda arguments: arguments[0])
def test_a_stdout_that_is_full_is_told_in_three_lines(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        code, told = weft_with(full.fileno(), *arguments)
    assert (code, told.splitlines()) == (
        1,
        [
            "weft: error: cannot write to stdout: No space left on device",
            "  why: what was printed is not complete",
            "  try: write it elsewhere, or make room",
        ],
    )


@pytest.mark.parametrize("arguments", PRINTING, ids=lambda arguments: arguments[0])
def test_a_reader_that_has_gone_is_told_nothing(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert weft_with(writer, *arguments) == (141, "")
    finally:
        os.close(writer)


def test_an_error_elsewhere_is_not_taken_for_one_of_stdout(run: Run, daemon_module: types.ModuleType) -> None:
    def serve(_: Config) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    daemon_module.run = serve  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="No space"):
        run("run", "--vni", "42")


def test_a_standalone_command_is_listed_without_being_imported(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("standalone_of_a_test")
    entry = EntryPoint("lab", "standalone_of_a_test:lab", "weft.commands")
    monkeypatch.setattr(LazyGroup, "_standalone", lambda _: {"lab": entry})
    assert "lab         Topologies in namespaces." in run("--help").stdout

    @click.command()
    def lab() -> None:
        click.echo("up")

    monkeypatch.setattr(module, "lab", lab, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert run("lab").stdout == "up\n"


def test_version_has_exactly_the_contracts_keys(run: Run) -> None:
    answer = json.loads(run("version", "--json").stdout)
    assert answer["schema"] == "weft.version/1"
    assert answer["data"].keys() == {"version", "engine", "native", "python", "kernel"}
    assert answer["data"]["native"].keys() == {"built", "reason"}
    assert answer["data"]["python"] == platform.python_version()
    assert answer["data"]["kernel"] == os.uname().release
    assert f"python {platform.python_version()}" in run("version").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_completes_weft(run: Run, shell: str) -> None:
    assert "_WEFT_COMPLETE" in run("completion", shell).stdout


def test_the_shell_is_offered_the_commands() -> None:
    environment = {"_WEFT_COMPLETE": "bash_complete", "COMP_WORDS": "weft st", "COMP_CWORD": "1"}
    result = CliRunner().invoke(weft, [], env=environment)
    assert result.stdout == "plain,status\n"


@pytest.fixture
def daemon_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Stands for the composition root, which `weft run` alone may load."""
    module = types.ModuleType("control.daemon")
    monkeypatch.setitem(sys.modules, "control.daemon", module)
    return module


def test_run_hands_the_daemon_its_configuration_and_returns_its_code(
    run: Run, daemon_module: types.ModuleType
) -> None:
    given: list[Config] = []

    def serve(config: Config) -> int:
        assert not gc.isenabled()  # what is opened from here on stays
        given.append(config)
        return 7

    daemon_module.run = serve  # type: ignore[attr-defined]
    result = run("run", "--name", "n1", "--vni", "42", "--peer", "192.0.2.2", "--peer", "192.0.2.3")
    assert result.exit_code == 7
    assert given[0].node.name == "n1"
    assert len(given[0].networks[0].peers) == 2


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (
            DeviceError("/dev/net/tun", errno.EPERM, why="a TAP needs CAP_NET_ADMIN", advice="sudo weft run"),
            4,
            [
                "weft: error: /dev/net/tun: Operation not permitted",
                "  why: a TAP needs CAP_NET_ADMIN",
                "  try: sudo weft run",
            ],
        ),
        (
            DeviceError("udp 192.0.2.1:4789", errno.EADDRINUSE, why="taken"),
            2,
            [
                "weft: error: udp 192.0.2.1:4789: Address already in use",
                "  why: taken",
                "  try: dmesg may tell more",
            ],
        ),
        (
            DatapathUnavailableError("native", "not built"),
            2,
            [
                "weft: error: native engine: not built",
                "  why: not built",
                "  try: weft run --engine python",
            ],
        ),
        (
            LeaseError("no subnet", why="none is free", advice="a larger network", ground=Ground.ABSENT),
            5,
            ["weft: error: no subnet", "  why: none is free", "  try: a larger network"],
        ),
        (
            TableError("no such VTEP"),
            2,
            [
                "weft: error: no such VTEP",
                "  why: a mistake of weft's own: nothing here expects a TableError",
                "  try: the same again with --log debug, and report it",
            ],
        ),
        (KeyboardInterrupt(), 130, [""]),  # click ends the line the terminal wrote ^C on
    ],
)
def test_what_stops_the_daemon_is_told_in_three_lines(
    run: Run,
    daemon_module: types.ModuleType,
    error: WeftError | KeyboardInterrupt,
    code: int,
    lines: list[str],
) -> None:
    def serve(_: Config) -> int:
        raise error

    daemon_module.run = serve  # type: ignore[attr-defined]
    result = run("run", "--vni", "42")
    assert (result.exit_code, result.stdout, result.stderr.split("\n")[:-1]) == (code, "", lines)
    assert gc.isenabled()


@pytest.mark.usefixtures("daemon_module")
def test_run_refuses_what_this_build_cannot_do_before_the_daemon_is_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.operator.checks.native_obstacle", lambda: "it was not built")
    result = run("run", "--vni", "42", "--engine", "native")
    assert result.exit_code == 2
    assert "node.engine: this build has no native engine: it was not built" in result.stderr
