"""The second pass of a step: chunks for the prompts that are already running."""

from __future__ import annotations

from fastgen_jax.kv.block_table import BlockTables
from fastgen_jax.scheduling.draft import PlanDraft
from fastgen_jax.scheduling.plan import Reason
from fastgen_jax.scheduling.policy_guard import PolicyGuard
from fastgen_jax.scheduling.running import RunningSet


class PrefillPass:
    """Slices running prompts in the policy's order to fill what the decodes left."""

    __slots__ = ("_guard", "_running", "_tables")

    def __init__(self, running: RunningSet, tables: BlockTables, guard: PolicyGuard) -> None:
        self._running = running
        self._tables = tables
        self._guard = guard

    def run(self, draft: PlanDraft) -> None:
        """Grant chunks to running prompts; those that get none wait.

        Prompts with a single token left have had their turn among the decodes.
        """
        pending = [
            request
            for request in self._running.prefilling
            if request.num_tokens - request.num_computed_tokens > 1
        ]
        full = draft.prompts_full_reason
        if full is not None:
            for request in pending:
                draft.wait(request, full)
            return
        for request in self._guard.order(pending):
            full = draft.prompts_full_reason
            if full is None:
                self._tables.adopt_shared(request)
                chunk = draft.next_chunk(request.num_tokens - request.num_computed_tokens)
                if chunk:
                    draft.grant_prompt(self._running.grant_chunk(request, chunk))
                    continue
            draft.wait(request, full or Reason.NO_BUDGET)

    def top_up(self, draft: PlanDraft) -> None:
        """Give the budget that rounding freed and nobody took back to the chunk that was cut."""
        num_tokens = draft.num_to_top_up
        if draft.cut is not None and num_tokens:
            row = draft.chunks[draft.cut]
            draft.chunks[draft.cut] = self._running.extend_chunk(row, num_tokens)
            draft.top_up(num_tokens)
