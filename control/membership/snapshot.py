"""What a member must still know after a restart: who it is, and where the others were.

    {"schema": "weft.snapshot/1", "weft_id": "3f…", "epoch": 4, "incarnation": 7, "lamport": 112,
     "endpoint": "192.0.2.1:7946", "members": [{"name": "n2", "endpoint": "192.0.2.2:7946"}, …]}

The epoch counts starts; with the weft_id it tells a node come back from a stranger with its name.  Starting
above the last incarnation and Lamport time spares the pool a round of refutations.  Encoding and reading
only: writing it to disk, in one piece, is the shell's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from control.membership.config import INCARNATION_JUMP, MEMBERS_MAX
from control.membership.member import Endpoint
from control.membership.pack import NAME_OCTETS, U64
from overlay.errors import MalformedError, UnsupportedError

if TYPE_CHECKING:
    from control.membership.serf import Serf

SCHEMA = "weft.snapshot/1"
WEFT_ID_CHARACTERS = 64
SNAPSHOT_OCTETS = 4 << 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One member's memory.

    Attributes:
        weft_id: Ours for as long as the state directory lasts.
        epoch: Which start this is, from 1.
        endpoint: Where the pool last knew us, None before the first start.
        members: Where the others were, by name.
    """

    weft_id: str
    epoch: int
    incarnation: int = 1
    lamport: int = 0
    endpoint: Endpoint | None = None
    members: tuple[tuple[str, Endpoint], ...] = ()

    def next_start(self) -> Snapshot:
        """The memory to start with: a new epoch, and an incarnation above all spoken before."""
        return replace(self, epoch=self.epoch + 1, incarnation=self.incarnation + 1)


def snapshot_of(core: Serf, weft_id: str, epoch: int) -> Snapshot:
    """What to write down now."""
    we = core.ourselves
    others = tuple(
        (member.name, member.endpoint) for member in core.members if member.is_here and member.name != we.name
    )
    return Snapshot(weft_id, epoch, we.incarnation, core.lamport, we.endpoint, others)


def encode_snapshot(snapshot: Snapshot) -> str:
    """The snapshot as JSON."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "weft_id": snapshot.weft_id,
            "epoch": snapshot.epoch,
            "incarnation": snapshot.incarnation,
            "lamport": snapshot.lamport,
            "endpoint": str(snapshot.endpoint) if snapshot.endpoint else None,
            "members": [{"name": name, "endpoint": str(endpoint)} for name, endpoint in snapshot.members],
        }
    )


def parse_snapshot_untrusted(text: str) -> Snapshot:
    """The snapshot somebody, hopefully we, wrote down.

    Raises:
        MalformedError: It is not one.
        UnsupportedError: Of a schema we do not know.
    """
    if len(text) > SNAPSHOT_OCTETS:
        raise MalformedError(f"snapshot: expected at most {SNAPSHOT_OCTETS} octets, found {len(text)}")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise MalformedError(f"snapshot: expected JSON, found {text[:40]!r}") from None
    if not isinstance(document, dict):
        raise MalformedError(f"snapshot: expected an object, found {type(document).__name__}")
    if document.get("schema") != SCHEMA:
        raise UnsupportedError(f"snapshot: expected schema {SCHEMA}, found {document.get('schema')!r:.40}")
    endpoint = document.get("endpoint")
    return Snapshot(
        _text_untrusted(document, "weft_id", WEFT_ID_CHARACTERS),
        _number_untrusted(document, "epoch", U64),
        _number_untrusted(document, "incarnation", INCARNATION_JUMP),
        _number_untrusted(document, "lamport", U64),
        parse_endpoint_untrusted(endpoint) if endpoint is not None else None,
        _members_untrusted(document.get("members", [])),
    )


def parse_endpoint_untrusted(text: object) -> Endpoint:
    """The endpoint written `192.0.2.1:7946` or `[2001:db8::1]:7946`.

    Raises:
        MalformedError: Not an address and a port.
    """
    host, _, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
        if port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 1 << 16:
            return Endpoint(str(address), int(port))
    except ValueError:
        pass
    raise MalformedError(f"endpoint: expected an address and a port, found {text!r:.60}")


def _members_untrusted(items: Any) -> tuple[tuple[str, Endpoint], ...]:
    if not isinstance(items, list) or len(items) > MEMBERS_MAX:
        raise MalformedError(
            f"snapshot.members: expected a list of at most {MEMBERS_MAX}, found {items!r:.40}"
        )
    members = []
    for item in items:
        if not isinstance(item, dict):
            raise MalformedError(f"snapshot.members: expected an object, found {item!r:.40}")
        members.append(
            (_text_untrusted(item, "name", NAME_OCTETS), parse_endpoint_untrusted(item.get("endpoint")))
        )
    return tuple(members)


def _text_untrusted(document: dict[str, Any], key: str, longest: int) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= longest or not value.isprintable():
        raise MalformedError(
            f"snapshot.{key}: expected a text of 1 to {longest} characters, found {value!r:.40}"
        )
    return value


def _number_untrusted(document: dict[str, Any], key: str, maximum: int) -> int:
    value = document.get(key)
    if type(value) is not int or not 0 <= value <= maximum:
        raise MalformedError(f"snapshot.{key}: expected 0 to {maximum}, found {value!r:.40}")
    return value
