"""The lab fixture, for the tests of the lab itself."""

from __future__ import annotations

from support.lab import build_lab

__all__ = ["build_lab"]
