"""Which of our networks another node shares, told from what both say of them; and what is wrong there.

On the wire a network is its encapsulation, its VNI and its port; its name is the operator's, and each node
may have its own.  So networks are paired by what is on the wire first.  What is left over and still seems to
be meant for one another - the same VNI on another port, the same overlay in another encapsulation, the same
name with another VNI - is a mistake in somebody's configuration: both nodes come to the same conclusion, and
both name it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from control.membership.recordbody import NetworkRecord
from overlay.addr import NetworkId
from overlay.route import IpNetwork


class NetworkKind(Protocol):
    """A network of ours, as far as it must agree with another's."""

    @property
    def id(self) -> NetworkId: ...
    @property
    def mode(self) -> str: ...
    @property
    def encap(self) -> str: ...
    @property
    def vni(self) -> int | None: ...
    @property
    def port(self) -> int: ...
    @property
    def network(self) -> IpNetwork | None: ...


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something between us and others that the operator must know, and what mends it."""

    problem: str
    fix: str


@dataclass(frozen=True, slots=True)
class Shared:
    """A network of ours and what the other node says of the same one."""

    network: NetworkId
    theirs: NetworkRecord


def pair(
    ours: Sequence[NetworkKind], theirs: Sequence[NetworkRecord], node: str
) -> tuple[list[Shared], list[Trouble]]:
    """The networks we share with a node, and what is wrong with those we seem to."""
    shared: list[Shared] = []
    troubles: list[Trouble] = []
    mine, other = list(ours), list(theirs)
    for own, their in _take_pairs(mine, other, _is_the_same):
        shared.append(Shared(own.id, their))
    for own, their in _take_pairs(mine, other, _is_on_another_port):
        # Each sends to the port the other receives on, so it works; a kernel VTEP has one port for all.
        shared.append(Shared(own.id, their))
        troubles.append(
            Trouble(
                f"network {own.id}: port {own.port} here, {their.port} on {node}",
                f"port = {min(own.port, their.port)} on both: stock VTEPs know one port for all",
            )
        )
    for own, their in _take_pairs(mine, other, _is_the_same_overlay):
        troubles.append(_mismatch(own, their, node, "give one another `network`"))
    for own, their in _take_pairs(mine, other, _has_the_same_name):
        troubles.append(_mismatch(own, their, node, "give one another name"))
    return shared, troubles


def _take_pairs(
    ours: list[NetworkKind], theirs: list[NetworkRecord], belong: Callable[[NetworkKind, NetworkRecord], bool]
) -> Iterator[tuple[NetworkKind, NetworkRecord]]:
    """Pairs that belong together, each taken out of both lists."""
    for own in tuple(ours):
        found = next((their for their in theirs if belong(own, their)), None)
        if found is not None:
            ours.remove(own)
            theirs.remove(found)
            yield own, found


def _is_the_same(own: NetworkKind, their: NetworkRecord) -> bool:
    return _is_on_another_port(own, their) and own.port == their.port


def _is_on_another_port(own: NetworkKind, their: NetworkRecord) -> bool:
    # Without a VNI the port is all there is to tell two networks apart.
    return (own.mode, own.encap, own.vni) == (their.mode, their.encap, their.vni) and (
        own.vni is not None or own.port == their.port
    )


def _is_the_same_overlay(own: NetworkKind, their: NetworkRecord) -> bool:
    return own.network is not None and own.network == their.network


def _has_the_same_name(own: NetworkKind, their: NetworkRecord) -> bool:
    return own.id == their.name


def _mismatch(own: NetworkKind, their: NetworkRecord, node: str, otherwise: str) -> Trouble:
    for key in ("mode", "encap", "vni", "port"):
        here, there = getattr(own, key), getattr(their, key)
        if here != there:
            return Trouble(
                f"network {own.id}: {_WORDS[key]} {here} here, {there} on {node}",
                f"make `{key}` of [[network]] {own.id} the same on both, or {otherwise}",
            )
    raise ValueError(f"expected networks that differ, found {own.id} twice")


_WORDS = {"mode": "mode", "encap": "encapsulation", "vni": "VNI", "port": "port"}
