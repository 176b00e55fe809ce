"""The lab fixtures, for the tests that meet strangers."""

from __future__ import annotations

from support.engines import engine
from support.lab import build_lab
from support.serving import start_lab
from support.two_networks import two

__all__ = ["build_lab", "engine", "start_lab", "two"]
