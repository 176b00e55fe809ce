"""The local API: what the daemon shows of itself, as JSON over HTTP/1.1 on a Unix socket.

    GET /v1/status /v1/peers /v1/fdb /v1/neigh /v1/flows /v1/drops /v1/config     {"schema": …, "data": …}
    GET /v1/routes                                                               the same, of routed networks
    GET /v1/leases                                                               whose each subnet is
    POST /v1/leases/release {"subnet"} /v1/leases/adopt {"without"}              a founder is asked
    GET /v1/members                                                              the pool, itself included
    GET /v1/watch                                                                one such object a line
    POST /v1/join {"hosts"} /v1/leave /v1/keys {"step", "key"}                   the pool is asked
    GET /healthz /readyz                                                         200 or 503, and a word
    GET /metrics                                                                 Prometheus' text format

`?network=NAME` narrows the tables to one network; a name nobody knows is answered 404.  So
`curl --unix-socket /run/weft/weft.sock http://weft/v1/fdb` shows what `weft fdb --json` does.

The server knows nothing of the daemon but `Introspection`, which only reads, and `PoolControl`, which is
asked over the Unix socket alone: whoever reaches the optional TCP address can look and not touch, nor can
he take the descriptors the daemon lives on, or fill its log.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import stat
from asyncio import Transport
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from control.loop_lag import LoopLag
from control.operator import views
from control.operator.config import as_plain
from control.operator.fields import Endpoint
from control.operator.metrics import exposition
from control.operator.schema import Config
from control.operator.views import (
    FdbView,
    FlowView,
    KeysView,
    LeaseView,
    MemberView,
    NeighView,
    NetworkView,
    PeerView,
    RouteView,
    StatusView,
    TrafficView,
    WatchEvent,
    envelope,
)
from overlay.addr import NetworkId
from overlay.errors import DeviceError, Ground, RefusedError
from overlay.verdict import DropReason

log = logging.getLogger("weft.api")

# Ours
SOCKET_MODE = 0o660  # owner and group; the group is how an operator without root is let in
BACKLOG = 64
CALLERS_MAX = 64  # over TCP, each with a descriptor that the daemon needs for better things
REQUEST_SECONDS = 10.0  # for a whole request: from the connection (aiohttp ≥ 3.14.5), or the last answer
NO_QUESTION = (ValueError, TypeError, LookupError, RecursionError, web.RequestPayloadError)
GOSSIP_IS_OFF = ("gossip is off", "this node has static peers only", "weft run --join HOST, or --gossip-bind")
NOT_A_QUESTION = ("its body is not what this request takes", "weft version: of both sides")
STATUS_OF: Mapping[Ground, type[web.HTTPException]] = {
    Ground.STATE: web.HTTPUnprocessableEntity,
    Ground.QUESTION: web.HTTPBadRequest,
    Ground.ABSENT: web.HTTPNotFound,
    Ground.TIME: web.HTTPGatewayTimeout,
}
CLOSING = 0.1  # seconds an open request has once the daemon stops; only a watch is still open then


class Introspection(Protocol):
    """What the daemon tells about itself.  Every call answers at once, from the loop's own thread."""

    def status(self) -> StatusView: ...
    def peers(self) -> Sequence[PeerView]: ...
    def fdb(self) -> Sequence[FdbView]: ...
    def neighbors(self) -> Sequence[NeighView]: ...
    def routes(self) -> Sequence[RouteView]: ...
    def flows(self) -> Sequence[FlowView]: ...
    def traffic(self) -> Sequence[TrafficView]: ...
    def config(self) -> Config: ...
    def members(self) -> Sequence[MemberView]: ...
    def leases(self) -> Sequence[LeaseView]: ...
    def drops(self) -> Mapping[NetworkId, Mapping[DropReason, int]]:
        """Counts since the start; reasons that never occurred may be left out."""
        ...

    def loop_lag(self) -> LoopLag: ...
    def is_live(self) -> bool:
        """Whether the loop turns and nothing the daemon cannot do without has failed."""
        ...

    def is_ready(self) -> bool:
        """Whether every network's device is up and carries."""
        ...

    def watch(self) -> AsyncGenerator[WatchEvent, None]:
        """Every event from now on.  The caller closes it; a reader too slow loses events, not frames."""
        ...


