"""Runs a traffic program in a place of the lab: started, ready, told to begin, heard out.

with Tool(lab["n1"], "udp", "send", address, port) as sender:
    sender.begin()
    sent = sender.result(within=5)
"""

from __future__ import annotations

import json
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

from bench.lab.commands import LabError, end_process, weft_environment
from bench.lab.namespaces import Place
from bench.traffic.cue import GO, READY


class Tool:
    """One program of `bench.traffic`, ready when the `with` block begins and gone when it ends.

    Raises:
        LabError: It ended, or said something else, before it was ready; with its words.
    """

    def __init__(self, place: Place, module: str, *arguments: object) -> None:
        self._place = place
        self._argv = [sys.executable, "-m", f"bench.traffic.{module}", *map(str, arguments)]
        self._name = f"{module} {' '.join(map(str, arguments))} in {place.name}"
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = self._place.popen(self._argv, env=weft_environment())
        line = self._running.stdout.readline() if self._running.stdout else ""
        if line.strip() != READY:
            rest, _ = self._running.communicate(timeout=5)
            raise LabError(f"{self._name}: expected {READY!r}, found: {(line + rest).strip() or 'nothing'}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_process(self._running)
        if self._running.stdout:
            self._running.stdout.close()

    def begin(self) -> None:
        """The cue."""
        self._running.send_signal(GO)

    def result(self, *, within: float) -> dict[str, Any]:
        """What it said at its end; after `within` seconds it is asked to end.

        Raises:
            LabError: It said nothing of use.
        """
        try:
            said, _ = self._running.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            self._running.terminate()
            said, _ = self._running.communicate(timeout=5)
        try:
            found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
        except (IndexError, json.JSONDecodeError):
            raise LabError(f"{self._name}: expected a result, found: {said.strip() or 'nothing'}") from None
        return found

    @property
    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise LabError(f"{self._name}: not started")
        return self._process
