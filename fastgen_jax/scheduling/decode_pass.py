"""The first pass of a step: one token for every request that has just one to compute."""

from __future__ import annotations

from fastgen_jax.kv.pool import BlockPool
from fastgen_jax.request import Request, RequestState
from fastgen_jax.scheduling.draft import PlanDraft
from fastgen_jax.scheduling.plan import Reason
from fastgen_jax.scheduling.policy_guard import PolicyGuard
from fastgen_jax.scheduling.running import RunningSet


class DecodePass:
    """Grants decodes, all at once where nothing contends, else in the policy's order.

    A decode that needs a block when none is free preempts: first blocks nobody will read again,
    then requests that have no tokens in this very plan, picked by the policy; itself if it is the
    one picked.
    """

    __slots__ = ("_guard", "_pool", "_running")

    def __init__(self, running: RunningSet, pool: BlockPool, guard: PolicyGuard) -> None:
        self._running = running
        self._pool = pool
        self._guard = guard

    def run(self, draft: PlanDraft, max_chain_length: int = 1) -> None:
        """Grant what budget, rows and blocks allow; the others wait or are preempted.

        Where everybody is granted, in a chain of up to so many steps; more than one only when
        there is nothing to run but decodes.
        """
        running = self._running
        singles = self._singles()
        wanted = len(running.decoding) + len(singles)
        fits = wanted <= draft.tokens_left and wanted <= draft.rows_left
        if fits and running.can_grant_all_decodes():
            draft.reserve(num_tokens=len(running.decoding), num_rows=len(running.decoding))
            draft.chain_length = running.decoding.longest_chain(max_chain_length)
            draft.add_decodes(running.grant_decodes(num_steps=draft.chain_length))
            for request in singles:
                draft.grant(running.grant_chunk(request, 1))
        else:
            self._grant_in_order(draft, [*running.decoding, *singles])

    def run_unless_stalled(self, draft: PlanDraft, max_chain_length: int) -> None:
        """Grant decodes where no prompt runs; let them all wait where one does."""
        if not draft.is_empty:
            self._stall(draft)
            return
        self.run(draft, max_chain_length)
        victims = {victim for victim, _ in draft.preempted}
        draft.waits = [wait for wait in draft.waits if wait[0] not in victims]

    def _stall(self, draft: PlanDraft) -> None:
        running = self._running
        ran = {row.request for row in (*draft.singles, *draft.chunks)}
        for request in (*running.decoding, *self._singles()):
            if request not in ran:
                draft.wait(request, Reason.POLICY_RULES)

    def _singles(self) -> list[Request]:
        """Running prompts with a single token left."""
        return [
            request
            for request in self._running.prefilling
            if request.num_tokens - request.num_computed_tokens == 1
        ]

    def _grant_in_order(self, draft: PlanDraft, candidates: list[Request]) -> None:
        running = self._running
        granted: set[Request] = set()
        decodes: list[Request] = []
        num_blocks = 0  # that the decodes will take
        for request in self._guard.order(candidates):
            if request.state is not RequestState.RUNNING:
                continue  # preempted for one before it
            full = draft.full_reason
            if full is not None:
                draft.wait(request, full)
                continue
            if request in running.prefilling:
                draft.grant(running.grant_chunk(request, 1))
            else:
                if running.decoding.needs_block(request):
                    if not self._make_room(draft, request, granted, num_blocks):
                        continue
                    num_blocks += 1
                draft.reserve(num_tokens=1, num_rows=1)
                decodes.append(request)
            granted.add(request)
        draft.add_decodes(running.grant_decodes(decodes))

    def _make_room(
        self, draft: PlanDraft, request: Request, granted: set[Request], num_taken: int
    ) -> bool:
        """True when one more block than those taken is free; False when it was preempted itself."""
        running, pool = self._running, self._pool
        if pool.num_free <= num_taken:
            running.release_drained_blocks(granted)
        while pool.num_free <= num_taken:
            candidates = [
                other for other in (*running.decoding, *running.prefilling) if other not in granted
            ]
            victim = self._guard.choose_victim(candidates)
            self._preempt(draft, victim, request)
            if victim is request:
                return False
        return True

    def _preempt(self, draft: PlanDraft, victim: Request, winner: Request) -> None:
        self._running.vacate(victim)
        victim.state = RequestState.WAITING
        victim.num_lost_tokens = max(victim.num_lost_tokens, victim.num_computed_tokens)
        victim.num_computed_tokens = 0
        victim.num_preemptions += 1
        draft.preempted.append((victim, winner.request_id))
