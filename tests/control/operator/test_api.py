"""The API serves what the daemon tells, on a socket of its own, and nothing it was not asked."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from support.introspection import DROPS, EVENTS, KEY_LIST, NEW_KEY, FakeDaemon, FakePool, served
from support.namespace import eventually

from control.membership.events import Refusal
from control.operator import api as api_module
from control.operator.api import CALLERS_MAX, ApiServer
from control.operator.client import Client
from control.operator.failure import ExitCode, Failure
from control.operator.fields import Endpoint
from control.operator.views import plain
from overlay.errors import DeviceError, MembershipError
from overlay.verdict import DropReason

KEYS = {
    "peers": {"name", "underlay", "state", "networks", "rx_octets", "tx_octets", "drops"},
    "fdb": {"mac", "dst", "vni", "ifname", "state", "flags"},
    "neigh": {"ip", "mac", "dev", "state"},
    "routes": {"network", "subnet", "vtep", "via", "mac", "dev", "state"},
    "flows": {"network", "direction", "src", "dst", "verdict", "frames", "octets", "idle_s"},
}


def curl(path: Path, target: str) -> tuple[int, str, bytes]:
    """What `curl --unix-socket` would see, by hand: status, content type, body."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(10)
        stream.connect(str(path))
        stream.sendall(f"GET {target} HTTP/1.1\r\nHost: weft\r\nConnection: close\r\n\r\n".encode())
        response = http.client.HTTPResponse(stream)
        response.begin()
        return response.status, response.headers["Content-Type"], response.read()


def test_status_has_exactly_the_contracts_keys_and_the_added_ones(api: Path) -> None:
    data = Client(str(api)).ask("status")
    contract = {"node", "version", "engine", "underlays", "networks", "peers", "uptime_s"}
    assert data.keys() == contract | {"engine_reason", "rates", "health"}
    assert [underlay.keys() for underlay in data["underlays"]] == [
        {"address", "device", "mtu", "rungs"},
        {"address", "device", "mtu", "rungs"},
    ]
    assert data["underlays"][0]["rungs"] == {
        "egress": "batch",
        "ingress": "plain",
        "reason": "udp_gro is off",
    }
    assert data["networks"][1] == {
        "name": "pods",
        "mode": "routed",
        "encap": "flannel-udp",
        "vni": None,
        "port": 8285,
        "device": "flannel0",
        "mtu": 1472,
    }
    assert data["peers"] == {"alive": 2, "suspect": 1, "dead": 0}
    assert data["health"][0].keys() == {"problem", "fix"}


@pytest.mark.parametrize("what", KEYS)
def test_a_table_is_a_list_with_exactly_the_contracts_keys(api: Path, what: str) -> None:
    rows = Client(str(api)).ask(what)
    assert rows[0].keys() == KEYS[what]


def test_an_fdb_entry_has_a_port_only_where_it_is_not_the_networks_and_a_vni_only_where_there_is_one(
    api: Path,
) -> None:
    plain, elsewhere, without_vni = Client(str(api)).ask("fdb")
    assert "port" not in plain
    assert elsewhere["port"] == 8472
    assert "vni" not in without_vni


def test_drops_are_an_object_of_counts_summed_over_networks_without_zeros(api: Path) -> None:
    assert Client(str(api)).ask("drops") == {"BAD_FLAGS": 40, "UNKNOWN_VTEP": 5}
    assert Client(str(api)).ask("drops", network="pods") == {"UNKNOWN_VTEP": 2}


@pytest.mark.parametrize(
    ("what", "network", "expected"),
    [
        ("peers", "pods", 1),
        ("fdb", "lab", 2),
        ("neigh", "pods", 1),
        ("routes", "pods", 2),
        ("routes", "lab", 0),
        ("flows", "pods", 0),
        ("flows", "lab", 1),
    ],
)
def test_a_table_is_narrowed_to_one_network(api: Path, what: str, network: str, expected: int) -> None:
    assert len(Client(str(api)).ask(what, network=network)) == expected


def test_a_network_nobody_knows_is_no_such_object(api: Path) -> None:
    with pytest.raises(Failure, match="no such network: nope") as caught:
        Client(str(api)).ask("fdb", network="nope")
    assert caught.value.code is ExitCode.NO_SUCH_OBJECT
    assert caught.value.reasons == ("there is lab, pods",)


