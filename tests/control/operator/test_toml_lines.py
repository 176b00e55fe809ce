"""Every key `tomllib` finds has a line, and it is the line the key stands on."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from control.operator.toml_lines import TomlPath, key_lines

DOCUMENT = '''\
# a comment with [brackets] and = signs
top = """
not = "a key"
"""""
'quo.ted' = 'it # is' # tail
a.b.c = 1979-05-27 07:32:00

[table]   # header
x = [
  "one",  # ] not the end

  { y = 1, z = ["]", '}'] },
]

[[list]]
name = "first"
[list.sub]
deep = true
[[list]]
name = "second"
[[list.inner]]
k = 0x10
[[list.inner]]
k = 2
'''


def paths(value: object, at: TomlPath = ()) -> Iterator[TomlPath]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, content in items:
        yield (*at, key)
        yield from paths(content, (*at, key))


def test_each_key_is_on_the_line_it_is_written_on() -> None:
    lines = key_lines(DOCUMENT)
    expected = {
        ("top",): 2,
        ("quo.ted",): 5,
        ("a", "b", "c"): 6,
        ("table",): 8,
        ("table", "x"): 9,
        ("table", "x", 0): 10,
        ("table", "x", 1): 12,
        ("table", "x", 1, "z", 1): 12,
        ("list", 0): 15,
        ("list", 0, "name"): 16,
        ("list", 0, "sub"): 17,
        ("list", 0, "sub", "deep"): 18,
        ("list", 1): 19,
        ("list", 1, "name"): 20,
        ("list", 1, "inner", 0, "k"): 22,
        ("list", 1, "inner", 1): 23,
        ("list", 1, "inner", 1, "k"): 24,
    }
    assert {path: lines.get(path) for path in expected} == expected


def test_every_place_of_the_document_has_a_line() -> None:
    assert set(paths(tomllib.loads(DOCUMENT))) <= key_lines(DOCUMENT).keys()


def test_windows_line_ends_count_once() -> None:
    assert key_lines("a = 1\r\nb = 2\r\n") == {("a",): 1, ("b",): 2}


keys = st.one_of(
    st.text("abz09_-", min_size=1, max_size=4),
    st.text(' .#"[]=é', min_size=1, max_size=4).map(lambda text: '"' + text.replace('"', '\\"') + '"'),
    st.text(' .#"[]=é', max_size=4).map(lambda text: f"'{text}'"),
)
scalars = st.sampled_from(
    ["1", "-2.5e3", "true", "2020-01-01", '"a\\"b#"', "'c\\'", '"""\nx""y"""""', "'''\n'q'''''", "inf"]
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[\n" + ", # ]\n".join(items) + "\n]"),
        st.lists(st.tuples(keys, inner), max_size=3).map(
            lambda pairs: "{" + ", ".join(f"{key} = {value}" for key, value in pairs) + "}"
        ),
    ),
    max_leaves=6,
)
statements = st.one_of(
    st.tuples(st.lists(keys, min_size=1, max_size=3), values).map(lambda p: f"{' . '.join(p[0])} = {p[1]}"),
    st.lists(keys, min_size=1, max_size=3).map(lambda p: f"[ {'.'.join(p)} ]"),
    st.lists(keys, min_size=1, max_size=2).map(lambda p: f"[[{'.'.join(p)}]] # c"),
    st.sampled_from(["", "  # comment", "\t"]),
)


@given(st.lists(statements, max_size=8).map("\n".join))
def test_whatever_tomllib_accepts_is_walked_completely(text: str) -> None:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = key_lines(text)
    assert set(paths(document)) <= lines.keys()
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
