"""Those this node was told to ask for the pool, and what came of it.

Each is told once for each answer, however often it is asked: the retries are the core's and the pool's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from control.intent.shared import Trouble
from control.membership.events import Answer
from control.membership.member import Endpoint
from control.operator import fields

# Ours
TOLD_MAX = 3  # of many seeds, in one line of `weft status`


class Seeds:
    """The seeds, by address and by name, and what each said last, where that was no welcome.

    Ourselves are none of them: every node of a pool may have the same list.
    """

    def __init__(
        self, own: Endpoint, addresses: Iterable[Endpoint], names: Iterable[fields.Endpoint]
    ) -> None:
        self.names = tuple(names)
        self._own = own
        self._addresses = {each for each in addresses if each != own}
        self._behind: dict[fields.Endpoint, set[Endpoint]] = {}
        self._failed: dict[Endpoint, tuple[Answer, str]] = {}
        self._unresolved: dict[fields.Endpoint, str] = {}

    @property
    def _asked(self) -> set[Endpoint]:
        return self._addresses.union(*self._behind.values())

    def resolved(self, name: fields.Endpoint, endpoints: Iterable[Endpoint]) -> None:
        """These are behind the name now, and are asked."""
        self._unresolved.pop(name, None)
        self._behind[name] = {each for each in endpoints if each != self._own}

    def unresolved(self, name: fields.Endpoint, why: str) -> bool:
        """Nothing is known to be behind the name; whether that is news."""
        is_news = name not in self._unresolved
        self._unresolved[name] = why
        return is_news

    def failed(self, endpoint: Endpoint, answer: Answer, why: str) -> str | None:
        """What came of asking there, in words, where that is news; None: it is not, or we never asked."""
        if endpoint not in self._asked:
            return None
        known = self._failed.get(endpoint)
        self._failed[endpoint] = answer, (words := _in_words(answer, why))
        return words if known is None or known[0] is not answer else None

    def answered(self, endpoint: Endpoint) -> None:
        """It took us in."""
        self._failed.pop(endpoint, None)

    def trouble(self, port: int) -> Trouble | None:
        """Why nobody took us in, as an operator should read it; None: there is nobody to ask.

        `port` is the pool's.
        """
        asked = self._asked
        waiting = [str(each) for each in sorted(asked)]
        waiting += [str(name) for name in self.names if name not in self._behind]
        if not waiting:
            return None
        told = [f"{each}: {words}" for each, (_, words) in sorted(self._failed.items()) if each in asked]
        told = [*told, *self._unresolved.values()] or [f"asking {', '.join(waiting)}"]
        more = f"; and {len(told) - TOLD_MAX} more" if len(told) > TOLD_MAX else ""
        problem = f"no member of the pool has answered yet: {'; '.join(told[:TOLD_MAX])}{more}"
        return Trouble(problem, " ".join(self._questions(port)))

    def _questions(self, port: int) -> Iterator[str]:
        answers = {answer for answer, _ in self._failed.values()}
        if self._unresolved:
            yield "does the name resolve here?"
        if Answer.NOTHING in answers or not answers:
            yield f"is weft running there? is UDP and TCP {port} open?"
        if answers - {Answer.NOTHING}:
            yield "has it the same keyring? `weft status` there says what it refuses"
        elif not self._unresolved:
            yield "has it the same keyring?"


def _in_words(answer: Answer, why: str) -> str:
    """What the core's own words mean to an operator; they are added where they say more."""
    match answer:
        case Answer.NOTHING:
            return f"nobody answers there ({why})"
        case Answer.CLOSED:
            return "it answers and hangs up, as on another key than its own, or on none"
        case Answer.OTHER_KEY:
            return "it answers, but with another key, or with none"
        case Answer.REFUSED:
            return f"it answers, but not as a member of this pool: {why}"
