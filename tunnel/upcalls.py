"""Upcalls: what an engine does not remember is asked, and the frames wait for the answer, in order.

    ask ─▶ metered ─▶ pending flow ─▶ answer: Decider, Tables.apply, remember ─▶ carry what waited

The decision and its lesson are somebody else's; here is only the waiting.  The loop gets its turn after
UPCALLS_PER_TURN decisions and the question they end in, so that a flood of new flows delays gossip by a few
milliseconds and no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from overlay.discovery import may_be_discovery_untrusted
from overlay.tables import Tables
from overlay.verdict import Decision, DropReason, Encapsulate, Verdict
from tunnel.carriage import NetworkCarriage, VtepCarriage
from tunnel.flows import Flow, FlowTable, Held, PendingFlow
from tunnel.interfaces import Reactor
from tunnel.meter import Meter, UpcallKind
from tunnel.offload import ETHERNET_LENGTH
from tunnel.recorder import Recorder

# Ours
UPCALLS_PER_TURN = 64
UPCALL_TIMEOUT_SECONDS = 1.0

Carry = Callable[[NetworkCarriage, VtepCarriage | None, Verdict, Held], None]


@dataclass(frozen=True, slots=True)
class _Question:
    """A pending flow, and whom to ask about it, on whose account.  `vtep` is None on egress."""

    pending: PendingFlow
    table: FlowTable
    network: NetworkCarriage
    vtep: VtepCarriage | None
    kind: UpcallKind
    source: Hashable


class Upcalls:
    """The questions of one engine."""

    def __init__(
        self,
        tables: Tables,
        recorder: Recorder,
        *,
        reactor: Reactor,
        clock: Callable[[], float],
        carry: Carry,
    ) -> None:
        """`carry` does what the verdict says with one frame that waited."""
        self.meter = Meter(now=clock())
        self._tables = tables
        self._recorder = recorder
        self._reactor = reactor
        self._clock = clock
        self._carry = carry
        self._questions: deque[_Question] = deque()
        self._is_scheduled = False

    @property
    def held(self) -> int:
        """Frames that wait."""
        return sum(len(question.pending.frames) for question in self._questions)

    def ask(
        self,
        table: FlowTable,
        network: NetworkCarriage,
        vtep: VtepCarriage | None,
        held: Held,
        *,
        now: float,
        key: bytes | None = None,
    ) -> None:
        """Holds the frame until its flow's verdict is there; asks for it unless that is under way.

        `key` is the flow's, where it is not the frame's two MACs.
        """
        frame = held.frame
        is_discovery = network.suppresses and may_be_discovery_untrusted(frame) and frame[0] & 1
        # Each question is another one, and what is torn is no frame of the flow it seems to belong to.
        if key is None and not is_discovery and len(frame) >= ETHERNET_LENGTH:
            key = frame[0:12]
        pending = None if key is None else table.pending.get(key)
        if pending is None:
            kind = UpcallKind.NEIGHBOR_DISCOVERY if is_discovery else UpcallKind.NEW_FLOW
            source = network.source_of(frame) if vtep is None else vtep.id
            if not self.meter.admits(kind, source, now=now):
                self._recorder.drop(DropReason.UPCALL_LIMIT, network, frame, vtep)
                return
            pending = PendingFlow(key, now=now)
            if key is not None:
                table.pending[key] = pending
            self._questions.append(_Question(pending, table, network, vtep, kind, source))
        if not pending.hold(held):
            self._recorder.drop(DropReason.UPCALL_OVERFLOW, network, frame, vtep)

    def answer(self) -> None:
        """Decides what was asked, UPCALLS_PER_TURN at once; the loop gets its turn before the rest."""
        before = self._recorder.counters.upcalls
        try:
            while self._questions and self._recorder.counters.upcalls - before < UPCALLS_PER_TURN:
                self._settle(self._questions.popleft())
        finally:
            if self._questions and not self._is_scheduled:
                self._is_scheduled = True
                self._reactor.call_soon(self._answer_more)

    def _answer_more(self) -> None:
        self._is_scheduled = False
        self.answer()

    def _settle(self, question: _Question) -> None:
        """One decision: asked, its lesson written, remembered, and the frames that waited carried.

        One without a key held for one frame alone: each further frame is another question, metered as such.
        """
        pending, network, vtep = question.pending, question.network, question.vtep
        if pending.key is not None:
            question.table.pending.pop(pending.key, None)
        if vtep is not None and network.vteps.get(vtep.id) is not vtep:
            self._drop_all(question, DropReason.UNKNOWN_VTEP)
            return
        now = self._clock()
        decision: Decision | None = None
        flow: Flow | None = None
        while pending.frames:
            held = pending.frames[0]
            if decision is None or decision.key is None:
                if decision is not None and not self.meter.admits(question.kind, question.source, now=now):
                    self._recorder.drop(DropReason.UPCALL_LIMIT, network, held.frame, vtep)
                    pending.frames.popleft()
                    continue
                try:
                    decision = self._decide(network, vtep, held.frame, now=now)
                except Exception:  # a bug, which costs the frames it is about and no others
                    self._drop_all(question, DropReason.UPCALL_TIMEOUT)
                    raise
                flow = self._remember(question, decision, now=now)
            pending.frames.popleft()
            if flow is not None:
                flow.frames += 1
                flow.octets += len(held.frame) - network.hidden
            self._carry(network, vtep, decision.verdict, held)

    def _decide(
        self, network: NetworkCarriage, vtep: VtepCarriage | None, frame: bytes, *, now: float
    ) -> Decision:
        self._recorder.counters.upcalls += 1
        if vtep is None:
            decision = network.decider.egress(frame[network.hidden :], now=now)
        else:
            decision = network.decider.ingress(frame[network.hidden :], vtep.id, now=now)
        if decision.delta is not None:
            self._tables.apply(decision.delta)
        return decision

    @staticmethod
    def _remember(question: _Question, decision: Decision, *, now: float) -> Flow | None:
        if decision.key is None:
            return None
        verdict = decision.verdict
        target = question.network.vteps[verdict.vtep] if isinstance(verdict, Encapsulate) else None
        flow = Flow(decision.key, decision, target=target, now=now)
        question.table.activate(flow)
        return flow

    def expire(self, *, now: float) -> None:
        """Gives up on questions that were not answered in time."""
        while self._questions and now - self._questions[0].pending.asked_at >= UPCALL_TIMEOUT_SECONDS:
            self._abandon(self._questions.popleft(), DropReason.UPCALL_TIMEOUT)

    def abandon(self, network: NetworkCarriage) -> None:
        """Gives up on every question of a network that is no longer carried."""
        mine = [question for question in self._questions if question.network is network]
        self._questions = deque(question for question in self._questions if question.network is not network)
        for question in mine:
            self._abandon(question, DropReason.UPCALL_TIMEOUT)

    def _abandon(self, question: _Question, reason: DropReason) -> None:
        if question.pending.key is not None:
            question.table.pending.pop(question.pending.key, None)
        self._drop_all(question, reason)

    def _drop_all(self, question: _Question, reason: DropReason) -> None:
        for held in question.pending.frames:
            self._recorder.drop(reason, question.network, held.frame, question.vtep)
