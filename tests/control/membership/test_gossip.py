"""The shell on real sockets of the loopback: both loops, and a loop that is busy with other things."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop
from support.serf_agent import Pool, until

from control.membership.events import Departed, JoinFailed
from control.membership.member import Endpoint, MemberState
from control.membership.wire import Ping, encode, encode_push_pull
from overlay.errors import DeviceError

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS)
def story(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[[Callable[[Pool], Awaitable[None]]], None]:
    def run(told: Callable[[Pool], Awaitable[None]]) -> None:
        async def in_a_pool() -> None:
            pool = Pool(tmp_path)
            try:
                await told(pool)
            finally:
                await pool.stop()

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(in_a_pool())

    return run


Story = Callable[[Callable[[Pool], Awaitable[None]]], None]


def test_five_nodes_see_each_other_by_one_join(story: Story) -> None:
    async def told(pool: Pool) -> None:
        first = pool.weft("n0")
        wefts = [first, *(pool.weft(f"n{number}", seeds=(first.endpoint,)) for number in range(1, 5))]
        await until(
            lambda: all(weft.status(f"n{number}") == "alive" for weft in wefts for number in range(5)),
            within=3.0,
            what="five see five",
        )

    story(told)


def test_a_node_leaves_and_a_dead_seed_is_told_of(story: Story) -> None:
    async def told(pool: Pool) -> None:
        stays = pool.weft("stays", seeds=(Endpoint(pool.host(), 7946),))
        goes = pool.weft("goes", seeds=(stays.endpoint,))
        await until(lambda: stays.status("goes") == "alive", within=3.0, what="goes is there")
        assert any(isinstance(event, JoinFailed) for event in stays.events)
        goes.call(goes.core.leave)
        await until(lambda: Departed() in goes.events, within=6.0, what="goes has left")
        assert stays.status("goes") == "left"

    story(told)


def test_many_frames_in_the_loop_do_not_make_a_node_look_dead(story: Story) -> None:
    # The loop shares its time with the data plane: here it is busy four fifths of every 50 ms.
    async def told(pool: Pool) -> None:
        first = pool.weft("n0")
        wefts = [first, *(pool.weft(f"n{number}", seeds=(first.endpoint,)) for number in range(1, 4))]
        await until(
            lambda: all(weft.status("n3") == "alive" for weft in wefts), within=3.0, what="all are there"
        )
        end = time.monotonic() + 4.0
        while time.monotonic() < end:
            busy_until = time.monotonic() + 0.04
            while time.monotonic() < busy_until:
                pass
            await asyncio.sleep(0.01)
        for weft in wefts:
            assert {member.state for member in weft.core.members} == {MemberState.ALIVE}
            assert weft.core.statistics().probes_failed == 0

    story(told)


def test_strangers_streams_are_read_in_pieces_and_ended(story: Story) -> None:
    async def told(pool: Pool) -> None:
        weft = pool.weft("n0")
        await until(lambda: _answers(weft.endpoint), within=3.0, what="n0 listens")
        reader, writer = await asyncio.open_connection(*weft.endpoint)
        for octet in encode_push_pull([], b"", join=True):
            writer.write(bytes((octet,)))
            await asyncio.sleep(0)
        assert (await reader.read())[:1] == b"\x06"
        writer.close()
        reader, writer = await asyncio.open_connection(*weft.endpoint)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() == b""
        writer.close()

    story(told)


def _answers(endpoint: Endpoint) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.settimeout(0.2)
        stranger.sendto(encode(Ping(1, "n0")), endpoint)
        try:
            return stranger.recv(100)[:1] in (b"\x02", b"\x07")
        except OSError:
            return False


def test_an_address_in_use_is_told_in_the_operators_words(story: Story) -> None:
    async def told(pool: Pool) -> None:
        first = pool.weft("n0")
        await until(lambda: _answers(first.endpoint), within=3.0, what="n0 listens")
        second = pool.weft("n1", host=first.endpoint.host)
        with pytest.raises(DeviceError, match="gossip"):
            await second.task

    story(told)
