"""`weft version` and `weft completion`."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

import click

from control.operator import views
from control.operator.build import native_obstacle
from control.operator.cli.output import json_option, print_json
from control.operator.failure import Failure


@click.command()
@json_option
def version(as_json: bool) -> None:
    """This build: version, engines, Python, kernel."""
    reason = native_obstacle() or ""
    is_built = not reason
    data = {
        "version": _version(),
        "engine": "native" if is_built else "python",
        "native": {"built": is_built, "reason": reason},
        "python": platform.python_version(),
        "kernel": os.uname().release,
    }
    if as_json:
        print_json(views.VERSION, data)
    else:
        native = "built" if is_built else f"not built ({reason})"
        click.echo(f"weft {data['version']}")
        click.echo(f"engine {data['engine']}, native {native}")
        click.echo(f"python {data['python']}, kernel {data['kernel']}")


def _version() -> str:
    try:
        return installed_version("weft")
    except PackageNotFoundError:
        return "0+uninstalled"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Completion for the shell, on stdout; `weft completion bash > /etc/bash_completion.d/weft`."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise Failure(
            f"no completion for {shell}", why="click makes none for it", advice="weft completion --help"
        )
    root = ctx.find_root().command
    click.echo(found(root, {}, "weft", "_WEFT_COMPLETE").source())