def test_the_configuration_is_served_with_its_origins(api: Path) -> None:
    data = Client(str(api)).ask("config")
    assert data["config"]["network"][0]["vni"] == 42
    assert data["origins"]["network[0].vni"] == "--vni"


def test_every_answer_is_in_an_envelope_curl_can_read(api: Path) -> None:
    status, kind, body = curl(api, "/v1/peers")
    assert (status, kind) == (200, "application/json")
    assert json.loads(body)["schema"] == "weft.peers/1"
    status, _, body = curl(api, "/v1/fdb?network=nope")
    answer = json.loads(body)
    assert (status, answer["schema"]) == (404, "weft.error/1")
    assert answer["data"].keys() == {"error", "why", "try"}


@pytest.mark.parametrize(("live", "ready"), [(True, True), (True, False), (False, False)])
def test_healthz_and_readyz_say_what_the_daemon_says(
    daemon: FakeDaemon, api: Path, live: bool, ready: bool
) -> None:
    daemon.live, daemon.ready = live, ready
    assert curl(api, "/healthz")[0] == (200 if live else 503)
    assert curl(api, "/readyz")[0] == (200 if ready else 503)
    assert Client(str(api)).passes("readyz") == (ready, "ready" if ready else "not ready")


def test_metrics_are_what_prometheus_parses_with_every_drop_reason_at_zero_or_more(api: Path) -> None:
    status, kind, body = curl(api, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    drops = {key: value for key, value in samples.items() if key[0] == "weft_drops_total"}
    networks = {*DROPS, "weft0", ""}  # one that never dropped, and none
    assert len(drops) == len(networks) * len(DropReason)
    assert {drops["weft_drops_total", reason.name, "weft0"] for reason in DropReason} == {0}
    assert drops["weft_drops_total", "", "UNKNOWN_VNI"] == 0
    assert drops["weft_drops_total", "BAD_FLAGS", "lab"] == 40
    assert drops["weft_drops_total", "TRUNCATED", "lab"] == 0
    assert samples["weft_info", "0.1.0", "n1", "python"] == 1
    assert samples["weft_peers", "suspect"] == 1
    assert samples["weft_frames_total", "egress", "lab"] == 12
    assert samples["weft_fdb_refused_total", "lab"] == 9
    assert samples["weft_peer_octets_total", "192.0.2.2:4789", "n2", "tx"] == 9_100_000_000
    dropped = {key: value for key, value in samples.items() if key[0] == "weft_peer_drops_total"}
    assert dropped == {("weft_peer_drops_total", "MTU_EXCEEDED", "[2001:db8::3]:4789", "n3"): 7}
    assert samples["weft_rung", "192.0.2.1", "batch", "egress", "eth0"] == 1


def test_watch_streams_one_object_a_line_and_leaves_nothing_behind(daemon: FakeDaemon, api: Path) -> None:
    events = Client(str(api)).watch()
    assert [next(events) for _ in EVENTS] == [
        {
            "at": 1_700_000_000.25,
            "kind": "drop",
            "network": "lab",
            "text": "UNKNOWN_VTEP from 192.0.2.9",
            "detail": {"reason": "UNKNOWN_VTEP"},
        },
        {"at": 1_700_000_001.5, "kind": "peer", "network": None, "text": "n3 is suspect", "detail": {}},
    ]
    assert daemon.watches_open == 1
    events.close()  # type: ignore[attr-defined]
    assert daemon.watch_closed.wait(10), "a reader has left and its watch goes on"
    assert daemon.watches_open == 0


def test_watch_can_be_narrowed_to_kinds(api: Path) -> None:
    events = Client(str(api)).watch(kind=("peer", "learn"))
    assert next(events)["kind"] == "peer"


def test_closing_the_server_ends_a_watch(daemon: FakeDaemon, socket_path: Path) -> None:
    with served(daemon, socket_path):
        events = Client(str(socket_path)).watch()
        next(events)
    assert len(list(events)) == len(EVENTS) - 1
    assert daemon.watch_closed.is_set()


def test_the_socket_is_for_owner_and_group_and_goes_with_the_server(
    daemon: FakeDaemon, socket_path: Path
) -> None:
    umask = os.umask(0o077)
    try:
        with served(daemon, socket_path):
            assert stat.S_IMODE(socket_path.stat().st_mode) == 0o660
            assert os.umask(0o077) == 0o077, "the umask is the process's, and borrowed"
    finally:
        os.umask(umask)
    assert not socket_path.exists()


def test_a_socket_a_dead_daemon_left_is_replaced(daemon: FakeDaemon, socket_path: Path) -> None:
    socket_path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path))
    with served(daemon, socket_path):
        assert Client(str(socket_path)).ask("status")["node"] == "n1"


