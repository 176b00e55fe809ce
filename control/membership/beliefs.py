"""What we hold of the others: one door for every claim, whichever way it came.

    claim ──▶ a second node with this name? ──▶ table ──▶ a jump too far? ──▶ its outcome ──▶ rumor, event

A claim that changes something is passed on in the very octets it came in; one that changes nothing stops
here, which is what ends a rumor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from control.membership.config import INCARNATION_JUMP, THROTTLE, confirmations_wanted, suspicion_min
from control.membership.events import MemberChanged, NameConflict, Refusal
from control.membership.limits import RateLimit
from control.membership.member import GONE, Member, MemberState
from control.membership.suspicion import Suspicion
from control.membership.tags import identity_of
from control.membership.timers import Alarm
from control.membership.transitions import TRANSITIONS, Order, Outcome, Standing, order_of
from control.membership.wire import Alive, Dead, NodeState, Suspect, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from control.membership.context import Context
    from control.membership.presence import Presence

_STANDINGS = {state: Standing[state.name] for state in MemberState}


@dataclass(slots=True)
class Claim:
    """A state asserted of a name under an incarnation.

    Attributes:
        accuser: Who says so.
        raw: The message as it came, to be passed on; empty: it did not come as a message.
        alive: For an ALIVE, everything else it says.
    """

    state: MemberState
    name: str
    incarnation: int
    accuser: str
    raw: bytes = b""
    alive: Alive | None = None

    def message(self) -> bytes:
        """The claim as a bare message."""
        if self.raw:
            return self.raw
        if self.alive is not None:
            return encode(self.alive)
        if self.state is MemberState.SUSPECT:
            return encode(Suspect(self.incarnation, self.name, self.accuser))
        return encode(Dead(self.incarnation, self.name, self.accuser))


class Beliefs:
    """The members' states, and the suspicions under way."""

    def __init__(self, context: Context, presence: Presence) -> None:
        self._context = context
        self._roster = context.roster
        self._presence = presence
        self._suspicions: dict[str, Suspicion] = {}
        self._reminders = RateLimit(1, THROTTLE)
        self._conflicts = RateLimit(1, THROTTLE)
        self._outcomes: dict[Outcome, Callable[[Claim, Member], None]] = {
            Outcome.SUSPECT: self._suspect,
            Outcome.CONFIRM: self._confirm,
            Outcome.BURY: self._bury,
            Outcome.DEPART: self._bury,
            Outcome.REMIND: self._remind,
            Outcome.REFUTE: lambda claim, _held: presence.refute(claim.incarnation),
        }

    def hear(self, claim: Claim) -> None:
        """Let a claim do whatever it does."""
        held = self._roster.lookup(claim.name)
        known = held.incarnation if held is not None else None
        outcome = TRANSITIONS[claim.state, order_of(claim.incarnation, known), self._standing(held)]
        if claim.alive is not None and held is not None and self._is_contested(claim.alive, held):
            return
        if outcome is Outcome.IGNORE:
            return
        # A stock member cannot be outbid above 2**32 - 1; a forged jump there would last for ever.
        if claim.incarnation - (known or 0) > INCARNATION_JUMP:
            self._context.refuse(Refusal.INCARNATION_JUMP)
        elif outcome is Outcome.WELCOME:
            self._welcome(claim, held)
        elif held is not None:
            self._outcomes[outcome](claim, held)

    def merge(self, node: NodeState) -> None:
        """Let one line of somebody's push-pull do whatever it does."""
        alive = node.alive
        name, incarnation = alive.node, alive.incarnation
        if node.state is MemberState.ALIVE or (
            node.state is MemberState.SUSPECT and name not in self._roster
        ):
            self.hear(Claim(MemberState.ALIVE, name, incarnation, name, alive=alive))
        if node.state is MemberState.LEFT:
            self.hear(Claim(MemberState.LEFT, name, incarnation, name))
        elif node.state is not MemberState.ALIVE:
            # A third party's `dead` is hearsay, and suspicion is all it earns.
            self.hear(Claim(MemberState.SUSPECT, name, incarnation, self._context.name))

    def give_up_ripe(self, name: str) -> None:
        """Bury a suspect whose time is over, unless it was extended, or refuted, since this timer was set."""
        suspicion, held = self._suspicions.get(name), self._roster.lookup(name)
        if suspicion is None or held is None or suspicion.deadline > self._context.now + 1e-6:
            return
        if suspicion.is_doubtful and not suspicion.is_warned:
            self._warn(suspicion, held)
        else:
            self.hear(Claim(MemberState.DEAD, name, held.incarnation, self._context.name))

    def _warn(self, suspicion: Suspicion, held: Member) -> None:
        """Tell a suspect nobody else accuses, and give it one more probe's time to refute."""
        context = self._context
        suspicion.is_warned = True
        suspicion.started_at += context.awareness.stretch(context.config.probe_interval)
        context.timers.set(suspicion.deadline, Alarm.SUSPICION, held.name)
        context.outbox.send(held.endpoint, encode(Suspect(held.incarnation, held.name, context.name)))

    def stood_still(self, seconds: float) -> None:
        """Time in which we did not run is not held against the suspects."""
        for suspicion in self._suspicions.values():
            suspicion.started_at += seconds

    def _standing(self, held: Member | None) -> Standing:
        if held is None:
            return Standing.ABSENT
        return Standing.OURSELVES if held.name == self._context.name else _STANDINGS[held.state]

    # Two nodes, one name.

    def _is_contested(self, alive: Alive, held: Member) -> bool:
        """Whether this `alive` is refused, for it is not the word of whom we know by that name."""
        order = order_of(alive.incarnation, held.incarnation)
        if held.name == self._context.name:
            return self._is_our_name_contested(alive, held, order)
        if alive.endpoint == held.endpoint or held.state in GONE or order is Order.OLDER:
            return False
        if order is Order.NEWER and _is_later_start(alive.meta, held.meta):
            return False
        self._report_conflict(alive, held)
        return True

    def _is_our_name_contested(self, alive: Alive, held: Member, order: Order) -> bool:
        if alive.endpoint == held.endpoint:
            if order is Order.EQUAL and (alive.meta, alive.versions) != (held.meta, held.versions):
                self._presence.refute(alive.incarnation)  # the pool believes what we said before a restart
            return False
        if alive.endpoint != self._context.config.former and not _is_later_start(held.meta, alive.meta):
            self._report_conflict(alive, held)
        elif order is not Order.OLDER and alive.incarnation - held.incarnation <= INCARNATION_JUMP:
            self._presence.overtake(alive.incarnation)
        return True

    def _report_conflict(self, alive: Alive, held: Member) -> None:
        self._context.refuse(Refusal.NAME_CONFLICT)
        if self._conflicts.permits((held.name, alive.endpoint), now=self._context.now):
            self._context.events.append(NameConflict(held.name, held.endpoint, alive.endpoint))

    # Outcomes, in the order of a member's life.

    def _welcome(self, claim: Claim, held: Member | None) -> None:
        alive = claim.alive
        if alive is None or (held is None and not self._roster.has_room()):
            self._context.refuse(Refusal.ROSTER_FULL)
            return
        was_alive = held is not None and held.state is MemberState.ALIVE
        member = Member(
            alive.node,
            alive.endpoint,
            alive.incarnation,
            MemberState.ALIVE,
            alive.meta,
            alive.versions,
            held.changed_at if held is not None and was_alive else self._context.now,
        )
        self._suspicions.pop(alive.node, None)
        is_same = held is not None and (held.endpoint, held.meta) == (member.endpoint, member.meta)
        self._write(claim, member, held, is_told=not (was_alive and is_same))

    def _suspect(self, claim: Claim, held: Member) -> None:
        config, members, now = self._context.config, self._roster.here, self._context.now
        mult = config.suspicion_mult_at(members)
        minimum = suspicion_min(mult, members, config.probe_interval)
        self._suspicions[claim.name] = suspicion = Suspicion(
            claim.accuser,
            started_at=now,
            wanted=confirmations_wanted(mult, members),
            minimum=minimum,
            maximum=minimum * config.suspicion_max_timeout_mult,
        )
        self._context.timers.set(suspicion.deadline, Alarm.SUSPICION, claim.name)
        self._write_state(claim, held)

    def _confirm(self, claim: Claim, _held: Member) -> None:
        suspicion = self._suspicions.get(claim.name)
        if suspicion is not None and suspicion.confirm(claim.accuser):
            self._context.timers.set(suspicion.deadline, Alarm.SUSPICION, claim.name)
            self._context.spread(("member", claim.name), claim.message())

    def _bury(self, claim: Claim, held: Member) -> None:
        self._suspicions.pop(claim.name, None)
        self._write_state(claim, held)

    def _remind(self, _claim: Claim, held: Member) -> None:
        # While the news of a death is still on its way, an old `alive` is only that.
        now = self._context.now
        if now - held.changed_at < self._context.config.gossip_to_the_dead:
            return
        self._context.refuse(Refusal.STALE)
        if self._reminders.permits(held.name, now=now):
            suspicion = encode(Suspect(held.incarnation, held.name, self._context.name))
            self._context.spread(("reminder", held.name), suspicion)

    def _write_state(self, claim: Claim, held: Member) -> None:
        now = self._context.now
        member = replace(held, state=claim.state, incarnation=claim.incarnation, changed_at=now)
        self._write(claim, member, held, is_told=True)

    def _write(self, claim: Claim, member: Member, held: Member | None, *, is_told: bool) -> None:
        self._roster.put(member)
        self._context.spread(("member", member.name), claim.message())
        if is_told:
            before = held.state if held is not None else None
            self._context.events.append(MemberChanged(member, before))
            self._context.layer.member_changed(member, before, now=self._context.now)


def _is_later_start(newer: bytes, older: bytes) -> bool:
    """Whether both metas are one weft node's, and the first is from a later start."""
    newer_id, newer_epoch = identity_of(newer)
    older_id, older_epoch = identity_of(older)
    return bool(newer_id) and newer_id == older_id and newer_epoch > older_epoch
