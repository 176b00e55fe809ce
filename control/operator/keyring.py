"""The keyring file, looked at when the configuration is read: before anything is made of it.

A file that is not here, or that this process may not read, is no mistake yet: keyrings are mode 0600, and
who checks a configuration need not be who runs it, nor the host the same.  `unreadable` tells those who run.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from control.membership.keys import parse_keyring_untrusted
from overlay.errors import WireError


def mistake(path: str) -> tuple[str, str | None] | None:
    """What is wrong with the file, and what to write instead where that is near; None: nothing is."""
    try:
        text = Path(path).read_bytes().decode()
    except (PermissionError, FileNotFoundError):
        return None
    except UnicodeDecodeError:
        return f"{path}: expected UTF-8 text, as JSON is", None
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}", None
    try:
        parse_keyring_untrusted(text)
    except WireError as error:
        return f"{path}: {error}", '["…"]' if "without its list" in str(error) else None
    return None


def unreadable(path: str) -> tuple[str, str | None] | None:
    """Why this process cannot read it, and what to write instead where that is near; None: it can."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError as error:
        return f"{path}: cannot be read: {error.strerror}", None
    except FileNotFoundError:
        return f"expected a file at {path}, found none", _nearest(Path(path))
    except OSError:  # `mistake` tells of those
        return None
    return None


def _nearest(path: Path) -> str | None:
    """A file beside it whose name is nearly the same."""
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, names, n=1)
    return str(path.parent / near[0]) if near else None
