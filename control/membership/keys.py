"""The pool's keys as they are written: one in base64, a keyring as a JSON list of them, the first encrypts.

    ["HvY8ubRZMgafUOWvrOadwOckVa1wN3QWAo46FVKbVN8=", "…"]          keys as `serf keygen` makes them

Writing and reading only, and nothing is sealed here: a keyring can be looked at without the ciphers
(`secure`).  What is wrong with a key is told, never the key.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING

from overlay.errors import MalformedError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

# From memberlist
KEY_OCTETS = (16, 24, 32)

# Ours
KEYS_MAX = 16
EXPECTED = "expected a JSON list of base64 keys"


def parse_key_untrusted(text: str) -> bytes:
    """The key a keyring file or an operator writes in base64.

    Raises:
        MalformedError: Not base64, or not the length of an AES key.
    """
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError("key: expected base64") from None
    if len(key) not in KEY_OCTETS:
        raise MalformedError(f"key: expected 16, 24 or 32 octets, found {len(key)}")
    return key


def format_key(key: bytes) -> str:
    """The key as keyring files and operators write it."""
    return base64.b64encode(key).decode()


def parse_keyring_untrusted(text: str) -> tuple[bytes, ...]:
    """The keys in a keyring's text, the encrypting one first; at least one.

    Raises:
        MalformedError: No list of keys.
        UnsupportedError: More keys than a pool has.
    """
    if not text.strip():
        raise MalformedError(f"{EXPECTED}, found nothing in it")
    try:
        keys = json.loads(text)
    except (ValueError, RecursionError):  # its own words may quote a key
        found = "a key without its list" if _is_key(text.strip()) else "no JSON"
        raise MalformedError(f"{EXPECTED}, found {found}") from None
    if not isinstance(keys, list):
        found = "a key without its list" if isinstance(keys, str) else "other JSON"
        raise MalformedError(f"{EXPECTED}, found {found}")
    if not keys:
        raise MalformedError(f"{EXPECTED}, found an empty one")
    if len(keys) > KEYS_MAX:
        raise UnsupportedError(f"keyring: expected at most {KEYS_MAX} keys, found {len(keys)}")
    return tuple(_item_untrusted(number, key) for number, key in enumerate(keys, 1))


def format_keyring(keys: Iterable[bytes]) -> str:
    """A keyring's text, as Serf writes it."""
    return json.dumps([format_key(key) for key in keys], indent=2) + "\n"


def _item_untrusted(number: int, key: object) -> bytes:
    try:
        return parse_key_untrusted(key if isinstance(key, str) else "?")
    except MalformedError as error:
        raise MalformedError(f"{error}, in the list's item {number}") from None


def _is_key(text: str) -> bool:
    try:
        parse_key_untrusted(text)
    except MalformedError:
        return False
    return True
