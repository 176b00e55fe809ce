"""msgpack as memberlist and Serf write it: the old specification, maps keyed by Go's field names.

    map  { "SeqNo": 7, "Node": "n1" }   octet strings and texts are both `raw`: no bin8/16/32, no str8

Numbers come in whatever integer form their writer liked.  A reader may be told less than a writer knows, or
more: unknown keys are skipped, absent ones are zero.  Nothing a stranger packs is trusted to be what a field
should be, so fields are taken through `Fields`, which raises `MalformedError` and nothing else.

Heads up: read the msgpack specification's "old spec" notes (raw family) before changing this file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack

from overlay.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import Mapping

# From msgpack: what its reader raises, TypeError for a key that cannot be hashed
UNPACK_ERRORS = (ValueError, TypeError, msgpack.UnpackException)

# Ours
DEPTH_MAX = 16  # a stock agent's push-pull nests 5 deep; limits below 6 refuse it
COLLECTION_MAX = 1 << 16  # entries of one map or list; Serf's event buffer has 512
NAME_OCTETS = 128  # Serf's own limit
TEXT_OCTETS = 4096
U16, U32, U64 = (1 << 16) - 1, (1 << 32) - 1, (1 << 64) - 1


def pack(value: object) -> bytes:
    """The value in old-specification msgpack."""
    packed: bytes = msgpack.packb(value, use_bin_type=False)
    return packed


def unpacker(limit: int) -> msgpack.Unpacker:
    """An incremental reader of at most `limit` octets, with every length bounded."""
    return msgpack.Unpacker(
        raw=True,
        strict_map_key=False,
        max_buffer_size=limit,
        max_str_len=limit,
        max_bin_len=limit,
        max_ext_len=0,
        max_array_len=COLLECTION_MAX,
        max_map_len=COLLECTION_MAX,
    )


def unpack_untrusted(data: bytes, what: str) -> Any:
    """The one value `data` holds, with raw strings as octets.

    Raises:
        MalformedError: Not msgpack, more than one value, too deep, or a length beyond the data.
    """
    try:
        value = msgpack.unpackb(
            data,
            raw=True,
            strict_map_key=False,
            max_ext_len=0,
            max_array_len=COLLECTION_MAX,
            max_map_len=COLLECTION_MAX,
        )
    except UNPACK_ERRORS as error:
        raise MalformedError(f"{what}: expected msgpack, found {type(error).__name__}") from None
    check_depth_untrusted(value, what)
    return value


def check_depth_untrusted(value: object, what: str, allowed: int = DEPTH_MAX) -> None:
    """Refuse a value nested deeper than `allowed` levels."""
    if isinstance(value, dict):
        inner: Any = value.values()
    elif isinstance(value, list):
        inner = value
    else:
        return
    if allowed == 0:
        raise MalformedError(f"{what}: expected at most {DEPTH_MAX} levels of nesting, found more")
    for item in inner:
        if isinstance(item, dict | list):
            check_depth_untrusted(item, what, allowed - 1)


def fields_untrusted(data: bytes, what: str) -> Fields:
    """The fields of the one map `data` holds."""
    return Fields(unpack_untrusted(data, what), what)


class Fields:
    """A stranger's map: each field is checked when it is taken."""

    __slots__ = ("_map", "_what")

    def __init__(self, value: object, what: str) -> None:
        if not isinstance(value, dict):
            raise MalformedError(f"{what}: expected a map, found {type(value).__name__}")
        self._map: Mapping[Any, Any] = value
        self._what = what

    def has(self, key: bytes) -> bool:
        """Whether the field is there at all, where absent is not the same as zero."""
        return self._map.get(key) is not None

    def number(self, key: bytes, maximum: int) -> int:
        """An unsigned number; absent is 0, as Go's zero value."""
        value = self._map.get(key, 0)
        if type(value) is not int or not 0 <= value <= maximum:
            raise MalformedError(f"{self._what}.{key.decode()}: expected 0 to {maximum}, found {value!r:.40}")
        return value

    def truth(self, key: bytes) -> bool:
        """A boolean; absent is False."""
        value = self._map.get(key, False)
        if type(value) is not bool:
            raise MalformedError(f"{self._what}.{key.decode()}: expected a boolean, found {value!r:.40}")
        return value

    def octets(self, key: bytes, maximum: int) -> bytes:
        """An octet string; absent and nil are empty."""
        value = self._map.get(key)
        if value is None:
            return b""
        if type(value) is not bytes or len(value) > maximum:
            raise MalformedError(
                f"{self._what}.{key.decode()}: expected at most {maximum} octets, found {value!r:.40}"
            )
        return value

    def text(self, key: bytes, maximum: int = TEXT_OCTETS) -> str:
        """A UTF-8 text; absent is empty."""
        return text_untrusted(self.octets(key, maximum), f"{self._what}.{key.decode()}")

    def name(self, key: bytes) -> str:
        """A member's name: printable, not empty."""
        return name_untrusted(self.octets(key, NAME_OCTETS), f"{self._what}.{key.decode()}")

    def items(self, key: bytes) -> list[Any]:
        """A list; absent and nil are empty."""
        value = self._map.get(key)
        if value is None:
            return []
        if type(value) is not list:
            raise MalformedError(f"{self._what}.{key.decode()}: expected a list, found {value!r:.40}")
        return value

    def mapping(self, key: bytes) -> Mapping[Any, Any]:
        """A map; absent and nil are empty."""
        value = self._map.get(key)
        if value is None:
            return {}
        if type(value) is not dict:
            raise MalformedError(f"{self._what}.{key.decode()}: expected a map, found {value!r:.40}")
        return value


def text_untrusted(value: object, what: str) -> str:
    """The octets as UTF-8 text."""
    if type(value) is not bytes:
        raise MalformedError(f"{what}: expected a text, found {value!r:.40}")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise MalformedError(f"{what}: expected UTF-8, found {value!r:.40}") from None


def name_untrusted(value: object, what: str) -> str:
    """The octets as a member's name: printable, for it reaches the operator's terminal; 1 to 128 octets."""
    name = text_untrusted(value, what)
    if not name or len(name) > NAME_OCTETS or not name.isprintable():
        raise MalformedError(f"{what}: expected a printable name, found {value!r:.40}")
    return name
