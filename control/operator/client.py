"""Asks the daemon over its Unix socket: HTTP/1.1 by the standard library, because a command must be quick.

`aiohttp` would bring a quarter of a second of imports to every `weft status`; a request and an answer
need none of it.  What goes wrong is told as a `Failure`: no socket or nobody behind it, no permission, no
such object.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from control.operator.failure import ExitCode, Failure

# Ours
DEFAULT_SOCKET = "/run/weft/weft.sock"
ANSWER_TIMEOUT = 10.0  # seconds; the daemon answers in milliseconds or is stuck
EXIT_CODES: Mapping[int, ExitCode] = {
    http.client.BAD_REQUEST: ExitCode.USAGE,
    http.client.NOT_FOUND: ExitCode.NO_SUCH_OBJECT,
    http.client.GATEWAY_TIMEOUT: ExitCode.TIME_OUT,
}
"""Of the daemon's refusals; any other is a check that failed."""


class Client:
    """The daemon behind one Unix socket.  Holds no connection between requests."""

    def __init__(self, path: str, *, timeout: float = ANSWER_TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout

    def ask(self, what: str, **query: str | Sequence[str] | None) -> Any:
        """The data of `/v1/<what>`.

        Raises:
            Failure: The daemon is unreachable, or has no such object.
        """
        response, connection = self._request(f"/v1/{what}", query, timeout=self._timeout)
        try:
            return _data(response)
        finally:
            connection.close()

    def tell(self, what: str, question: Mapping[str, Any], *, timeout: float) -> Any:
        """The data with which the daemon answers, once it has done what `/v1/<what>` asks.

        Raises:
            Failure: The daemon is unreachable, or will not.
        """
        response, connection = self._request(f"/v1/{what}", {}, timeout=timeout, question=question)
        try:
            return _data(response)
        finally:
            connection.close()

    def passes(self, check: str) -> tuple[bool, str]:
        """Whether `/healthz` or `/readyz` says yes, and in which words.

        Raises:
            Failure: The daemon is unreachable.
        """
        response, connection = self._request(f"/{check}", {}, timeout=self._timeout)
        try:
            return response.status == http.client.OK, response.read().decode(errors="replace").strip()
        finally:
            connection.close()

    def watch(self, **query: str | Sequence[str] | None) -> Iterator[Any]:
        """The data of each event of `/v1/watch` as it comes, until the daemon ends.

        Raises:
            Failure: The daemon is unreachable.
        """
        response, connection = self._request("/v1/watch", query, timeout=None)
        try:
            if response.status != http.client.OK:
                _data(response)
            for line in response:
                yield json.loads(line)["data"]
        except (ConnectionError, http.client.IncompleteRead):
            return  # the daemon has gone; so have its events
        finally:
            connection.close()

    def _request(
        self,
        path: str,
        query: Mapping[str, str | Sequence[str] | None],
        *,
        timeout: float | None,
        question: Mapping[str, Any] | None = None,
    ) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
        connection = _UnixConnection(self._path, timeout)
        given = {name: value for name, value in query.items() if value}
        target = f"{path}?{urlencode(given, doseq=True)}" if given else path
        try:
            if question is None:
                connection.request("GET", target)
            else:
                body = json.dumps(question)
                connection.request("POST", target, body, {"Content-Type": "application/json"})
            return connection.getresponse(), connection
        except PermissionError:
            connection.close()
            raise Failure(
                f"cannot open {self._path}: Permission denied",
                why="the socket belongs to the user and group the daemon runs as",
                advice="sudo weft …",
                code=ExitCode.PERMISSION,
            ) from None
        except TimeoutError:
            connection.close()
            raise Failure(
                f"no answer from {self._path} in {timeout:g} s",
                why="the daemon holds the socket and does not answer",
                advice="look at its log; restart it if it is stuck",
                code=ExitCode.TIME_OUT,
            ) from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Failure(
                f"cannot reach the daemon at {self._path}: {reason}",
                why="it is not running, or listens on another socket",
                advice="sudo weft run …, or name its socket with --socket or WEFT_SOCKET",
                code=ExitCode.UNREACHABLE,
            ) from None


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket; the host it names is never looked up."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("weft", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _data(response: http.client.HTTPResponse) -> Any:
    try:
        data = json.loads(response.read())["data"]
    except (ValueError, KeyError, TypeError):
        raise Failure(
            f"expected JSON from the daemon, found HTTP status {response.status}",
            why="something else listens on this socket, or a weft of another version",
            advice="weft version",
            code=ExitCode.UNREACHABLE,
        ) from None
    if response.status == http.client.OK:
        return data
    code = EXIT_CODES.get(response.status, ExitCode.CHECK_FAILED)
    raise Failure(data["error"], why=data["why"], advice=data["try"], code=code)
