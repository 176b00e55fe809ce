"""What is not as it should be, remembered for as long as it is met."""

from __future__ import annotations

# Ours
TROUBLE_SECONDS = 600.0  # how long a trouble is shown after it was last met; one that lasts is met again


class Troubles:
    """Troubles by the name they are about, each gone when it has not been met for a while."""

    def __init__(self) -> None:
        self._met: dict[str, tuple[str, float]] = {}

    def note(self, name: str, text: str, *, now: float) -> bool:
        """Whether it is news."""
        is_news = text not in self.current(now=now)
        self._met[name] = text, now
        return is_news

    def forget(self, name: str) -> None:
        self._met.pop(name, None)

    def current(self, *, now: float) -> list[str]:
        """Those met lately, by name."""
        self._met = {name: each for name, each in self._met.items() if now - each[1] < TROUBLE_SECONDS}
        return [text for _, (text, _) in sorted(self._met.items())]
