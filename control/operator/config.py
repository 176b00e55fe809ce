"""Reads the configuration: a file, `WEFT_…` variables and flags become one frozen `Config`.

    default  <  file  <  variable  <  flag

The four are laid over one another as plain values, each remembering where it came from, and only the
result is checked; so every problem is reported together, at the place the operator wrote it.  A variable
or a flag is text: it is turned into a number or a list here, and if it cannot be, it stays text and the
check says what was expected.

Read first: `schema` (the keys), then `checks` (keys that contradict each other), then `validation`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

from control.operator.checks import incomplete, unsupported
from control.operator.fields import Range, found
from control.operator.keyring import mistake
from control.operator.net_conf import read_net_conf
from control.operator.problems import DEFAULT, Finding, Origin, dotted, problem
from control.operator.schema import (
    TABLES,
    ApiConfig,
    Config,
    Encap,
    Engine,
    GossipConfig,
    Mode,
    NetworkConfig,
    NodeConfig,
    OffloadConfig,
    PeerConfig,
    Strictness,
    Switch,
    default_bind,
)
from control.operator.toml_lines import TomlPath, key_lines
from control.operator.validation import validate
from overlay.addr import parse_ip
from overlay.errors import ConfigError, Problem

__all__ = [
    "ApiConfig",
    "Config",
    "Encap",
    "Engine",
    "GossipConfig",
    "Mode",
    "NetworkConfig",
    "NodeConfig",
    "OffloadConfig",
    "PeerConfig",
    "Strictness",
    "Switch",
    "as_plain",
    "check_complete",
    "check_supported",
    "differences",
    "keys",
    "load",
    "reload",
]

Document = dict[str, Any]

FLAGS: Mapping[str, tuple[str, str]] = {
    "name": ("node", "name"),
    "underlay": ("node", "underlay"),
    "engine": ("node", "engine"),
    "workers": ("node", "workers"),
    "socket": ("node", "socket"),
    "state-dir": ("node", "state_dir"),
    "log": ("node", "log"),
    "mode": ("network", "mode"),
    "encap": ("network", "encap"),
    "vni": ("network", "vni"),
    "port": ("network", "port"),
    "device": ("network", "device"),
    "address": ("network", "address"),
    "mtu": ("network", "mtu"),
    "network": ("network", "network"),
    "subnet": ("network", "subnet"),
    "peer": ("network", "peers"),
    "gossip-bind": ("gossip", "bind"),
    "join": ("gossip", "join"),
    "keyring": ("gossip", "keyring"),
}
"""Flag → table and key."""

NET_CONF_KEYS = ("network", "subnet_len", "subnet_min", "subnet_max", "encap", "vni", "port", "mtu")
"""What Flannel's net-conf.json may say."""

_TOML_PLACE = re.compile(r"\s*\(at (?:line (\d+), column \d+|end of document)\)$")
_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}


@dataclass(frozen=True, slots=True)
class Key:
    """One key, and the other two ways to set it.

    Attributes:
        flag: Without its dashes, or None.
        variables: Looked at in this order; the first that is set and not empty counts.
    """

    table: str
    name: str
    flag: str | None
    variables: tuple[str, ...]

    @property
    def path(self) -> TomlPath:
        """Its place in a document of one network."""
        return ("network", 0, self.name) if self.table == "network" else (self.table, self.name)


@cache
def keys() -> tuple[Key, ...]:
    """Every key of the configuration, in the order of the file."""
    flags = {place: flag for flag, place in FLAGS.items()}
    return tuple(
        Key(table, name, flag, tuple(_variables(table, name, flag)))
        for table, model in TABLES.items()
        for name in model.model_fields
        for flag in [flags.get((table, name))]
    )


def load(path: str | Path | None, flags: Mapping[str, object], environ: Mapping[str, str]) -> Config:
    """The effective configuration.

    Args:
        path: The TOML file, or None for variables and flags alone.
        flags: By name, dashes or underscores alike; None and () mean not given.
        environ: The process's environment.

    Raises:
        ConfigError: With every problem found.
    """
    layers = _Layers()
    if path is not None:
        layers.add_file(Path(path))
    layers.add_variables(environ)
    layers.add_flags(flags)
    layers.add_defaults()
    config, findings = validate(layers.document, layers.unknown)
    problems = sorted(
        {problem(finding, layers.origins): None for finding in [*layers.findings, *findings]},
        key=lambda each: each.line or 0,
    )
    if problems or config is None:
        raise ConfigError(*problems)
    origins = {dotted(at): layers.origins.get(at, DEFAULT).text for at, _ in _leaves(as_plain(config))}
    config.remember(origins, (path, dict(flags), dict(environ)), tuple(layers.notes))
    return config


def reload(config: Config) -> Config:
    """The same file, flags and variables, read again.

    Raises:
        ConfigError: As `load`; the configuration in force is not touched.
    """
    return load(*config.sources)


