"""What a node must not forget of its leases: the founder's book, and the lease it holds.

    {"schema": "weft.leases-memory/1", "networks": {"pods": {"pool": "3f…", "subnet_len": 24,
     "founders": ["n1"], "is_founder": true, "number": 2, "endpoint": "192.0.2.1:7946", "fence": "",
     "grants": [["10.5.1.0/24", "n1", "c0de…", 1, false], …], "held": ["10.5.1.0/24", "n1", "c0de…", 1]}}}

`range` stands beside them where not the whole network is leased.  Encoding and reading only.  It is on disk
before anybody hears of it; a file that cannot be read is a lost one, and a founder that lost its book grants
nothing (`leases`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

from control.membership.pack import NAME_OCTETS, U64
from control.membership.recordbody import (
    FOUNDERS_MAX,
    GRANTS_MAX,
    ID_OCTETS,
    POOL_ID_OCTETS,
    Grant,
    Holding,
    IpNetwork,
    LeaseRange,
)
from overlay.errors import MalformedError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = "weft.leases-memory/1"
MEMORY_OCTETS = 4 << 20
TEXT_MAX = 512


@dataclass(frozen=True, slots=True)
class LeaseMemory:
    """One node's memory of one network's leases.

    Attributes:
        pool_id: Which pool they are of.
        subnet_len: How it divides its network.
        founders: Who grants there: who was not told, and joined, must know it after a restart.
        is_founder: Whether the node was a founder when it wrote this: only then is there a book.
        number: The last act of the founder; the next one is greater, whatever happens.
        endpoint: Where the founder was then: a copy of its disk starts somewhere else.
        fence: Why it must grant nothing; empty: it may.
        grants: The founder's book.
        held: The lease the node has.
        within: The range that is leased of, as `founders` are remembered; None: the default.
    """

    pool_id: bytes
    subnet_len: int = 24
    founders: tuple[str, ...] = ()
    is_founder: bool = False
    number: int = 0
    endpoint: str = ""
    fence: str = ""
    grants: tuple[Grant, ...] = ()
    held: Holding | None = None
    within: LeaseRange | None = None


def encode_memory(memory: Mapping[str, LeaseMemory]) -> str:
    """The memory of every network, as JSON."""
    networks = {
        name: {
            "pool": each.pool_id.hex(),
            "subnet_len": each.subnet_len,
            "founders": list(each.founders),
            "is_founder": each.is_founder,
            "number": each.number,
            "endpoint": each.endpoint,
            "fence": each.fence,
            "grants": [
                [str(grant.subnet), grant.node, grant.weft_id, grant.number, grant.is_released]
                for grant in each.grants
            ],
            "held": [str(each.held.subnet), each.held.founder, each.held.founder_id, each.held.number]
            if each.held
            else None,
        }
        | ({"range": [str(subnet) for subnet in each.within]} if each.within else {})
        for name, each in memory.items()
    }
    return json.dumps({"schema": SCHEMA, "networks": networks}, indent=1) + "\n"


def parse_memory_untrusted(text: str) -> dict[str, LeaseMemory]:
    """What somebody, hopefully we, wrote down.

    Raises:
        MalformedError: It is not that.
        UnsupportedError: Of a schema we do not know.
    """
    if len(text) > MEMORY_OCTETS:
        raise MalformedError(f"leases: expected at most {MEMORY_OCTETS} octets, found {len(text)}")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise MalformedError(f"leases: expected JSON, found {text[:40]!r}") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise UnsupportedError(f"leases: expected schema {SCHEMA}, found {text[:60]!r}")
    networks = document.get("networks")
    if not isinstance(networks, dict):
        raise MalformedError(f"leases.networks: expected an object, found {networks!r:.40}")
    return {name: _memory_untrusted(each) for name, each in networks.items()}


def _memory_untrusted(told: Any) -> LeaseMemory:
    if not isinstance(told, dict):
        raise MalformedError(f"leases: expected an object, found {told!r:.40}")
    grants = told.get("grants")
    if not isinstance(grants, list) or len(grants) > GRANTS_MAX:
        raise MalformedError(f"leases.grants: expected a list of at most {GRANTS_MAX}, found {grants!r:.40}")
    held = told.get("held")
    return LeaseMemory(
        pool_id=_pool_id_untrusted(told.get("pool")),
        subnet_len=_number_untrusted(told.get("subnet_len")),
        founders=_names_untrusted(told.get("founders")),
        is_founder=_truth_untrusted(told.get("is_founder")),
        number=_number_untrusted(told.get("number")),
        endpoint=_text_untrusted(told.get("endpoint"), TEXT_MAX),
        fence=_text_untrusted(told.get("fence"), TEXT_MAX),
        grants=tuple(_grant_untrusted(each) for each in grants),
        held=_holding_untrusted(held) if held is not None else None,
        within=_range_untrusted(told["range"]) if "range" in told else None,
    )


def _range_untrusted(value: Any) -> LeaseRange:
    first, last = _items_untrusted(value, 2)
    return _subnet_untrusted(first), _subnet_untrusted(last)


def _pool_id_untrusted(value: Any) -> bytes:
    try:
        pool_id = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        pool_id = b""
    if len(pool_id) != POOL_ID_OCTETS:
        raise MalformedError(f"leases.pool: expected {POOL_ID_OCTETS} octets in hex, found {value!r:.60}")
    return pool_id


def _names_untrusted(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > FOUNDERS_MAX:
        raise MalformedError(f"leases.founders: expected names, found {value!r:.60}")
    return tuple(_text_untrusted(each, NAME_OCTETS) for each in value)


def _items_untrusted(value: Any, length: int) -> list[Any]:
    if not isinstance(value, list) or len(value) != length:
        raise MalformedError(f"leases: expected a list of {length}, found {value!r:.60}")
    return value


def _grant_untrusted(value: Any) -> Grant:
    subnet, node, weft_id, number, is_released = _items_untrusted(value, 5)
    return Grant(
        _subnet_untrusted(subnet),
        _text_untrusted(node, NAME_OCTETS),
        _text_untrusted(weft_id, ID_OCTETS),
        _number_untrusted(number),
        _truth_untrusted(is_released),
    )


def _holding_untrusted(value: Any) -> Holding:
    subnet, founder, founder_id, number = _items_untrusted(value, 4)
    return Holding(
        _subnet_untrusted(subnet),
        _text_untrusted(founder, NAME_OCTETS),
        _text_untrusted(founder_id, ID_OCTETS),
        _number_untrusted(number),
    )


def _subnet_untrusted(value: Any) -> IpNetwork:
    try:
        return ip_network(value if isinstance(value, str) else "")
    except ValueError as error:
        raise MalformedError(f"leases: {error}") from None


def _text_untrusted(value: Any, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise MalformedError(f"leases: expected a text of at most {longest}, found {value!r:.60}")
    return value


def _number_untrusted(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= U64:
        raise MalformedError(f"leases: expected a number, found {value!r:.60}")
    return value


def _truth_untrusted(value: Any) -> bool:
    if type(value) is not bool:
        raise MalformedError(f"leases: expected true or false, found {value!r:.60}")
    return value
