"""`weft`: finds the command, runs it, and says in three lines what went wrong.

No command is imported before it is asked for: `weft status` in a script's loop must not pay for pydantic,
and `weft --help` must not pay for anything.  Commands that stand alone (`demo`, `bench`) come from other
packages through the entry-point group `weft.commands`, so that nothing here imports them.
"""

from __future__ import annotations

import difflib
import gc
import json
import os
import pkgutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import click

from control.operator.cli.stdout import StdoutError, failure_of_stdout, watched_stdout
from control.operator.failure import ExitCode, Failure, failure_of
from control.operator.views import ERROR, envelope
from overlay.errors import WeftError

COMMANDS = {
    "run": ("control.operator.cli.run:run", "The daemon, in the foreground."),
    "status": (
        "control.operator.cli.status:status",
        "Node, engine, networks, peers and health on one screen.",
    ),
    "wait": ("control.operator.cli.status:wait", "Block until enough peers are alive."),
    "peers": ("control.operator.cli.tables:peers", "Who is there, over which underlay address."),
    "fdb": ("control.operator.cli.tables:fdb", "Behind which VTEP each MAC is, as `bridge fdb` prints it."),
    "neigh": ("control.operator.cli.tables:neigh", "Which MAC has each IP, as `ip neigh` prints it."),
    "routes": ("control.operator.cli.tables:routes", "Behind which node each subnet is."),
    "flows": ("control.operator.cli.tables:flows", "The verdicts that are remembered."),
    "drops": ("control.operator.cli.tables:drops", "Why frames went no further, and how many."),
    "leases": (
        "control.operator.cli.leases:leases",
        "Whose each subnet is; take one back; mend a founder.",
    ),
    "members": ("control.operator.cli.pool:members", "Everybody in the gossip pool."),
    "join": ("control.operator.cli.pool:join", "Join the pool these hosts are in."),
    "leave": ("control.operator.cli.pool:leave", "Leave the pool; static peers stay."),
    "keys": ("control.operator.cli.pool:keys", "List or rotate the pool's keys."),
    "watch": ("control.operator.cli.watch:watch", "Changes and drops as they happen."),
    "config": ("control.operator.cli.config:config", "Check, show and explain the configuration."),
    "version": ("control.operator.cli.version:version", "This build: version, engines, Python, kernel."),
    "completion": ("control.operator.cli.version:completion", "Completion for bash, zsh or fish."),
}
"""Name → where it is, and its line in `weft --help`."""

STANDALONE = "weft.commands"
STANDALONE_HELP = {
    "demo": "A three-node overlay in namespaces, set up, shown and taken down.",
    "lab": "Topologies in namespaces.",
    "bench": "Measurements, kernel VXLAN beside ours in the same run.",
}


class LazyGroup(click.Group):
    """The commands above and the standalone ones, imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(self._standalone())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            with _uncollected():
                return self._load(pkgutil.resolve_name(COMMANDS[cmd_name][0]))
        entry = self._standalone().get(cmd_name)
        return self._load(entry.load()) if entry is not None else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        lines = {name: text for name, (_, text) in COMMANDS.items()}
        lines |= {name: STANDALONE_HELP.get(name, "") for name in sorted(self._standalone())}
        with formatter.section("Commands"):
            formatter.write_dl(list(lines.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with a guess at what was meant."""
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            raise Failure(
                f"no such command: {args[0]}",
                why=f"did you mean {near[0]}?" if near else "weft has none of that name",
                advice=f"weft {near[0]}" if near else "weft --help",
            )
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, *_: Any, **options: Any) -> Any:
        """Runs one command line; ends the process with its exit code, or returns it if not standalone."""
        arguments = list(sys.argv[1:] if args is None else args)
        is_standalone = options.pop("standalone_mode", True)
        try:
            with watched_stdout(), _ends_when_told() if arguments[:1] == ["run"] else nullcontext():
                code = self._run(arguments, options)
        except StdoutError as error:
            failure = failure_of_stdout(error)
            code = ExitCode.READER_GONE if failure is None else _tell(failure, as_json=False)
        if is_standalone:
            sys.exit(int(code))
        return code

    def _run(self, arguments: list[str], options: dict[str, Any]) -> int:
        """The command's exit code; what it could not do is told."""
        try:
            code = super().main(arguments, standalone_mode=False, **{**options, "prog_name": "weft"})
        except (click.Abort, KeyboardInterrupt):
            return ExitCode.INTERRUPTED
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            return ExitCode.USAGE
        except (click.ClickException, Failure, WeftError) as error:
            return _tell(_failure(error, arguments), as_json="--json" in arguments)
        return code if isinstance(code, int) else ExitCode.OK

    def _load(self, command: object) -> click.Command:
        if not isinstance(command, click.Command):
            raise TypeError(f"expected a click command, found {command!r}")
        return command

    def _standalone(self) -> dict[str, Any]:
        from importlib.metadata import entry_points

        return {entry.name: entry for entry in entry_points(group=STANDALONE)}


@contextmanager
def _uncollected() -> Iterator[None]:
    """What importing makes stays: a collection meanwhile would walk all of it, again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # … and the first one afterwards would
        gc.enable()


@contextmanager
def _ends_when_told() -> Iterator[None]:
    """A daemon told to end while it still imports its libraries has ended well: nothing is made yet."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.OK))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _failure(error: click.ClickException | Failure | WeftError, arguments: Sequence[str]) -> Failure:
    match error:
        case Failure():
            return error
        case WeftError():
            return failure_of(error)
        case click.UsageError():
            ctx = error.ctx or _context(arguments)
            message, usage = (" ".join(text.split()) for text in (error.format_message(), ctx.get_usage()))
            return Failure(message, why=usage, advice=f"{ctx.command_path} --help")
        case _:
            why = "the command could not go on with it"
            return Failure(error.format_message(), why=why, advice="weft --help")


def _context(arguments: Sequence[str]) -> click.Context:
    """The command these lead to: click's parser does not say whose option it could not read."""
    ctx = click.Context(weft, info_name="weft")
    for word in arguments:
        group = ctx.command
        command = group.get_command(ctx, word) if isinstance(group, click.Group) else None
        if command is not None:
            ctx = click.Context(command, parent=ctx, info_name=word)
    return ctx


def _tell(failure: Failure, *, as_json: bool) -> ExitCode:
    """To a person on stderr; with --json to the program that asked, where it reads: on stdout."""
    if as_json:
        click.echo(json.dumps(envelope(ERROR, failure.as_data())))
    else:
        click.echo(failure.as_text(), err=True)
    return failure.code


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="weft", prog_name="weft", message="%(prog)s %(version)s")
@click.pass_context
def weft(ctx: click.Context) -> None:
    """A userspace VXLAN overlay router: this host, a member of an overlay network."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        ctx.color = False  # https://no-color.org; else click asks whether stdout is a terminal


def main() -> NoReturn:
    """The console script."""
    weft.main()
    raise AssertionError  # standalone: main has ended the process
