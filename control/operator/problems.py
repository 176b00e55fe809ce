"""Says what is wrong with a configuration in the operator's words, at the place the operator wrote it.

pydantic names a problem by its own type (`extra_forbidden`) and its place by keys and indexes.  Here
those become a sentence of the form *expected this, found that*, a suggestion where a near name exists,
and the line of the file, the flag or the variable the value came from.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from control.operator.fields import found
from control.operator.schema import TABLES, Config
from control.operator.toml_lines import TomlPath
from overlay.errors import Problem


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem and its place in the document, before anybody has looked up where that was written."""

    at: TomlPath
    why: str
    suggestion: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value is from.  `line` and `file` are set for the file only, `text` always."""

    text: str
    line: int | None = None


DEFAULT = Origin("default")


def dotted(path: TomlPath) -> str:
    """`network[0].peers[1].vtep`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def origin_of(path: TomlPath, origins: Mapping[TomlPath, Origin]) -> Origin:
    """The origin of the place, or of the nearest thing around it that was written."""
    for length in range(len(path), 0, -1):
        if path[:length] in origins:
            return origins[path[:length]]
    return DEFAULT


def problem(finding: Finding, origins: Mapping[TomlPath, Origin]) -> Problem:
    """The finding where the operator will look for it: a line and a key, a flag, or a variable."""
    origin = origin_of(finding.at, origins)
    given = origin.line is None and origin is not DEFAULT
    path = origin.text if given else dotted(finding.at)
    return Problem(path, finding.why, origin.line, finding.suggestion)


def finding_of(error: ErrorDetails) -> Finding:
    """One of pydantic's errors as a sentence."""
    at: TomlPath = error["loc"]
    value = error["input"]
    match error["type"]:
        case "extra_forbidden":
            return Finding(at, "unknown key", _nearest_key(at))
        case "missing":
            return Finding(at, "expected this key, found nothing")
        case "value_error":
            return Finding(at, str(error["ctx"]["error"]))
        case "enum":
            allowed = _allowed(at)
            choices = ", ".join(allowed)
            return Finding(at, f"expected one of {choices}, found {found(value)}", _nearest(value, allowed))
        case "bool_type":
            return Finding(at, f"expected true or false, found {found(value)}")
        case "string_type":
            return Finding(at, f"expected a string, found {found(value)}")
        case "tuple_type" if at == ("network",):
            return Finding(at, "expected tables written [[network]], with two brackets")
        case "tuple_type":
            return Finding(at, f"expected a list, found {found(value)}")
        case "model_type":
            return Finding(at, f"expected a table, found {found(value)}")
        case _:
            return Finding(at, f"{error['msg'].lower()}, found {found(value)}")


def _nearest_key(at: TomlPath) -> str | None:
    """A key of the same table that looks like it, else the table that has a key of exactly this name."""
    name = str(at[-1])
    siblings = _keys(_model_at(at[:-1]))
    if near := _nearest(name, siblings):
        return near
    homes = [table for table, model in TABLES.items() if name in model.model_fields]
    return f"{homes[0]}.{name}" if homes else None


def _nearest(value: object, names: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(str(value), names, n=1)), None)


def _keys(model: type[BaseModel] | None) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _allowed(at: TomlPath) -> list[str]:
    """The values of the closed set this key holds."""
    model = _model_at(at[:-1])
    annotation: object = model.model_fields[str(at[-1])].annotation if model else None
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(member.value) for member in annotation]
    return []


def _model_at(path: TomlPath) -> type[BaseModel] | None:
    """The table's type; indexes do not matter, every item of an array has the same."""
    model: type[BaseModel] | None = Config
    for step in path:
        if isinstance(step, str) and model is not None:
            fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
            model = next(_models_in(fields.get(step)), None)
    return model


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
