"""Runs a command inside another container: what `ip netns exec NAME` is for namespaces.

    python inside.py SOCKET COMMAND [ARGUMENT…]

`weft bench serve` listens on the socket, which lies on a volume that both containers have.  The command gets
this process's own standard streams, as descriptors; signals sent here are passed on there; the exit code
there is the exit code here, 128 + n after a signal.  When this process dies, whatever it dies of, the command
is ended.

Only the standard library is imported, so that a command starts in a blink: this file is run by its path.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from types import FrameType
from typing import Any

# Ours
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LONGEST = 1 << 18  # octets of a message: an environment and a command line
UNREACHABLE = 125  # as docker run says that it could not even start


def main() -> None:
    """The command line above."""
    path, *argv = sys.argv[1:]
    try:
        sys.exit(run(path, argv))
    except OSError as error:
        sys.stderr.write(f"cannot reach the station at {path}: {error.strerror}\n")
        sys.exit(UNREACHABLE)


def run(path: str, argv: list[str]) -> int:
    """The command's exit code."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as station:
        station.connect(path)
        request = {"run": argv, "key": os.getpid(), "env": dict(os.environ)}
        streams = [sys.stdin.fileno(), sys.stdout.fileno(), sys.stderr.fileno()]

        def pass_on(number: int, _frame: FrameType | None) -> None:
            station.send(json.dumps({"signal": number}).encode())

        # The request goes first: a signal that is early waits until it has.
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        for number in PASSED_ON:
            signal.signal(number, pass_on)
        socket.send_fds(station, [json.dumps(request).encode()], streams)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        answer = station.recv(LONGEST)
    if not answer:
        sys.stderr.write("the station went away\n")
        return UNREACHABLE
    said: dict[str, Any] = json.loads(answer)
    if "error" in said:
        sys.stderr.write(f"{argv[0]}: {said['error']}\n")
    return int(said["exit"])


if __name__ == "__main__":
    main()
