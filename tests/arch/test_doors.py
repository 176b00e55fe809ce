"""Every door for strangers' bytes is fuzzed, and has a property that any octets give a value or WireError.

A door is a public `*_untrusted` function or method that takes octets and is called by code which is not
itself `*_untrusted`, or by nobody yet.  Those that only doors call are reached through them.
Of the native engine every public `*_untrusted` function is one, and its targets are those in Rust.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from support.source import ROOT, Source, sources

SUFFIX = "_untrusted"
OCTETS = re.compile(r"\b(bytes|bytearray|memoryview|Buffer|Octets)\b")
CARRIERS = ("overlay", "tunnel", "control")
NATIVE = ROOT / "tunnel" / "native"
NATIVE_DOOR = re.compile(rf"\bpub fn (\w+{SUFFIX})\b")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Door:
    """Where strangers' bytes come in.

    Attributes:
        owner: The class of a method; a test has to mention it beside the name, which others may bear too.
    """

    file: str
    owner: str | None
    name: str

    def __str__(self) -> str:
        return f"{self.file}: {self.owner + '.' if self.owner else ''}{self.name}"

    def is_mentioned_in(self, source: Source) -> bool:
        """Whether the file speaks of this door."""
        return {self.name, self.owner or self.name} <= source.words


def test_every_door_is_fuzzed() -> None:
    targets = [source for source in sources("tests/fuzz") if "atheris" in source.words]
    closed = [str(door) for door in doors() if not any(door.is_mentioned_in(target) for target in targets)]
    assert not closed, "no target of tests/fuzz calls:\n" + "\n".join(closed)


def test_every_door_has_a_property() -> None:
    properties = [
        source
        for source in sources("tests")
        if "hypothesis" in source.words and not source.name.startswith(("tests/arch/", "tests/fuzz/"))
    ]
    closed = [str(door) for door in doors() if not any(door.is_mentioned_in(source) for source in properties)]
    assert not closed, "no test with hypothesis calls:\n" + "\n".join(closed)


def test_every_native_door_is_fuzzed() -> None:
    mentioned = set(re.findall(r"\w+", native_text("fuzz/fuzz_targets")))
    closed = set(NATIVE_DOOR.findall(native_text("core/src"))) - mentioned
    assert not closed, f"no target of tunnel/native/fuzz calls: {sorted(closed)}"


def test_doors_are_found() -> None:
    assert "parse_ethernet_untrusted" in {door.name for door in doors()}
    assert "merge_untrusted" in NATIVE_DOOR.findall(native_text("core/src"))


def native_text(folder: str) -> str:
    """The Rust code in a folder of the native engine."""
    return "\n".join(path.read_text() for path in sorted((NATIVE / folder).glob("*.rs")))


def doors() -> list[Door]:
    """Every door, in the order of files and lines."""
    called_inside, called_outside = calls()
    return [
        Door(source.name, owner, function.name)
        for source in sources(*CARRIERS)
        for owner, function in functions(source.tree)
        if function.name.endswith(SUFFIX)
        and not function.name.startswith("_")
        and not (owner or "").startswith("_")
        and takes_octets(function)
        and (function.name in called_outside or function.name not in called_inside)
    ]


def takes_octets(function: Function) -> bool:
    """Whether bytes come in here, and not what another function made of them."""
    parameters = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return any(OCTETS.search(ast.unparse(each.annotation)) for each in parameters if each.annotation)


def calls() -> tuple[set[str], set[str]]:
    """The `*_untrusted` names that `*_untrusted` functions mention, and those that the rest mentions."""
    inside: set[str] = set()
    outside: set[str] = set()
    for source in sources(*CARRIERS):
        for mention, function in mentions(source.tree, None):
            (inside if function and function.endswith(SUFFIX) else outside).add(mention)
    return inside, outside


def mentions(node: ast.AST, function: str | None) -> Iterator[tuple[str, str | None]]:
    """Each `*_untrusted` name used below the node (imports are no use), with the function it is used in."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Name(id=name) | ast.Attribute(attr=name) if name.endswith(SUFFIX):
                yield name, function
        yield from mentions(child, child.name if isinstance(child, Function) else function)


def functions(tree: ast.Module) -> Iterator[tuple[str | None, Function]]:
    """Module-level functions, and methods with their class."""
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield None, node
            case ast.ClassDef(name=owner, body=body):
                yield from ((owner, method) for method in body if isinstance(method, Function))
