"""The asyncio shell around `serf.Serf`: one UDP socket, one TCP listener, one timer.

Octets in, octets out, and the time of day when the core wants it; it decides nothing.  What waits in the UDP
socket is read before a timer is fired, so that a node that stood still hears the refutations that came in the
meantime before it gives anybody up.  Works on asyncio's own loops and on uvloop alike (which has no
`sock_recvfrom`: hence the reader callback).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from control.membership.config import STREAM_TIMEOUT
from control.membership.member import Endpoint
from overlay.addr import unmap
from overlay.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from control.membership.events import Event, StreamOpen
    from control.membership.serf import Serf

BURST = 64  # datagrams read before the loop may turn to others
DATAGRAM_OCTETS = 65536
CHUNK_OCTETS = 65536
RECEIVE_BUFFER = 2 << 20

_REFUSED: Mapping[int, tuple[str, str]] = {
    errno.EADDRINUSE: (
        "another weft or Serf agent has its UDP or TCP port",
        "stop that one, or choose another --gossip-bind",
    ),
    errno.EADDRNOTAVAIL: ("this host has no such address", "ip -br addr; choose another --gossip-bind"),
    errno.EACCES: ("ports below 1024 are for root", "choose another --gossip-bind"),
}


class Gossip:
    """Runs one core on one address.

    Args:
        core: The member.  The shell calls its verbs; who asks anything else of it calls `wake` after.
        bind: Where to listen, UDP and TCP.
        tell: Called with each event, in order, from the loop's thread.
    """

    def __init__(self, core: Serf, bind: Endpoint, tell: Callable[[Event], None]) -> None:
        self._core = core
        self._bind = bind
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._connecting: dict[int, asyncio.Task[None]] = {}
        self._tasks = asyncio.TaskGroup()
        self._bound: tuple[socket.socket, asyncio.Server] | None = None
        self._udp: socket.socket | None = None  # while `run` carries

    async def bind(self) -> None:
        """Take the address, so that it is known to be ours before anything is said.

        Raises:
            DeviceError: The address cannot be bound; nothing is held.
        """
        self._bound = await self._take_address()

    def close(self) -> None:
        """Give the address back, for who has called `bind` and never came to `run`.  Idempotent."""
        if self._bound is not None:
            udp, tcp = self._bound
            udp.close()
            tcp.close()
            self._bound = None

    async def run(self) -> None:
        """Listen, and carry until cancelled.  Binds where `bind` has not been called.

        Raises:
            DeviceError: The address cannot be bound.
        """
        self._udp, tcp = self._bound = self._bound or await self._take_address()
        async with tcp, self._tasks:
            await tcp.start_serving()
            self._loop.add_reader(self._udp, self._readable)
            try:
                self.wake()
                await asyncio.Event().wait()
            finally:
                self._loop.remove_reader(self._udp)
                self._udp.close()
                self._udp = self._bound = None
                if self._timer is not None:
                    self._timer.cancel()
                for task in self._connecting.values():
                    task.cancel()
                for writer in self._writers.values():
                    writer.close()

    def wake(self) -> None:
        """Carry away what the core has to say.  To be called after anything was asked of it."""
        if self._udp is None:
            return
        now = self._loop.time()
        for data, to in self._core.datagrams_to_send(now=now):
            # A full buffer or a missing route is a lost datagram, and gossip lives with those.
            with contextlib.suppress(OSError):
                self._udp.sendto(data, to)
        for opening in self._core.streams_to_open(now=now):
            self._connecting[opening.stream] = self._tasks.create_task(self._connect(opening))
        for number, data in ((write.stream, write.data) for write in self._core.streams_to_write(now=now)):
            self._finish(number, data)
        while (event := self._core.next_event()) is not None:
            self._tell(event)
        self._arm()

    async def _take_address(self) -> tuple[socket.socket, asyncio.Server]:
        host, port = self._bind
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            udp = _bind_udp(family, self._bind)
            try:
                tcp = await asyncio.start_server(self._serve, host, port, family=family, start_serving=False)
            except BaseException:
                udp.close()
                raise
        except OSError as error:
            number = error.errno or errno.EADDRNOTAVAIL
            why, advice = _REFUSED.get(number, _REFUSED[errno.EADDRNOTAVAIL])
            raise DeviceError(f"gossip {self._bind}", number, why=why, advice=advice) from error
        return udp, tcp

    # UDP and the timer.

    def _readable(self) -> None:
        self._read_datagrams()
        self.wake()

    def _read_datagrams(self) -> None:
        if self._udp is None:
            return
        for _ in range(BURST):
            try:
                data, sender = self._udp.recvfrom(DATAGRAM_OCTETS)
            except OSError:  # nothing left, or the ICMP error of something sent earlier
                return
            self._core.receive_datagram(data, _endpoint(sender), now=self._loop.time())

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadline = self._core.next_deadline()
        self._timer = self._loop.call_at(deadline, self._due) if deadline is not None else None

    def _due(self) -> None:
        self._read_datagrams()
        self._core.handle_timer(now=self._loop.time())
        self.wake()

    # TCP.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self._core.accept_stream(_endpoint(writer.get_extra_info("peername")), now=self._loop.time())
        if number is None:
            writer.close()
            return
        self._writers[number] = writer
        await self._read(number, reader)

    async def _connect(self, opening: StreamOpen) -> None:
        number = opening.stream
        try:
            async with asyncio.timeout(STREAM_TIMEOUT):
                reader, writer = await asyncio.open_connection(*opening.to)
        except OSError as error:
            self._core.stream_closed(number, now=self._loop.time(), why=error.strerror or "timed out")
            self.wake()
            return
        finally:
            self._connecting.pop(number, None)
        self._writers[number] = writer
        writer.write(opening.data)
        await self._read(number, reader)

    async def _read(self, number: int, reader: asyncio.StreamReader) -> None:
        why = "closed by the other side"
        try:
            while number in self._writers and (data := await reader.read(CHUNK_OCTETS)):
                self._core.receive_stream(number, data, now=self._loop.time())
                self.wake()
        except OSError as error:
            why = error.strerror or "reset"
        self._core.stream_closed(number, now=self._loop.time(), why=why, was_open=True)
        self._finish(number, b"")
        self.wake()

    def _finish(self, number: int, data: bytes) -> None:
        if task := self._connecting.pop(number, None):
            task.cancel()
        if writer := self._writers.pop(number, None):
            if data:
                writer.write(data)
            writer.close()
            # Closing waits for what is unsent: who asks and never reads must not keep a descriptor for it.
            self._loop.call_later(STREAM_TIMEOUT, writer.transport.abort)


def _bind_udp(family: socket.AddressFamily, bind: Endpoint) -> socket.socket:
    udp = socket.socket(family, socket.SOCK_DGRAM)
    try:
        udp.settimeout(0.0)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        udp.bind(bind)
    except OSError:
        udp.close()
        raise
    return udp


def _endpoint(address: Any) -> Endpoint:
    """What a socket calls the other side, as the core does: v4-mapped unmapped, a scope dropped."""
    host = str(address[0]).partition("%")[0]
    return Endpoint(str(unmap(ip_address(host))) if ":" in host else host, address[1])
