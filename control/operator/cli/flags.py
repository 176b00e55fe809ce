"""The configuration's flags, one for each key that has one, for every command that reads it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar, get_origin

import click

from control.operator.config import FLAGS
from control.operator.schema import TABLES

Command = TypeVar("Command", bound=Callable[..., Any])


def config_options(*, without: Collection[str] = ()) -> Callable[[Command], Command]:
    """`--config` and the flags, all of them text: `config.load` says what is wrong with any of them."""

    def decorate(command: Command) -> Command:
        for flag, (table, key) in reversed(list(FLAGS.items())):
            if flag not in without:
                command = _option(flag, table, key)(command)
        return click.option(
            "--config", "path", metavar="FILE", envvar="WEFT_CONFIG", help="The TOML file; also WEFT_CONFIG."
        )(command)

    return decorate


def _option(flag: str, table: str, key: str) -> Callable[[Command], Command]:
    field = TABLES[table].model_fields[key]
    is_list = get_origin(field.annotation) is tuple
    repeat = "  Repeatable." if is_list else ""
    return click.option(f"--{flag}", metavar="…", multiple=is_list, help=f"{field.description}{repeat}")