def test_a_living_daemons_socket_is_left_to_it(daemon: FakeDaemon, api: Path) -> None:
    with pytest.raises(DeviceError, match="Address already in use") as caught, served(daemon, api):
        pass
    assert caught.value.errno == errno.EADDRINUSE
    assert Client(str(api)).ask("status")["node"] == "n1"


def test_a_file_that_is_not_a_socket_is_not_ours_to_remove(daemon: FakeDaemon, socket_path: Path) -> None:
    socket_path.parent.mkdir()
    socket_path.write_text("precious")
    with pytest.raises(DeviceError, match="File exists"), served(daemon, socket_path):
        pass
    assert socket_path.read_text() == "precious"


def test_a_path_longer_than_a_socket_address_is_a_device_error(daemon: FakeDaemon, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="File name too long"), served(daemon, tmp_path / ("x" * 120)):
        pass


def test_it_listens_on_tcp_beside_the_socket(daemon: FakeDaemon, socket_path: Path) -> None:
    port = free_port()
    with served(daemon, socket_path, listen=Endpoint("127.0.0.1", port)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/v1/status")
        assert json.load(connection.getresponse())["schema"] == "weft.status/1"
        connection.close()


def test_a_tcp_port_that_is_taken_is_a_device_error_and_leaves_no_socket(
    daemon: FakeDaemon, socket_path: Path
) -> None:
    async def start(listen: Endpoint) -> None:
        with pytest.raises(DeviceError, match="Address already in use"):
            await ApiServer(daemon, path=str(socket_path), listen=listen).start()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        asyncio.run(start(Endpoint("127.0.0.1", taken.getsockname()[1])))
    assert not socket_path.exists()


def test_it_only_reads(api: Path) -> None:
    connection = http.client.HTTPConnection("weft", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(api))
    connection.request("POST", "/v1/status", body=b"{}")
    assert connection.getresponse().status == 405
    connection.close()


# ── The pool ────────────────────────────────────────────────────────────────────────────────────────────

QUESTIONS: dict[str, dict[str, Any]] = {
    "join": {"hosts": ["192.0.2.2", "n3.example:7000"]},
    "leave": {},
    "keys": {"step": "install", "key": NEW_KEY},
}
"""One of each sort an operator may ask."""


def post(connection: http.client.HTTPConnection, what: str, body: bytes) -> tuple[int, Any]:
    """The status and the JSON of the answer."""
    connection.request("POST", f"/v1/{what}", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def post_locally(path: Path, what: str, body: bytes) -> tuple[int, Any]:
    """As `post`, over the Unix socket."""
    connection = http.client.HTTPConnection("weft", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    try:
        return post(connection, what, body)
    finally:
        connection.close()


@pytest.mark.usefixtures("pool")
def test_members_are_a_list_with_exactly_the_contracts_keys(api: Path) -> None:
    members = Client(str(api)).ask("members")
    assert {frozenset(member) for member in members} == {
        frozenset({"name", "address", "state", "incarnation", "tags"})
    }
    assert members[2] == {
        "name": "db",
        "address": "192.0.2.9:7946",
        "state": "alive",
        "incarnation": 1,
        "tags": {"role": "db"},
    }


@pytest.mark.usefixtures("pool")
def test_status_tells_of_the_pool_where_there_is_one(api: Path) -> None:
    gossip = Client(str(api)).ask("status")["gossip"]
    assert gossip.keys() == {
        *("address", "encrypted", "members", "health", "has_left", "refused"),
        *("records", "records_refused"),
    }
    assert gossip["refused"] == {"MALFORMED": 12, "WRONG_KEY": 3}


def test_what_is_asked_of_the_pool_reaches_it_and_its_answer_comes_back(pool: FakePool, api: Path) -> None:
    pool.absent = ("n3.example:7000",)
    answers = {what: Client(str(api)).tell(what, asked, timeout=10) for what, asked in QUESTIONS.items()}
    assert pool.asked == [("join", "192.0.2.2", "n3.example:7000"), ("leave",), ("keys", "install", NEW_KEY)]
    assert answers["join"] == [
        {"host": "192.0.2.2", "joined": True, "why": ""},
        {"host": "n3.example:7000", "joined": False, "why": "no answer"},
    ]
    assert answers["leave"] == {"left": True}
    assert answers["keys"] == plain(KEY_LIST)


@pytest.mark.parametrize("what", QUESTIONS)
def test_what_changes_the_pool_is_not_asked_over_tcp(
    pool: FakePool, daemon: FakeDaemon, socket_path: Path, what: str
) -> None:
    port = free_port()
    with served(daemon, socket_path, listen=Endpoint("127.0.0.1", port)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        status, answer = post(connection, what, json.dumps(QUESTIONS[what]).encode())
        assert (status, answer["schema"]) == (403, "weft.error/1")
        assert answer["data"]["error"] == "this address only shows"
        connection.request("GET", "/v1/members")
        assert json.load(connection.getresponse())["schema"] == "weft.members/1"
        connection.close()
    assert pool.asked == []


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("join", b""),
        ("join", b"{"),
        ("join", b"[]"),
        ("join", b"null"),
        ("join", b'{"hosts": "192.0.2.2"}'),
        ("join", b'{"hosts": [7]}'),
        ("keys", b"{}"),
        ("keys", b'"list"'),
    ],
)
def test_what_is_no_question_is_answered_400_and_not_passed_on(
    pool: FakePool, api: Path, what: str, body: bytes
) -> None:
    status, answer = post_locally(api, what, body)
    assert (status, answer["schema"]) == (400, "weft.error/1")
    assert pool.asked == []


@pytest.mark.parametrize("what", QUESTIONS)
def test_what_the_pool_refuses_is_told_in_its_words(pool: FakePool, api: Path, what: str) -> None:
    pool.refusal = MembershipError("this pool will not")
    with pytest.raises(Failure, match="this pool will not") as caught:
        Client(str(api)).tell(what, QUESTIONS[what], timeout=10)
    assert caught.value.code is ExitCode.CHECK_FAILED


@pytest.mark.parametrize("what", ["members", *QUESTIONS])
def test_without_gossip_there_is_no_pool_to_ask(api: Path, what: str) -> None:
    client = Client(str(api))
    with pytest.raises(Failure, match="gossip is off") as caught:
        client.ask(what) if what == "members" else client.tell(what, QUESTIONS[what], timeout=10)
    assert caught.value.code is ExitCode.NO_SUCH_OBJECT
    assert "--join" in caught.value.advice


def test_metrics_of_the_pool_are_there_where_there_is_one(daemon: FakeDaemon, socket_path: Path) -> None:
    with served(daemon, socket_path):
        assert b"weft_members" not in curl(socket_path, "/metrics")[2]
    daemon.pool = FakePool()
    with served(daemon, socket_path):
        told = curl(socket_path, "/metrics")[2].decode()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
    }
    states = {key[1]: value for key, value in samples.items() if key[0] == "weft_members"}
    assert states == {"alive": 2, "suspect": 0, "dead": 1, "left": 1}
    refused = {key[1]: value for key, value in samples.items() if key[0] == "weft_gossip_refused_total"}
    assert refused == {reason.name: 0 for reason in Refusal} | {"MALFORMED": 12, "WRONG_KEY": 3}
    assert samples[("weft_gossip_health",)] == 1
    assert [samples["weft_loop_lag_seconds", share] for share in ("0.5", "0.99", "1")] == [0.001, 0.02, 0.5]


# ── Strangers ───────────────────────────────────────────────────────────────────────────────────────────

CLOSE = b"Connection: close\r\n"
JOIN = b"POST /v1/join HTTP/1.1\r\n" + CLOSE
NONSENSE = {
    "a line too long": b"GET /" + 9000 * b"a" + b" HTTP/1.1\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\r\n\r\n",
    "headers by the hundred": b"GET /healthz HTTP/1.1\r\n" + 300 * b"a: b\r\n" + b"\r\n",
    "no chunk": JOIN + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n\r\n",
    "no gzip": JOIN + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde",
    "no charset": JOIN + b"Content-Type: text/plain; charset=none\r\nContent-Length: 2\r\n\r\n{}",
    "no end of brackets": JOIN + b"Content-Length: 100000\r\n\r\n" + 100_000 * b"[",
    "no version": b"GET /metrics HTTP/1.1\r\n"
    + CLOSE
    + b"Accept: application/openmetrics-text;version=a\r\n\r\n",
}


@pytest.fixture(params=["unix", "tcp"])
def stranger(
    request: pytest.FixtureRequest, daemon: FakeDaemon, socket_path: Path
) -> Iterator[Callable[[], socket.socket]]:
    """Connects to a daemon, one way or the other."""
    port = free_port()

    def connect() -> socket.socket:
        if request.param == "tcp":
            return socket.create_connection(("127.0.0.1", port), 10)
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(10)
        stream.connect(str(socket_path))
        return stream

    with served(daemon, socket_path, listen=Endpoint("127.0.0.1", port)):
        yield connect


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize("what", NONSENSE)
def test_what_is_no_request_is_answered_and_leaves_no_more_than_a_line_for_who_debugs(
    stranger: Callable[[], socket.socket], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with stranger() as stream:
        stream.sendall(NONSENSE[what])
        answer = b"".join(iter(partial(stream.recv, 4096), b""))
        assert int(answer.split()[1]) in (200, 400, 403)
    expect_no_more_than_a_line(caplog)


def expect_no_more_than_a_line(caplog: pytest.LogCaptureFixture) -> None:
    told = [record for record in caplog.records if record.name != "asyncio"]
    assert len(told) <= 1
    assert all(record.levelno == logging.DEBUG and not record.exc_info for record in told)
    assert all("\n" not in record.getMessage() for record in told)


def test_who_asks_to_watch_and_goes_at_once_leaves_nothing_in_the_log(
    daemon: FakeDaemon, socket_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def serve_and_leave() -> None:
        server = ApiServer(daemon, path=str(socket_path))
        await server.start()
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(socket_path))
            stream.sendall(b"GET /v1/watch HTTP/1.1\r\nHost: weft\r\n\r\n")
        await asyncio.to_thread(Client(str(socket_path)).ask, "status")
        await server.close()

    asyncio.run(serve_and_leave())
    expect_no_more_than_a_line(caplog)


def test_what_the_daemon_gets_wrong_is_told_with_its_traceback(
    daemon: FakeDaemon, api: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(daemon, "loop_lag", fail)
    assert curl(api, "/metrics")[0] == 500
    assert "a mistake of ours" in caplog.text


def test_callers_over_tcp_are_few_and_the_unix_socket_is_not_theirs(
    daemon: FakeDaemon, socket_path: Path
) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())
    with served(daemon, socket_path, listen=endpoint), ExitStack() as stack:

        def call() -> socket.socket:
            return stack.enter_context(socket.create_connection((endpoint.host, endpoint.port), 10))

        heard = [call() for _ in range(CALLERS_MAX)]
        for _ in range(20):
            assert is_hung_up(call())
        assert not any(is_hung_up(each, patience_s=0.001) for each in heard)
        assert Client(str(socket_path)).ask("status")["node"] == "n1"
        heard.pop().close()
        eventually(lambda: not is_hung_up(call(), patience_s=0.2))


def is_hung_up(stream: socket.socket, *, patience_s: float = 10.0) -> bool:
    stream.settimeout(patience_s)
    try:
        return not stream.recv(1)
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize("sent", [b"", b"GET /v1/status HTTP/1.1\r\nHost: we"])
def test_who_sends_no_whole_request_is_not_waited_for_and_who_watches_is_left_to_it(
    daemon: FakeDaemon, socket_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(api_module, "REQUEST_SECONDS", 0.2)
    port = free_port()
    with served(daemon, socket_path, listen=Endpoint("127.0.0.1", port)):
        events = Client(str(socket_path)).watch()
        next(events)
        with socket.create_connection(("127.0.0.1", port), 10) as stream:
            stream.sendall(sent)
            assert is_hung_up(stream)
        assert daemon.watches_open == 1
        events.close()  # type: ignore[attr-defined]


def test_it_runs_on_uvloop_too(daemon: FakeDaemon, socket_path: Path) -> None:
    async def serve_and_ask() -> Any:
        server = ApiServer(daemon, path=str(socket_path))
        await server.start()
        try:
            return await asyncio.to_thread(Client(str(socket_path)).ask, "status")
        finally:
            await server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(serve_and_ask())["node"] == "n1"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])
