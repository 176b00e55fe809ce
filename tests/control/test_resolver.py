"""A name is looked up beside the loop, and a resolver that is silent keeps nobody from ending."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

import pytest
import uvloop

from control.resolver import look_up

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
Loop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Loop:
    factory: Loop = LOOPS[request.param]
    return factory


def test_addresses_are_of_the_family_and_each_is_told_once(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(host: str, port: int, *about: object) -> list[tuple[object, ...]]:
        assert (host, port, about) == ("n1.example", 7946, (socket.AF_INET6, socket.SOCK_DGRAM))
        hosts = ("2001:db8::1", "2001:db8::2", "2001:db8::1")
        return [(socket.AF_INET6, socket.SOCK_DGRAM, 17, "", (each, port, 0, 0)) for each in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with asyncio.Runner(loop_factory=loop) as runner:
        found = runner.run(look_up("n1.example", 7946, family=socket.AF_INET6))
    assert found == [("2001:db8::1", 7946), ("2001:db8::2", 7946)]


@pytest.mark.parametrize("wrong", ["a..b", "x" * 64 + ".example", "nobody.invalid"])
def test_what_is_no_name_is_an_error(loop: Loop, wrong: str) -> None:
    with asyncio.Runner(loop_factory=loop) as runner, pytest.raises((OSError, UnicodeError)):
        runner.run(look_up(wrong, 7946, family=socket.AF_INET))


def test_nobody_waits_for_a_silent_resolver(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered = threading.Event(), threading.Event()

    def resolve(*_: object) -> list[tuple[object, ...]]:
        asked.set()
        answered.wait(30)
        return []

    async def give_up() -> None:
        looking = asyncio.ensure_future(look_up("n1.example", 7946, family=socket.AF_INET))
        await asyncio.to_thread(asked.wait, 10)
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(give_up())
    [resolver] = [thread for thread in threading.enumerate() if thread.name == "look up n1.example"]
    assert resolver.daemon, "the interpreter would wait for it"
    assert resolver.is_alive(), "the loop has waited for it"
    answered.set()  # what it says now, it says to a loop that is closed
    resolver.join(10)
    assert not resolver.is_alive()
