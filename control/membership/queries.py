"""Serf's questions to the pool: those we answer, and those about keys we ask.

A question names its own return address, so anybody could have us answer anybody.  We answer a member we
know, at the very address we know it at, and nobody else, within three times the octets that brought the
question unless the pool is encrypted; a filter by regular expression on tags is not evaluated, so such a
question is never for us; nothing is relayed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.membership.config import query_timeout
from control.membership.events import KeyringChanged, Refusal
from control.membership.keyquery import STEPS, KeyQuery, KeyStep, perform, perform_untrusted
from control.membership.lamport import Heard, LamportClock
from control.membership.serfwire import (
    CONFLICT,
    FLAG_ACK,
    FLAG_NO_BROADCAST,
    Query,
    QueryResponse,
    encode_conflict_answer,
    encode_key_answer,
    encode_key_request,
    encode_query,
    encode_query_response,
)
from control.membership.timers import Alarm
from control.membership.wire import User, encode
from overlay.errors import MembershipError, WireError

if TYPE_CHECKING:
    from control.membership.context import Context

# Ours
KEY_QUERIES_MAX = 16


class Queries:
    """Both sides of Serf's queries.

    Attributes:
        clock: The Lamport clock of queries; push-pulls carry it.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._keyring = context.envelope.keyring
        self.clock = LamportClock()
        self._heard = Heard(self.clock)
        self._asked: dict[int, KeyQuery] = {}

    # Asked by others.

    def receive(self, query: Query, body: bytes) -> None:
        """Pass a query on, once, and answer it if it is for us."""
        if not self.clock.witness(query.time):
            self._context.refuse(Refusal.CLOCK_JUMP)
            return
        if not self._heard.is_news(query.time, (query.time, query.number)):
            self._context.refuse(Refusal.STALE)
            return
        if not query.flags & FLAG_NO_BROADCAST:
            self._pass_on(query, body)
        if query.has_tag_filter or (query.nodes and self._context.name not in query.nodes):
            return
        asker = self._context.roster.at(query.source)
        if asker is None or query.source_node not in ("", asker.name) or not asker.is_here:
            self._context.refuse(Refusal.UNKNOWN_QUERIER)
            return
        if query.name == CONFLICT:
            self._answer_conflict(query)
        elif step := STEPS.get(query.name):
            self._answer_keys(query, step)
        if query.flags & FLAG_ACK:  # last: what it leaves of the answer's account is for it
            self._respond(query, b"", flags=FLAG_ACK)

    def _answer_conflict(self, query: Query) -> None:
        """Say whom we hold to have the disputed name.

        A stock agent that hears nobody takes itself for the minority and quits, so silence is not neutral.
        Those who dispute the name do not vote.
        """
        disputed = query.payload.decode(errors="replace")
        member = self._context.roster.lookup(disputed)
        if disputed != self._context.name and member is not None:
            self._respond(query, encode_conflict_answer(member))

    def _answer_keys(self, query: Query, step: KeyStep) -> None:
        before = self._keyring.keys
        try:
            answer = perform_untrusted(step, query.payload, self._keyring)
        except WireError:
            self._context.refuse(Refusal.MALFORMED)
            return
        self._respond(query, encode_key_answer(answer))
        self._tell_if_changed(before)

    def _respond(self, query: Query, payload: bytes, *, flags: int = 0) -> None:
        response = QueryResponse(query.time, query.number, self._context.name, flags, payload)
        message = encode(User(encode_query_response(response)))
        if self._keyring:  # whoever asks has the key: an answer about many keys is long, and may be
            self._context.outbox.send(query.source, message, with_rumors=False)
        elif not self._context.outbox.answer(query.source, message, with_rumors=False):
            self._context.refuse(Refusal.ANSWER_LIMIT)

    # Asked by us.

    def ask_keys(self, step: KeyStep, key: bytes) -> int:
        """Have the whole pool, ourselves included, take a step of a key rotation.

        Raises:
            MembershipError: Too many such questions are open.
        """
        if len(self._asked) >= KEY_QUERIES_MAX:
            raise MembershipError(
                f"keys: expected at most {KEY_QUERIES_MAX} queries at once, found one more",
                why="those asked before have not ended",
                advice="ask again in a minute",
            )
        context, here = self._context, self._context.roster.here
        time, number = self.clock.increment(), context.rng.getrandbits(32)
        timeout = query_timeout(here, context.config.gossip_interval)
        query = Query(
            time=time,
            number=number,
            source=context.roster.ourselves.endpoint,
            source_node=context.name,
            nodes=frozenset(),
            has_tag_filter=False,
            flags=0,
            timeout=int(timeout * 1e9),
            name=step.value,
            payload=b"" if step is KeyStep.LIST else encode_key_request(key),
        )
        self._heard.is_news(time, (time, number))
        self._pass_on(query, encode_query(query))
        self._asked[number] = asked = KeyQuery(time, number, here)
        before = self._keyring.keys
        asked.note(context.name, perform(step, key, self._keyring))
        self._tell_if_changed(before)
        context.timers.set(context.now + timeout, Alarm.QUERY, number)
        return number

    def receive_response(self, response: QueryResponse) -> None:
        """Note a member's answer to a question of ours."""
        asked = self._asked.get(response.number)
        if asked is None or asked.time != response.time or response.sender not in self._context.roster:
            self._context.refuse(Refusal.STALE)
            return
        if response.flags & FLAG_ACK:
            return
        asked.receive_untrusted(response.sender, response.payload)
        if asked.is_complete:
            self.close(response.number)

    def close(self, number: int) -> None:
        """Tell what was answered to a question; once."""
        if (asked := self._asked.pop(number, None)) is not None:
            self._context.events.append(asked.result())

    def _pass_on(self, query: Query, body: bytes) -> None:
        self._context.spread(("query", str(query.time), str(query.number)), encode(User(body)))

    def _tell_if_changed(self, before: tuple[bytes, ...]) -> None:
        if self._keyring.keys != before:
            self._context.events.append(KeyringChanged())
