"""`weft run`: the daemon, in the foreground."""

from __future__ import annotations

import gc
import os

import click

from control.operator.cli.flags import config_options
from control.operator.config import check_supported, load


@click.command()
@config_options()
def run(path: str | None, **flags: object) -> None:
    """The daemon, in the foreground.

    A file, WEFT_… variables and flags are laid over one another: a flag beats a variable, a variable the
    file.  Without a file the flags make one network:

    \b
      weft run --name n1 --underlay 192.0.2.1 --vni 42 --address 10.9.0.1/24 --peer 192.0.2.2
    """  # noqa: D301 - click's mark for a paragraph that keeps its lines
    gc.disable()  # until all is open: what is made till then stays, and no collection need walk it
    try:
        config = load(path, flags, os.environ)
        check_supported(config)
        # The one command that is the daemon; imported here so that no other command can reach it.
        from control.daemon import run as run_daemon

        click.get_current_context().exit(run_daemon(config))
    finally:
        gc.enable()
