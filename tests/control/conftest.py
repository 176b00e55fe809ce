"""The lab fixtures, for the daemon's tests."""

from __future__ import annotations

from support.lab import build_lab
from support.serving import start_lab

__all__ = ["build_lab", "start_lab"]