class PoolControl(Protocol):
    """What an operator may ask of the pool.  Each answers when the pool has, within seconds."""

    async def join(self, hosts: Iterable[str]) -> list[tuple[str, str | None]]:
        """For each host what went wrong, or None; MembershipError for one that is none."""
        ...

    async def leave(self) -> None:
        """Returns when the others have heard it."""

    async def release(self, subnet: str) -> None:
        """Takes a leased subnet back; LeaseError where that is not to be."""

    async def adopt(self, without: Iterable[str]) -> Mapping[str, int]:
        """Ends a founder's fence; how many grants it has, by network, or LeaseError."""
        ...

    async def keys(self, step: str, key: str | None) -> KeysView:
        """What the pool answered; MembershipError where it cannot be asked."""
        ...


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Ask = Callable[[PoolControl, dict[str, Any]], Awaitable[tuple[str, object]]]


class ApiServer:
    """Serves one daemon.  `start` and `close` are for the loop that runs the daemon."""

    def __init__(
        self,
        daemon: Introspection,
        *,
        path: str,
        listen: Endpoint | None = None,
        pool: PoolControl | None = None,
    ) -> None:
        """`pool` is None where gossip is off: what concerns it is then answered 404."""
        self._daemon = daemon
        self._pool = pool
        self._path = Path(path)
        self._listen = listen
        self._runners: list[web.BaseRunner] = []
        self._inode: int | None = None

    async def start(self) -> None:
        """Listens.

        Raises:
            DeviceError: EADDRINUSE: another daemon answers on the socket, or the TCP port is taken;
                else what the kernel said.
        """
        app = web.Application()
        app.add_routes([web.get(path, handler) for path, handler in self._routes().items()])
        app.add_routes([web.post(path, self._asks(ask)) for path, ask in self._pool_routes().items()])
        # What a handler gets wrong is logged with a traceback, what a caller gets wrong is not.
        logger = logging.getLogger("weft.api.server")
        logger.addFilter(_is_ours)
        manners: Mapping[str, Any] = {
            "access_log": None,
            "handler_cancellation": True,
            "keepalive_timeout": REQUEST_SECONDS,
            "logger": logger,
        }
        runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=CLOSING, **manners)
        self._runners.append(runner)
        await runner.setup()
        door = _unix_socket(self._path)
        self._inode = self._path.stat().st_ino
        await web.SockSite(runner, door, backlog=BACKLOG).start()
        if self._listen is not None and runner.server is not None:
            strangers = _Strangers(
                runner.server.request_handler, request_factory=runner.server.request_factory, **manners
            )
            await self._start_tcp(strangers, self._listen)

    async def _start_tcp(self, strangers: web.Server, listen: Endpoint) -> None:
        runner = web.ServerRunner(strangers, handle_signals=False, shutdown_timeout=CLOSING)
        self._runners.append(runner)
        await runner.setup()
        try:
            await web.TCPSite(runner, listen.host, listen.port, backlog=BACKLOG).start()
        except OSError as error:
            await self.close()
            raise DeviceError(
                f"tcp {listen}",
                error.errno or errno.EADDRNOTAVAIL,
                why="the API cannot listen there",
                advice="choose another [api] listen, or leave it out",
            ) from error

    async def close(self) -> None:
        """Ends every request and removes the socket, if it is still ours.  Idempotent."""
        while self._runners:
            await self._runners.pop().cleanup()
        with suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        self._inode = None

    def _routes(self) -> dict[str, Handler]:
        daemon = self._daemon
        return {
            "/v1/status": self._shows(views.STATUS, lambda _: daemon.status()),
            "/v1/peers": self._shows(views.PEERS, self._peers),
            "/v1/fdb": self._shows(views.FDB, lambda only: [e for e in daemon.fdb() if _on(e.ifname, only)]),
            "/v1/neigh": self._shows(
                views.NEIGH, lambda only: [e for e in daemon.neighbors() if _on(e.dev, only)]
            ),
            "/v1/flows": self._shows(
                views.FLOWS, lambda only: [e for e in daemon.flows() if not only or e.network == only.name]
            ),
            "/v1/routes": self._shows(
                views.ROUTES, lambda only: [e for e in daemon.routes() if not only or e.network == only.name]
            ),
            "/v1/drops": self._shows(views.DROPS, self._drops),
            "/v1/config": self._shows(views.CONFIG, lambda _: self._config()),
            "/v1/leases": self._shows(views.LEASES, self._leases),
            "/v1/members": self._shows(views.MEMBERS, lambda _: self._members()),
            "/v1/watch": self._watch,
            "/healthz": self._checks(daemon.is_live, "live"),
            "/readyz": self._checks(daemon.is_ready, "ready"),
            "/metrics": self._metrics,
        }

    def _pool_routes(self) -> dict[str, Ask]:
        return {
            "/v1/join": _join,
            "/v1/leave": _leave,
            "/v1/keys": _keys,
            "/v1/leases/release": _release,
            "/v1/leases/adopt": _adopt,
        }

    def _shows(self, schema: str, view: Callable[[NetworkView | None], object]) -> Handler:
        """A handler that answers with a view, narrowed to the network the query names."""

        async def handler(request: web.Request) -> web.Response:
            return _json(schema, view(self._narrowed(request)))

        return handler

    def _narrowed(self, request: web.Request) -> NetworkView | None:
        name = request.query.get("network")
        if name is None:
            return None
        networks = self._daemon.status().networks
        for network in networks:
            if network.name == name:
                return network
        known = ", ".join(network.name for network in networks)
        raise _problem(web.HTTPNotFound, f"no such network: {name}", f"there is {known}", "weft status")

    def _peers(self, only: NetworkView | None) -> list[PeerView]:
        return [peer for peer in self._daemon.peers() if only is None or only.name in peer.networks]

    def _drops(self, only: NetworkView | None) -> dict[str, int]:
        """Reason → count, in the order the enum tells them, summed over the networks asked for."""
        counted = self._daemon.drops()
        chosen = [counts for name, counts in counted.items() if only is None or name == only.name]
        totals = {reason: sum(counts.get(reason, 0) for counts in chosen) for reason in DropReason}
        return {reason.name: count for reason, count in totals.items() if count}

    def _config(self) -> dict[str, object]:
        config = self._daemon.config()
        return {"config": as_plain(config), "origins": config.origins}

    def _leases(self, only: NetworkView | None) -> list[LeaseView]:
        return [each for each in self._daemon.leases() if only is None or each.network == only.name]

    def _members(self) -> Sequence[MemberView]:
        if self._pool is None:
            raise _problem(web.HTTPNotFound, *GOSSIP_IS_OFF)
        return self._daemon.members()

    def _asks(self, ask: Ask) -> Handler:
        """A handler that asks the pool for something, over the Unix socket alone."""

        async def handler(request: web.Request) -> web.Response:
            door = request.get_extra_info("socket")
            if door is None or door.family != socket.AF_UNIX:
                raise _problem(
                    web.HTTPForbidden,
                    "this address only shows",
                    "what changes the pool is asked over the Unix socket",
                    "weft … --socket",
                )
            if self._pool is None:
                raise _problem(web.HTTPNotFound, *GOSSIP_IS_OFF)
            try:
                schema, data = await ask(self._pool, await request.json() if request.can_read_body else {})
            except RefusedError as error:
                raise _problem(STATUS_OF[error.ground], str(error), error.why, error.advice) from None
            except NO_QUESTION as error:
                raise _problem(web.HTTPBadRequest, f"not a question: {error!r}", *NOT_A_QUESTION) from None
            return _json(schema, data)

        return handler

    def _checks(self, claim: Callable[[], bool], word: str) -> Handler:
        async def handler(_: web.Request) -> web.Response:
            return (
                web.Response(text=f"{word}\n") if claim() else web.Response(status=503, text=f"not {word}\n")
            )

        return handler

    async def _metrics(self, request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        try:
            body, content_type = exposition(self._daemon, accept)
        except (TypeError, ValueError):  # QUIRK(prometheus_client<=0.26): a version that is no number
            if not accept:
                raise
            body, content_type = exposition(self._daemon, "")
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        """Streams until the reader leaves or the daemon stops."""
        kinds = set(request.query.getall("kind", []))
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        with suppress(ConnectionResetError):  # the reader has gone, before the first event or between two
            await response.prepare(request)
            async with aclosing(self._daemon.watch()) as events:
                async for event in events:
                    if not kinds or event.kind in kinds:
                        await response.write(_line(views.WATCH, event))
        return response


class _Strangers(web.Server):
    """The server behind the TCP address, which hangs up on whoever comes when it is full."""

    def connection_made(self, handler: web.RequestHandler, transport: Transport) -> None:
        super().connection_made(handler, transport)
        if len(self.connections) > CALLERS_MAX:
            log.debug("%d callers over TCP: one more is not heard", CALLERS_MAX)
            transport.abort()


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether the daemon is to blame for what the server logs; a caller's mistake is worth a debug line."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError | web.RequestPayloadError):
        log.debug("a request that is none: %s", type(error).__name__)
        return False
    return True


async def _join(pool: PoolControl, question: dict[str, Any]) -> tuple[str, object]:
    hosts = question["hosts"]
    if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
        raise TypeError("hosts: expected a list of texts")
    answers = await pool.join(hosts)
    return views.JOIN, [{"host": host, "joined": why is None, "why": why or ""} for host, why in answers]


async def _leave(pool: PoolControl, _: dict[str, Any]) -> tuple[str, object]:
    await pool.leave()
    return views.LEAVE, {"left": True}


async def _release(pool: PoolControl, question: dict[str, Any]) -> tuple[str, object]:
    await pool.release(str(question["subnet"]))
    return views.RELEASE, {"released": str(question["subnet"])}


async def _adopt(pool: PoolControl, question: dict[str, Any]) -> tuple[str, object]:
    without = question.get("without", [])
    if not isinstance(without, list) or not all(isinstance(name, str) for name in without):
        raise TypeError("without: expected a list of names")
    return views.ADOPT, {"grants": await pool.adopt(without)}


async def _keys(pool: PoolControl, question: dict[str, Any]) -> tuple[str, object]:
    return views.KEYS, await pool.keys(str(question["step"]), question.get("key"))


def _problem(kind: type[web.HTTPException], error: str, why: str, advice: str) -> web.HTTPException:
    """An HTTP error that carries the three lines."""
    body = envelope(views.ERROR, {"error": error, "why": why, "try": advice})
    return kind(text=json.dumps(body), content_type="application/json")


def _on(device: str, network: NetworkView | None) -> bool:
    return network is None or network.device == device


def _json(schema: str, data: object) -> web.Response:
    return web.Response(body=_line(schema, data), content_type="application/json")


def _line(schema: str, data: object) -> bytes:
    return json.dumps(envelope(schema, data)).encode() + b"\n"


def _unix_socket(path: Path) -> socket.socket:
    """A bound socket at the path, its directory made, what a dead daemon left there replaced."""
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path)
        before = os.umask(0o777 & ~SOCKET_MODE)  # so that it never exists with any other mode
        try:
            door.bind(str(path))
        finally:
            os.umask(before)
    except OSError as error:
        door.close()
        advice = "sudo weft run …, or choose another --socket"
        # A path too long for sockaddr_un has no errno of its own.
        raise DeviceError(
            str(path), error.errno or errno.ENAMETOOLONG, why="the API's socket cannot be made", advice=advice
        ) from error
    except DeviceError:
        door.close()
        raise
    return door


def _clear(path: Path) -> None:
    """Removes a socket nobody listens on.  What is not a socket is not ours to remove."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise DeviceError(
            str(path),
            errno.EEXIST,
            why="something that is not a socket stands where the API's socket belongs",
            advice="move it away, or choose another --socket",
        )
    if _answers(path):
        raise DeviceError(
            str(path),
            errno.EADDRINUSE,
            why="another weft answers on it",
            advice=f"weft status --socket {path}, or give this one its own --socket",
        )
    path.unlink()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except TimeoutError:
            return True  # somebody holds it, too busy to accept
    return True
