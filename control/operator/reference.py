"""docs/config.md, made from the types: every key, its flag, its variables, what it holds by default."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic_core import PydanticUndefined

from control.operator.config import Key, keys
from control.operator.schema import TABLES

PREFACE = """\
# Configuration

<!-- Made from control/operator/schema.py by `make docs`. -->

A TOML file, `WEFT_…` variables and flags are laid over one another: a flag beats a variable, a variable
the file, the file the default. Lists in a variable are written `a,b`, or as TOML writes them. Unknown keys
are errors. `weft config check FILE` reports every problem, `weft config show` the origin of every value.
Variables and flags of `[[network]]` set the only network, or make one where the file has none.
"""


def reference() -> str:
    """The page."""
    return "\n".join([PREFACE, *(line for name in TABLES for line in [*_table(name), ""])]).rstrip() + "\n"


def _table(name: str) -> Iterator[str]:
    model = TABLES[name]
    yield f"## `[[{name}]]`" if name == "network" else f"## `[{name}]`"
    yield ""
    yield " ".join((model.__doc__ or "").split())
    yield ""
    yield "| key | default | flag | variables | |"
    yield "|---|---|---|---|---|"
    for key in keys():
        if key.table == name:
            yield _row(key)


def _row(key: Key) -> str:
    field = TABLES[key.table].model_fields[key.name]
    default = "" if field.default in (PydanticUndefined, None, ()) else f"`{_shown(field.default)}`"
    flag = f"`--{key.flag}`" if key.flag else ""
    variables = " ".join(f"`{name}`" for name in key.variables)
    return f"| `{key.name}` | {default} | {flag} | {variables} | {field.description} |"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
