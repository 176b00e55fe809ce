"""Writes a configuration as TOML, each value with where it came from: what `weft config show` prints.

What is written here can be read again: it is the effective configuration as a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

# Ours
ORIGIN_COLUMN = 44  # where the comments begin, as far as the values let them


def as_toml(document: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """The document, one table after the other, origins as comments."""
    tables = []
    for name, content in document.items():
        if isinstance(content, list):
            for index, item in enumerate(content):
                tables.append([f"[[{name}]]", *_pairs(item, f"{name}[{index}]", origins)])
        else:
            tables.append([f"[{name}]", *_pairs(content, name, origins)])
    return "\n\n".join("\n".join(lines) for lines in tables if len(lines) > 1) + "\n"


def _pairs(table: Mapping[str, Any], at: str, origins: Mapping[str, str]) -> Iterator[str]:
    for key, value in table.items():
        yield f"{key} = {_value(value)}".ljust(ORIGIN_COLUMN) + f" # {origins.get(f'{at}.{key}', 'default')}"


def _value(value: object) -> str:
    """The value inline.  JSON's strings are TOML's basic strings, except for DEL (TOML 1.0, String)."""
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_value(item)}' for key, item in value.items())} }}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