def differences(old: Config, new: Config) -> tuple[str, ...]:
    """The keys (`network[0].peers`) whose values differ, as `old` numbers its networks.

    Networks are the same by their name; of one that only one of the two has, nothing is said.
    """
    ours, theirs = as_plain(old), as_plain(new)
    named = {network["name"]: network for network in theirs["network"]}
    theirs["network"] = [named.get(network["name"], network) for network in ours["network"]]
    before, after = dict(_leaves(ours)), dict(_leaves(theirs))
    changed = [at for at in {**before, **after} if before.get(at) != after.get(at)]
    return tuple(dotted(at) for at in changed)


def check_complete(config: Config) -> None:
    """Passes if nothing is left for another flag or variable to say.

    Raises:
        ConfigError: Naming each key that is wanted.
    """
    _raise(incomplete(config))


def check_supported(config: Config) -> None:
    """Passes if this build, run by this user, can run the configuration, which is complete.

    Raises:
        ConfigError: Naming each key that is wanted, and each part it cannot run.
    """
    _raise([*incomplete(config), *unsupported(config)])


def _raise(findings: Iterable[Finding]) -> None:
    problems = [Problem(dotted(each.at), each.why, None, each.suggestion) for each in findings]
    if problems:
        raise ConfigError(*problems)


def as_plain(config: Config) -> Document:
    """The configuration as a TOML or JSON document; keys without a value are left out."""
    return config.model_dump(mode="json", by_alias=True, exclude_none=True)


class _Layers:
    """The document as it grows, where each value came from, and what was wrong before any check.

    Attributes:
        unknown: Keys that a file would have said, had it been right.
        notes: What is right, and may surprise.
    """

    def __init__(self) -> None:
        self.document: Document = {}
        self.origins: dict[TomlPath, Origin] = {}
        self.findings: list[Finding] = []
        self.unknown: set[TomlPath] = set()
        self.notes: list[str] = []

    def add_file(self, path: Path) -> None:
        text = _read(path)
        self.document = _parse(path, text)
        for at, line in key_lines(text).items():
            self.origins[at] = Origin(f"{path}:{line}", line)

    def add_variables(self, environ: Mapping[str, str]) -> None:
        for key in keys():
            variable = next((name for name in key.variables if environ.get(name)), None)
            if variable is not None:
                self._lay(key, environ[variable], Origin(variable))

    def add_flags(self, flags: Mapping[str, object]) -> None:
        given = {name.replace("_", "-"): value for name, value in flags.items() if value not in (None, ())}
        for key in keys():
            if key.flag in given:
                self._lay(key, given.pop(key.flag), Origin(f"--{key.flag}"))
        if given:
            raise TypeError(f"no such flags: {', '.join(given)}")

    def _lay(self, key: Key, value: object, origin: Origin) -> None:
        """Over what is there.  A network's key needs a network to belong to: the only one, or a new one."""
        if key.table == "network":
            networks = self.document.setdefault("network", [{}])
            if not isinstance(networks, list) or not networks or not isinstance(networks[0], dict):
                return  # the file's own problem, reported as such
            if len(networks) > 1:
                why = f"expected one network, found {len(networks)} in the file: set {key.name} there"
                self.origins[(origin.text,)] = origin
                self.findings.append(Finding((origin.text,), why))
                return
            table = networks[0]
        else:
            table = self.document.setdefault(key.table, {})
            if not isinstance(table, dict):
                return
        table[key.name] = _typed(value, TABLES[key.table], key.name)
        self._forget_origins(key.path)
        self.origins[key.path] = origin

    def _forget_origins(self, at: TomlPath) -> None:
        """The value written there before is gone, its items with it."""
        for path in [path for path in self.origins if path[: len(at)] == at]:
            del self.origins[path]

    def add_defaults(self) -> None:
        """Those that depend on the machine or on another file; `validation` and `schema` have the rest."""
        node = self.document.setdefault("node", {})
        if isinstance(node, dict):
            node.setdefault("name", os.uname().nodename)
        gossip = self.document.get("gossip", {})
        if ("gossip",) not in self.origins and gossip and not {"bind", "join"} & gossip.keys():
            why = "gossip is off: expected --gossip-bind or --join with it"
            self.findings.append(Finding(("gossip", *sorted(gossip)[:1]), why))
        elif isinstance(gossip, dict):
            self._look_at_keyring(gossip.get("keyring"))
        self._add_bind()
        networks = self.document.setdefault("network", [])
        if networks == []:
            self.findings.append(Finding(("network",), "expected a [[network]] table or --vni, found none"))
        for index, network in enumerate(networks if isinstance(networks, list) else []):
            if isinstance(network, dict):
                self._add_net_conf(network, index)

    def _add_bind(self) -> None:
        """Where the underlay's addresses are written here; where they are not, the pool does the same."""
        gossip, node = self.document.get("gossip"), self.document["node"]
        if not isinstance(gossip, dict) or "bind" in gossip or not isinstance(node, dict):
            return
        try:
            written = [parse_ip(str(each)) for each in node.get("underlay", ())]
        except (ValueError, TypeError):
            return
        gossip["bind"] = str(default_bind(written))

    def _look_at_keyring(self, path: object) -> None:
        """Before a device is made for a pool that nobody could speak in."""
        if isinstance(path, str) and path and "\x00" not in path and (wrong := mistake(path)) is not None:
            self.findings.append(Finding(("gossip", "keyring"), *wrong))

    def _add_net_conf(self, network: Document, index: int) -> None:
        """What Flannel's file says, under what the operator's own does not."""
        path = network.get("net_conf")
        if not isinstance(path, str) or network.get("mode", Mode.ROUTED) != Mode.ROUTED:
            return  # a key's own problem
        network.setdefault("mode", Mode.ROUTED.value)
        here: TomlPath = ("network", index)
        conf = read_net_conf(path)
        if network.get("network", conf.keys.get("network")) != conf.keys.get("network"):
            self.findings.append(Finding((*here, "net_conf"), "expected network or net_conf, found both"))
            self._forget_net_conf(network, here)
            return
        self.findings += [Finding((*here, "net_conf"), each.why, each.suggestion) for each in conf.mistakes]
        self.notes += [f"{dotted((*here, 'net_conf'))}: {note}" for note in conf.notes]
        for key, value in conf.keys.items():
            if key not in network:
                network[key] = value
                self.origins[(*here, key)] = Origin(path)
            elif network[key] != value:
                self.findings.append(Finding((*here, key), f"{path} says {found(value)}"))
        if conf.mistakes:
            self._forget_net_conf(network, here)

    def _forget_net_conf(self, network: Document, here: TomlPath) -> None:
        """What it does not say is not to be taken for what is so without it."""
        self.unknown |= {(*here, key) for key in NET_CONF_KEYS if key not in network}


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(Problem(str(path), f"cannot be read: {error.strerror}")) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(Problem(str(path), "expected UTF-8 text, as TOML is", line)) from None


