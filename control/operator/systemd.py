"""Tells systemd how the daemon is: `READY=1`, `RELOADING=1`, `STOPPING=1`, a line of status.

Heads up: read sd_notify(3) before changing this file.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


def notify(*assignments: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Sends the assignments (`READY=1`, `STATUS=…`); whether there is a systemd that heard them."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    # A leading @ means Linux's abstract namespace (sd_notify(3), Notes).
    path = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        try:
            door.sendto("\n".join(assignments).encode(), path)
        except OSError:
            return False
    return True


def reloading() -> str:
    """The assignments that begin a reload; `READY=1` ends it (sd_notify(3), RELOADING=1)."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"
