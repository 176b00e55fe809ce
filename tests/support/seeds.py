"""How many seeds a long simulation runs: `make sim SEEDS=…`."""

from __future__ import annotations

import os


def many_seeds(default: int) -> range:
    """As many seeds as the environment's SEEDS says, else the default."""
    return range(int(os.environ.get("SEEDS") or default))
