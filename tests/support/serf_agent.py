"""Stock `serf` agents and weft members on loopback addresses, for tests that make them one pool.

Each pool takes a block of 127.0.0.0/8 of its own, so tests may run beside each other.  Everything started is
stopped by its own handle, whatever happens.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from control.membership.config import GossipConfig
from control.membership.events import Event
from control.membership.gossip import Gossip
from control.membership.keys import format_key
from control.membership.member import Endpoint
from control.membership.secure import Envelope, Keyring
from control.membership.serf import Serf

SERF = shutil.which("serf")
needs_serf = pytest.mark.skipif(SERF is None, reason="needs a stock serf agent: apt install serf")
GOSSIP_PORT = 7946
TROUBLE = re.compile(r"\[(WARN|ERR)\]")
_blocks = itertools.count(1)


def fresh_block() -> str:
    """The first three octets of addresses nobody else uses: by process and by call."""
    return f"127.{os.getpid() % 250 + 1}.{next(_blocks) % 250 + 1}"


class Agent:
    """One stock agent."""

    def __init__(self, name: str, host: str, folder: Path, *arguments: str) -> None:
        self.name = name
        self.host = host
        self.rpc = f"{host}:7373"
        self._log = folder / f"{name}-{host}.log"
        command = [SERF or "serf", "agent", "-log-level=debug", f"-node={name}"]
        command += [f"-bind={host}:{GOSSIP_PORT}", f"-rpc-addr={self.rpc}", "-retry-interval=1s", *arguments]
        environment = os.environ | {"HOME": str(folder)}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    @property
    def endpoint(self) -> Endpoint:
        """Where it gossips."""
        return Endpoint(self.host, GOSSIP_PORT)

    def log(self) -> str:
        """Everything it has logged."""
        return self._log.read_text()

    def trouble(self) -> list[str]:
        """Its warnings and errors."""
        return [line for line in self.log().splitlines() if TROUBLE.search(line)]

    def run(self, *arguments: str) -> str:
        """A `serf` command against this agent, its output."""
        command = [SERF or "serf", arguments[0], f"-rpc-addr={self.rpc}", *arguments[1:]]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout

    def members(self) -> dict[str, dict[str, Any]]:
        """Name to what it tells of each member: `status`, `addr`, `tags`."""
        try:
            told = json.loads(self.run("members", "-format=json"))
        except ValueError:  # it does not listen yet
            return {}
        return {member["name"]: member for member in told["members"] or []}

    def status(self, name: str) -> str:
        """What it holds a member to be: alive, leaving, left, failed; empty: unknown."""
        return str(self.members().get(name, {}).get("status", ""))

    def is_running(self) -> bool:
        """Whether the process is there."""
        return self.process.poll() is None

    def stop(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.wait()


class Weft:
    """One weft member on real sockets, in the test's own loop."""

    def __init__(self, name: str, host: str, *, keys: tuple[bytes, ...] = (), **changes: Any) -> None:
        loop = asyncio.get_running_loop()
        self.loop = loop
        self.endpoint = Endpoint(host, GOSSIP_PORT)
        self.keyring = Keyring(keys)
        tags = changes.pop("tags", {"weft_id": name})
        config = GossipConfig(name, self.endpoint, tags, **changes)
        envelope = Envelope(self.keyring, config.label, nonce=os.urandom)
        self.core = Serf(config, rng=random.Random(), envelope=envelope, now=loop.time())
        self.events: list[Event] = []
        self.shell = Gossip(self.core, self.endpoint, self.events.append)
        self.task = asyncio.create_task(self.shell.run())

    def status(self, name: str) -> str:
        """What this member holds another to be: alive, suspect, dead, left; empty: unknown."""
        member = self.core.lookup(name)
        return member.state.name.lower() if member else ""

    def call(self, ask: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Ask something of the core now, and carry away what follows."""
        answer = ask(*arguments, now=self.loop.time(), **options)
        self.shell.wake()
        return answer

    async def stop(self) -> None:
        """End it at once, without a word."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Pool:
    """Agents and members of one test."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._block = fresh_block()
        self._hosts = itertools.count(1)
        self.agents: list[Agent] = []
        self.wefts: list[Weft] = []

    def host(self) -> str:
        """An address of this pool that nobody has."""
        return f"{self._block}.{next(self._hosts)}"

    def agent(self, name: str, *arguments: str, host: str = "") -> Agent:
        """Start a stock agent."""
        agent = Agent(name, host or self.host(), self._folder, *arguments)
        self.agents.append(agent)
        return agent

    def weft(self, name: str, *, host: str = "", **changes: Any) -> Weft:
        """Start a weft member."""
        weft = Weft(name, host or self.host(), **changes)
        self.wefts.append(weft)
        return weft

    def keyring_file(self, name: str, *keys: bytes) -> str:
        """The arguments that give an agent a keyring."""
        path = self._folder / f"{name}.keyring"
        path.write_text(json.dumps([format_key(key) for key in keys]))
        return f"-keyring-file={path}"

    async def stop(self) -> None:
        """End everything that was started."""
        for agent in self.agents:
            agent.stop()
        for weft in self.wefts:
            await weft.stop()


async def until(claim: Callable[[], object], *, within: float, what: str) -> None:
    """Wait until the claim holds; the claim may ask an agent, so it is asked in a thread."""
    deadline = time.monotonic() + within
    while not await asyncio.to_thread(claim):
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(0.05)
