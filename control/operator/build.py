"""What this build has: whether the native engine is there, and if not, why not."""

from __future__ import annotations

import importlib
import importlib.util
import shutil

NATIVE_MODULE = "tunnel._native"


def native_obstacle() -> str | None:
    """Why there is no native engine in this build, None if there is one and it loads."""
    if importlib.util.find_spec(NATIVE_MODULE) is None:
        if shutil.which("cargo") is None:
            return "it was not built: there is no cargo here (https://rustup.rs, then make clean setup)"
        return "it was not built: cargo build --release --manifest-path tunnel/native/Cargo.toml says why"
    try:
        importlib.import_module(NATIVE_MODULE)
    except ImportError as error:
        return f"it does not load: {error}"
    return None
