"""A lab without root: in a user namespace whose root we are, as far as this kernel lets us.

Inside, network namespaces and TAP devices can be made; their names live under /run/netns, which is made
private first.  Nothing can be left behind: when the last process ends, the kernel takes everything along.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import NoReturn

from bench.lab.commands import LabError, run_command, weft_command

# From the specification
# user_namespaces(7): a new user namespace, and in it a new network and a new mount namespace.
UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--mount", "--")


def why_no_user_namespace() -> str | None:
    """Why we cannot become root of a user namespace; None: we can."""
    if shutil.which(UNSHARE[0]) is None:
        return "not installed: unshare"
    try:
        run_command([*UNSHARE, "true"], why="may we have a user namespace")
    except LabError as error:
        return f"no user namespace: {str(error).rpartition(': ')[2]}"
    return None


def continue_in_user_namespace(arguments: Sequence[str]) -> NoReturn:
    """Replaces this process by `weft <arguments>` in a user namespace of its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(UNSHARE[0], [*UNSHARE, *weft_command(), *arguments])  # noqa: S606  (a list and no shell)


def prepare_inside() -> None:
    """Gives this mount namespace a /run of its own, for `ip netns` to keep its names in.

    Raises:
        LabError: Mounting is not allowed.
    """
    run_command(["mount", "-t", "tmpfs", "tmpfs", "/run"], why="a private /run")
