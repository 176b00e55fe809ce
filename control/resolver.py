"""Names looked up in threads that nobody waits for.

The loop's own `getaddrinfo` works in a pool of threads that is joined when the loop closes, and a resolver
that does not answer takes its time: ten seconds a name by default, a multiple of that with search domains.
A daemon that is told to end must not wait for it.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress

Found = list[tuple[str, int]]


async def look_up(host: str, port: int, *, family: socket.AddressFamily) -> Found:
    """The addresses of that family behind a name, each with the port, each once; at least one.

    Raises:
        OSError: The resolver knows none, or cannot be asked.
        UnicodeError: It is no name at all.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Found] = loop.create_future()

    def settle(found: Found, error: Exception | None) -> None:
        if answer.done():  # nobody waits for it any more
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(found)

    def ask() -> None:
        found: Found = []
        failure: Exception | None = None
        try:
            told = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)
            found = list(dict.fromkeys((str(sockaddr[0]), port) for *_, sockaddr in told))
        except (OSError, UnicodeError) as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed: the daemon has ended meanwhile
            loop.call_soon_threadsafe(settle, found, failure)

    threading.Thread(target=ask, name=f"look up {host}", daemon=True).start()
    return await answer
