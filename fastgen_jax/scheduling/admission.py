"""The last pass of a step: waiting requests that get a row, blocks and a first chunk."""

from __future__ import annotations

from fastgen_jax.kv.block_table import BlockTables
from fastgen_jax.kv.layout import blocks_for
from fastgen_jax.request import Request
from fastgen_jax.scheduling.config import SchedulerConfig
from fastgen_jax.scheduling.draft import PlanDraft
from fastgen_jax.scheduling.plan import Reason
from fastgen_jax.scheduling.running import RunningSet
from fastgen_jax.scheduling.waiting import WaitingQueue


class Admission:
    """Admits in the queue's order, smaller requests past one that waits for blocks.

    A request gets blocks for all its known tokens at once, and only if one more stays free for
    every running request that will still need one. One that ``max_admission_skips`` requests were
    admitted past is passed no more: nobody behind it is admitted until it fits.
    """

    __slots__ = ("_config", "_queue", "_running", "_tables", "_whole_prompts")

    def __init__(
        self,
        config: SchedulerConfig,
        queue: WaitingQueue,
        running: RunningSet,
        tables: BlockTables,
        *,
        whole_prompts: bool = False,
    ) -> None:
        self._config = config
        self._queue = queue
        self._running = running
        self._tables = tables
        self._whole_prompts = whole_prompts

    def run(self, draft: PlanDraft) -> None:
        """Admit what fits; record why the others that were looked at wait."""
        if not len(self._queue):
            return
        is_open = draft.rules.admits and draft.prompts_full_reason is None
        if is_open and self._running.has_free_row and not draft.preempted:
            self._walk(draft)
            for request in draft.admitted:
                self._queue.remove(request)
        else:
            self._refuse_first(draft)

    def _refuse_first(self, draft: PlanDraft) -> None:
        """Record why nobody is admitted, on the first in the queue.

        In a plan that preempts, the freed blocks belong to the decodes they were freed for: a
        newcomer must not slip in before the victim.
        """
        reason = draft.prompts_full_reason
        if not draft.rules.admits:
            reason = Reason.POLICY_RULES
        elif reason is None:
            reason = Reason.NO_BLOCKS if self._running.has_free_row else Reason.NO_ROW
        draft.wait(self._queue.first(), reason)

    def _walk(self, draft: PlanDraft) -> None:
        reserve = self._running.num_growing
        passed: list[Request] = []  # waits for blocks, in order
        is_barred = False
        for request in self._queue.in_order():
            if request.num_tokens != len(request.token_ids):
                draft.wait(request, Reason.IN_FLIGHT)  # preempted, its token not yet read
                continue
            reason = Reason.POLICY_ORDER if is_barred else self._full_reason(draft)
            if reason is not None:
                draft.wait(request, reason)
                return
            will_grow = self._will_grow(request)
            refusal = self._try_admit(draft, request, reserve + will_grow)
            if refusal is None:
                reserve += will_grow
                is_barred = self._count_skips(passed)
                continue
            draft.wait(request, refusal)
            if refusal is Reason.NO_BUDGET:
                return
            passed.append(request)
            if len(passed) >= self._config.max_admission_lookahead:
                return
            is_barred = request.num_skips >= self._config.max_admission_skips

    def _full_reason(self, draft: PlanDraft) -> Reason | None:
        return draft.prompts_full_reason or (None if self._running.has_free_row else Reason.NO_ROW)

    def _count_skips(self, passed: list[Request]) -> bool:
        """True when one of those just passed over has been passed often enough."""
        limit = self._config.max_admission_skips
        for request in passed:
            request.num_skips += 1
        return any(request.num_skips >= limit for request in passed)

    def _will_grow(self, request: Request) -> bool:
        size = self._config.block_size
        end = request.num_prompt_tokens + request.max_output_tokens
        return blocks_for(end - 1, size) > blocks_for(request.num_tokens, size)

    def _try_admit(self, draft: PlanDraft, request: Request, reserve: int) -> Reason | None:
        """None when the request was admitted and granted its first chunk, else why not."""
        size, pool = self._config.block_size, self._tables.pool
        cached = self._tables.find_prefix(request)
        num_remaining = request.num_tokens - len(cached) * size
        choose = draft.whole_chunk if self._whole_prompts else draft.next_chunk
        chunk = choose(num_remaining)
        if not chunk:
            return Reason.NO_BUDGET
        num_new = blocks_for(request.num_tokens, size) - len(cached)
        if pool.num_free - pool.num_free_among(cached) - num_new < reserve:
            return Reason.NO_BLOCKS
        self._running.admit(request, cached)
        draft.admitted.append(request)
        draft.grant_prompt(self._running.grant_chunk(request, chunk))
        return None
