"""The first pass of a step: one token for every request that has just one to compute."""

from __future__ import annotations

from fastgen_jax.kv.pool import BlockPool
from fastgen_jax.request import Request, RequestState
from fastgen_jax.scheduling.draft import PlanDraft
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

    def run(self, draft: PlanDraft) -> None:
        """Grant what budget, rows and blocks allow; the others wait or are preempted."""
        running = self._running
        singles = [
            request
            for request in running.prefilling
            if request.num_tokens - request.num_computed_tokens == 1
        ]
        wanted = len(running.decoding) + len(singles)
        fits = wanted <= draft.tokens_left and wanted <= draft.rows_left
        if fits and running.can_grant_all_decodes():
            draft.grant_decodes(running.grant_decodes(running.decoding))
            for request in singles:
                draft.grant(running.grant_chunk(request, 1))
        else:
            self._grant_in_order(draft, [*running.decoding, *singles])

    def _grant_in_order(self, draft: PlanDraft, candidates: list[Request]) -> None:
        running = self._running
        granted: set[Request] = set()
        for request in self._guard.order(candidates):
            if request.state is not RequestState.RUNNING:
                continue  # preempted for one before it
            full = draft.full_reason
            if full is not None:
                draft.wait(request, full)
                continue
            end = running.decoding.get(request)
            if end is None:
                draft.grant(running.grant_chunk(request, 1))
            elif not running.needs_block(request) or self._make_room(draft, request, granted):
                draft.grant_decodes(running.grant_decodes({request: end}))
            else:
                continue
            granted.add(request)

    def _make_room(self, draft: PlanDraft, request: Request, granted: set[Request]) -> bool:
        """True when a block is free for the request; False when it was preempted itself."""
        running, pool = self._running, self._pool
        if not pool.num_free:
            running.release_drained_blocks(granted)
        while not pool.num_free:
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
        victim.num_computed_tokens = 0
        victim.num_preemptions += 1
        draft.preempted.append((victim, winner.request_id))