def _parse(path: Path, text: str) -> Document:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(Problem(str(path), "arrays or tables are nested too deeply")) from None
    except ValueError as error:  # TOMLDecodeError is one, and so is an integer of 5000 digits
        place = _TOML_PLACE.search(str(error))
        line = int(place[1]) if place and place[1] else None
        why = _TOML_PLACE.sub("", str(error))
        raise ConfigError(Problem(str(path), f"not TOML: {why[:1].lower()}{why[1:]}", line)) from None


def _variables(table: str, name: str, flag: str | None) -> Iterator[str]:
    """`WEFT_` and the table and the key; for a key with a flag also `WEFT_` and the flag."""
    yield f"WEFT_{table}_{name}".upper()
    if flag is not None and f"{table}-{name}" != flag:
        yield f"WEFT_{flag.replace('-', '_')}".upper()


def _typed(value: object, model: type[Any], name: str) -> object:
    """A variable's or a flag's text as the document would hold it; what does not fit stays text."""
    field = model.model_fields[name]
    if get_origin(field.annotation) is tuple:
        items = _split(value) if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            return items
        numbers = any(isinstance(each, Range) for each in _annotations(field.annotation))
        return [_number_or_text(item) if numbers else _table_or_text(item) for item in items]
    if not isinstance(value, str):
        return value
    if field.annotation is bool:
        word = value.lower()
        return True if word in _TRUE else False if word in _FALSE else value
    if any(isinstance(each, Range) for each in [*field.metadata, *_annotations(field.annotation)]):
        return _number_or_text(value)
    return value


def _split(text: str) -> object:
    """A list written `a,b`, or as TOML writes it: `["a", "b"]`."""
    if text.lstrip().startswith("["):
        return _toml_value(text)
    return [item.strip() for item in text.split(",") if item.strip()]


def _number_or_text(item: object) -> object:
    return int(item) if isinstance(item, str) and re.fullmatch("[0-9]{1,18}", item) else item


def _table_or_text(item: object) -> object:
    """A peer of a routed network is a table: `{vtep = "192.0.2.2", subnet = "10.5.2.0/24"}`."""
    return _toml_value(item) if isinstance(item, str) and item.lstrip().startswith("{") else item


def _toml_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _annotations(annotation: object) -> Iterator[object]:
    for argument in get_args(annotation):
        yield from getattr(argument, "__metadata__", ())


def _leaves(document: Mapping[str, Any]) -> Iterator[tuple[TomlPath, object]]:
    """Every key with its value, tables opened, lists kept whole."""
    for table, content in document.items():
        for index, item in enumerate(content) if isinstance(content, list) else [(None, content)]:
            at: TomlPath = (table,) if index is None else (table, index)
            yield from (((*at, name), value) for name, value in item.items())
