"""A station: runs in its own container what a bench in another one asks for.

    bench ── inside.py ── Unix socket on a shared volume ── Station ── the command, in this container

A request is one message: a command with its environment, and the three standard streams as descriptors
(unix(7), SCM_RIGHTS).  So output flows where the bench reads it, without passing through here.  Whoever can
open the socket can run anything in this container; it has mode 0600 and no address, and is on no network.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.lab.commands import end_process
from bench.meter import resident_octets, work_of
from bench.station.inside import LONGEST, PASSED_ON

# Ours
BACKLOG = 64
NOT_FOUND, NOT_RUN = 127, 126  # as a shell says it
STREAMS = 3
RESTORED = frozenset({*PASSED_ON})


class Station:
    """Serves requests until it is closed.

    Raises:
        OSError: The socket cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._processes: dict[int, int] = {}
        """The key a command was asked for under → its process id here."""
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mask = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        except OSError:
            self._listener.close()
            raise
        finally:
            os.umask(mask)
        self._listener.listen(BACKLOG)

    def serve(self) -> None:
        """Until the station is closed."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def close(self) -> None:
        """Nobody new is served; commands end as their askers do."""
        # A close alone does not wake an accept in another thread.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _converse(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            message, descriptors, _, _ = socket.recv_fds(connection, LONGEST, STREAMS)
            try:
                answer = self._answer(json.loads(message), descriptors, connection)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                answer = {"exit": NOT_RUN, "error": f"expected a request, found something else: {error}"}
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            connection.send(json.dumps(answer).encode())

    def _answer(self, request: Mapping[str, Any], streams: list[int], connection: socket.socket) -> object:
        if "run" in request and len(streams) == STREAMS:
            return self._run(request, streams, connection)
        return self._work(request["work"])

    def _run(self, request: Mapping[str, Any], streams: list[int], connection: socket.socket) -> object:
        key = int(request["key"])
        try:
            process = subprocess.Popen(
                request["run"],
                stdin=streams[0],
                stdout=streams[1],
                stderr=streams[2],
                env=request["env"],
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUN
            return {"exit": code, "error": error.strerror}
        self._processes[key] = process.pid
        try:
            _pass_signals_on(connection, process)
        finally:
            end_process(process)
            del self._processes[key]
        code = process.returncode
        return {"exit": code if code >= 0 else 128 - code}

    def _work(self, keys: Iterable[int]) -> object:
        pids = [self._processes[key] for key in keys if key in self._processes]
        return {**asdict(work_of(pids)), "resident": sum(resident_octets(pid) for pid in pids)}


def _pass_signals_on(connection: socket.socket, process: subprocess.Popen[str]) -> None:
    """Until the process has ended, or nobody waits for it any more."""
    ended = os.pidfd_open(process.pid)
    try:
        while True:
            ready, _, _ = select.select([connection.fileno(), ended], [], [])
            if ended in ready:
                return
            message = connection.recv(LONGEST)
            if not message:
                return
            number = json.loads(message)["signal"]
            if number in RESTORED:
                process.send_signal(signal.Signals(number))
    finally:
        os.close(ended)
