"""What this machine lets a lab do; each answer is None, or the reason why not, fit for a person."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from bench.lab.commands import LabError, run_command

# Ours
PROBE_DEVICE = "weftprobe0"
REQUIRED_TOOLS = ("ip", "bridge", "ethtool", "sysctl", "ping")


def why_no_namespaces() -> str | None:
    """Why no lab can be built here: a tool or a privilege is missing."""
    missing = [tool for tool in REQUIRED_TOOLS if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    try:
        with _probe() as name:
            run_command(
                ["ip", "netns", "exec", name, "ip", "link", "set", "lo", "up"], why="may we configure one"
            )
    except LabError as error:
        return f"no network namespaces: {_last_words(error)}"
    return None


def why_no_tap() -> str | None:
    """Why a weft node cannot have its device here."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"cannot open /dev/net/tun: {error.strerror}"
    return None


def why_no_kernel_vxlan() -> str | None:
    """Why the kernel offers no VXLAN device here.

    In a container, where no namespace can be made, it is tried in the container's own.
    """
    options = ["type", "vxlan", "id", "1", "dstport", "4789", "local", "192.0.2.1"]
    try:
        if why_no_namespaces() is None:
            with _probe() as name:
                run_command(["ip", "-n", name, "link", "add", PROBE_DEVICE, *options], why="has it vxlan")
        else:
            run_command(["ip", "link", "add", PROBE_DEVICE, *options], why="has it vxlan")
            run_command(["ip", "link", "delete", PROBE_DEVICE], why="leave nothing behind")
    except LabError as error:
        return f"no vxlan in this kernel: {_last_words(error)}"
    return None


@contextlib.contextmanager
def _probe() -> Iterator[str]:
    """A namespace to try something in."""
    name = f"weft-{os.getpid()}-probe"
    run_command(["ip", "netns", "add", name], why="may we make a namespace")
    try:
        yield name
    finally:
        run_command(["ip", "netns", "delete", name], why="leave nothing behind", check=False)


def _last_words(error: LabError) -> str:
    return str(error).splitlines()[0].rpartition(": ")[2]
