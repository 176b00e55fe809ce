"""Serf's tags in a member's meta: octet 255, then a msgpack map of texts, 512 octets at most together.

    ff  82  a7 "weft_id" a4 "c0de"  a2 "dc" a2 "b1"

Tags named `weft_*` are ours and make a member a peer.  A meta that is not Serf's (memberlist carries any
octets there) is a member without tags, not an error: it was somebody else's to write.
"""

from __future__ import annotations

from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from control.membership.pack import pack, text_untrusted, unpack_untrusted
from overlay.errors import MalformedError, MembershipError, WireError

if TYPE_CHECKING:
    from collections.abc import Mapping

# From Serf
TAG_MAGIC = 255
META_OCTETS = 512

# Ours
PEER_PREFIX = "weft_"
WEFT_ID = "weft_id"
WEFT_EPOCH = "weft_epoch"


def encode_tags(tags: Mapping[str, str]) -> bytes:
    """The meta carrying these tags.

    Raises:
        MembershipError: They do not fit.
    """
    meta = bytes((TAG_MAGIC,)) + pack(dict(sorted(tags.items())))
    if len(meta) > META_OCTETS:
        raise MembershipError(f"tags: expected at most {META_OCTETS} octets encoded, found {len(meta)}")
    return meta


def parse_tags_untrusted(meta: bytes) -> dict[str, str]:
    """The tags in a meta.

    Raises:
        MalformedError: Not a meta Serf would have written.
    """
    if not meta or meta[0] != TAG_MAGIC or len(meta) > META_OCTETS:
        raise MalformedError(f"meta: expected octet {TAG_MAGIC} and a map of tags, found {meta[:8]!r}")
    tags = unpack_untrusted(meta[1:], "meta")
    if not isinstance(tags, dict):
        raise MalformedError(f"meta: expected a map of tags, found {type(tags).__name__}")
    return {text_untrusted(key, "tag"): text_untrusted(value, "tag") for key, value in tags.items()}


@lru_cache(maxsize=8192)
def tags_of(meta: bytes) -> Mapping[str, str]:
    """The tags in a meta, none if it is not Serf's."""
    try:
        return MappingProxyType(parse_tags_untrusted(meta))
    except WireError:
        return MappingProxyType({})


@lru_cache(maxsize=8192)
def is_peer_meta(meta: bytes) -> bool:
    """Whether the meta carries a `weft_*` tag."""
    return any(tag.startswith(PEER_PREFIX) for tag in tags_of(meta))


def identity_of(meta: bytes) -> tuple[str, int]:
    """The (weft_id, epoch) a meta claims; ("", 0) for a member that is no peer."""
    tags = tags_of(meta)
    epoch = tags.get(WEFT_EPOCH, "0")
    return tags.get(WEFT_ID, ""), int(epoch) if epoch.isascii() and epoch.isdecimal() and len(
        epoch
    ) < 20 else 0
