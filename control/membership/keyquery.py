"""Rotating the pool's key, from either side: install it everywhere, use it everywhere, remove the old one.

Each step is a Serf query that every member must answer; one that does not, or refuses, is named, and the
operator decides.  A pool half rotated still talks, for every member opens what any installed key sealed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from control.membership.events import KeysAnswered
from control.membership.keys import format_key
from control.membership.secure import Keyring
from control.membership.serfwire import (
    INSTALL_KEY,
    LIST_KEYS,
    REMOVE_KEY,
    USE_KEY,
    KeyAnswer,
    parse_key_answer_untrusted,
    parse_key_request_untrusted,
)
from overlay.errors import MembershipError, WireError


class KeyStep(Enum):
    """A step of the rotation; the value is the query's name."""

    INSTALL = INSTALL_KEY
    USE = USE_KEY
    REMOVE = REMOVE_KEY
    LIST = LIST_KEYS


STEPS = {step.value: step for step in KeyStep}
PLAIN_POOL = "keyring is empty (encryption not enabled)"


def perform(step: KeyStep, key: bytes, keyring: Keyring) -> KeyAnswer:
    """Take one step on our own keyring.  Returns what we answer."""
    if not keyring:
        return KeyAnswer(is_done=False, message=PLAIN_POOL)
    try:
        match step:
            case KeyStep.INSTALL:
                keyring.install(key)
            case KeyStep.USE:
                keyring.use(key)
            case KeyStep.REMOVE:
                keyring.remove(key)
            case KeyStep.LIST:
                keys = tuple(format_key(key) for key in keyring.keys)
                return KeyAnswer(is_done=True, keys=keys, primary_key=keys[0])
    except MembershipError as error:
        return KeyAnswer(is_done=False, message=str(error))
    return KeyAnswer(is_done=True)


def perform_untrusted(step: KeyStep, payload: bytes, keyring: Keyring) -> KeyAnswer:
    """Take the step a stranger's query asks for.

    Raises:
        WireError: The payload holds no key where one is needed.
    """
    key = b"" if step is KeyStep.LIST else parse_key_request_untrusted(payload)
    return perform(step, key, keyring)


@dataclass(slots=True)
class KeyQuery:
    """One of our own key queries, collecting answers.

    Attributes:
        time: Its Lamport time; with `number` it is what answers refer to.
        members: How many were here when it was asked.
    """

    time: int
    number: int
    members: int
    _answers: dict[str, KeyAnswer] = field(default_factory=dict)
    _unread: dict[str, str] = field(default_factory=dict)

    def receive_untrusted(self, sender: str, payload: bytes) -> None:
        """Note a member's answer; the first it gives counts."""
        try:
            self.note(sender, parse_key_answer_untrusted(payload))
        except WireError as error:
            self._unread.setdefault(sender, str(error))

    def note(self, sender: str, answer: KeyAnswer) -> None:
        """Note an answer."""
        self._answers.setdefault(sender, answer)

    @property
    def is_complete(self) -> bool:
        """Whether there is nobody left to wait for."""
        return len(self._answers) + len(self._unread) >= self.members

    def result(self) -> KeysAnswered:
        """What is known so far."""
        errors = {
            name: answer.message or "failed" for name, answer in self._answers.items() if not answer.is_done
        }
        return KeysAnswered(
            query=self.number,
            members=self.members,
            responses=len(self._answers) + len(self._unread),
            errors=errors | self._unread,
            keys=dict(Counter(key for answer in self._answers.values() for key in set(answer.keys))),
            primary_keys=dict(Counter(a.primary_key for a in self._answers.values() if a.primary_key)),
        )
