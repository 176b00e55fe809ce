"""Where in a TOML file each key stands, which `tomllib` does not tell.

`tomllib` reads the document and vouches for it; this file walks the same text a second time and only
notes lines, so that a problem with `network[0].peers[1].subnet` can be shown in the operator's own file.
Because the text is known to be TOML, the walk needs no error handling: it skips values and reads keys.

Heads up: read https://toml.io/en/v1.0.0 (Keys, Array of Tables) before changing this file.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

TomlPath = tuple[str | int, ...]
"""A place in a document: keys, and indexes into arrays (`("network", 0, "vni")`)."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'  # up to two quotes may touch the closing three
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}\n#]+")


def key_lines(text: str) -> dict[TomlPath, int]:
    """The line, counted from 1, of every key, table and array item of a document `tomllib` has accepted.

    Raises:
        RecursionError: The arrays are nested deeper than the interpreter's stack.
    """
    return _Walk(text.replace("\r\n", "\n")).document()


class _Walk:
    """One pass over the text, with the place in the document it has reached."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._lines: dict[TomlPath, int] = {}
        self._last_item: dict[TomlPath, int] = {}

    def document(self) -> dict[TomlPath, int]:
        table: TomlPath = ()
        while self._skip_blank():
            if self._text.startswith("[", self._at):
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    def _header(self) -> TomlPath:
        """`[a.b]` or `[[a.b]]`: in both, a name of an array of tables means its newest item."""
        brackets = 2 if self._text.startswith("[[", self._at) else 1
        line = self._line()
        self._at += brackets
        *parents, name = self._keys()
        self._at += brackets
        path: TomlPath = ()
        for parent in parents:
            path = self._newest((*path, parent))
            self._lines.setdefault(path, line)
        path = (*path, name)
        self._lines.setdefault(path, line)
        if brackets == 2:
            self._last_item[path] = self._last_item.get(path, -1) + 1
        path = self._newest(path)
        self._lines.setdefault(path, line)
        return path

    def _newest(self, path: TomlPath) -> TomlPath:
        return (*path, self._last_item[path]) if path in self._last_item else path

    def _pair(self, table: TomlPath) -> None:
        line = self._line()
        path = table
        for key in self._keys():
            path = (*path, key)
            self._lines.setdefault(path, line)
        self._at += 1  # the equals sign
        self._skip_blank()
        self._value(path)

    def _keys(self) -> list[str]:
        """A dotted key; leaves off at what follows it: an equals sign or a bracket."""
        keys: list[str] = []
        while True:
            self._skip_blank()
            if bare := _BARE_KEY.match(self._text, self._at):
                keys.append(bare.group())
                self._at = bare.end()
            else:
                keys.append(self._quoted_key())
            self._skip_blank()
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _quoted_key(self) -> str:
        start = self._at
        self._skip(_STRING)
        return next(iter(tomllib.loads(f"{self._text[start : self._at]} = 0")))

    def _value(self, path: TomlPath) -> None:
        opening = self._text[self._at]
        if opening in "\"'":
            self._skip(_STRING)
        elif opening == "[":
            self._array(path)
        elif opening == "{":
            self._inline_table(path)
        else:
            self._skip(_SCALAR)

    def _array(self, path: TomlPath) -> None:
        self._at += 1
        index = 0
        while self._skip_blank() and self._text[self._at] != "]":
            if self._text[self._at] == ",":
                self._at += 1
                continue
            self._lines[(*path, index)] = self._line()
            self._value((*path, index))
            index += 1
        self._at += 1

    def _inline_table(self, path: TomlPath) -> None:
        self._at += 1
        while self._skip_blank() and self._text[self._at] != "}":
            if self._text[self._at] == ",":
                self._at += 1
            else:
                self._pair(path)
        self._at += 1

    def _skip_blank(self) -> bool:
        """Past white space, newlines and comments; whether anything is left."""
        self._skip(_BLANK)
        return self._at < len(self._text)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        if match := pattern.match(self._text, self._at):
            self._at = match.end()

    def _line(self) -> int:
        return bisect_right(self._line_starts, self._at)
