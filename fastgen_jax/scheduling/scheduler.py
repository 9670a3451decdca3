"""The scheduler: requests in, step plans out."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastgen_jax.errors import InvalidRequestError
from fastgen_jax.kv.block_table import BlockTables
from fastgen_jax.kv.layout import blocks_for
from fastgen_jax.kv.pool import BlockPool
from fastgen_jax.request import FinishReason, Request, RequestState
from fastgen_jax.scheduling.admission import Admission
from fastgen_jax.scheduling.config import SchedulerConfig
from fastgen_jax.scheduling.decode_pass import DecodePass
from fastgen_jax.scheduling.draft import PlanDraft
from fastgen_jax.scheduling.metrics import SchedulerMetrics
from fastgen_jax.scheduling.plan import Reason, StepPlan
from fastgen_jax.scheduling.policy import Policy, get_policy
from fastgen_jax.scheduling.policy_guard import PolicyGuard
from fastgen_jax.scheduling.prefill_pass import PrefillPass
from fastgen_jax.scheduling.rules import SPLITFUSE, StepRules
from fastgen_jax.scheduling.running import RunningSet
from fastgen_jax.scheduling.splitfuse import choose_budget
from fastgen_jax.scheduling.step_view import SchedulerView
from fastgen_jax.scheduling.waiting import WaitingQueue

__all__ = ["Scheduler", "SchedulerConfig"]


class Scheduler:
    """Decides what each step runs; owns row, blocks and counters of every live request.

    ``schedule`` runs ahead of the device: it counts a row's tokens as computed, and a sampled
    token as there, as soon as they are planned. The caller launches plans in order, reads results
    later, and reports each token with ``add_token`` and each end with ``finish`` or ``fail``.
    Because steps execute in order, blocks given back while a step in flight still writes them can
    be handed out by the next plan.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        policy: str | Policy = "fcfs",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` is what the policy sees, and that of the requests' arrival times."""
        self.config = config
        self.pool = BlockPool(
            config.num_blocks,
            config.block_size,
            enable_prefix_caching=config.enable_prefix_caching,
        )
        self._guard = guard = PolicyGuard(get_policy(policy))
        self._tables = BlockTables(self.pool)
        self._waiting = WaitingQueue(guard)
        self._running = RunningSet(config.max_num_seqs, self._tables)
        self._decodes = DecodePass(self._running, self.pool, guard)
        self._prefills = PrefillPass(self._running, self._tables, guard)
        self._admission = Admission(
            config,
            self._waiting,
            self._running,
            self._tables,
            whole_prompts=guard.whole_prompts,
        )
        self._view = SchedulerView(
            token_budget=config.token_budget,
            running=self._running,
            waiting=self._waiting,
            clock=clock,
        )
        self._clock = clock
        self._live: dict[str, Request] = {}
        self._block_size = config.block_size
        self._step_sizes = config.step_sizes
        self._num_submitted = 0
        self._num_steps = 0
        self._num_preemptions = 0

    @property
    def has_unfinished(self) -> bool:
        """True while a submitted request hasn't finished."""
        return bool(self._live)

    def successor(self, config: SchedulerConfig, policy: str | Policy) -> Scheduler:
        """A scheduler without requests that goes on with this one's clock and counts."""
        found = Scheduler(config, policy, clock=self._clock)
        found._num_submitted = self._num_submitted
        found._num_steps = self._num_steps
        found._num_preemptions = self._num_preemptions
        found.pool.index.num_queried_tokens = self.pool.index.num_queried_tokens
        found.pool.index.num_hit_tokens = self.pool.index.num_hit_tokens
        return found

    @property
    def composes_steps(self) -> bool:
        """True when the policy is asked before each step what it may hold."""
        return self._guard.composes_steps

    @property
    def num_running(self) -> int:
        """Requests that hold a device row."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests queued."""
        return len(self._waiting)

    def use_step_sizes(self, sizes: tuple[int, ...]) -> None:
        """Fill steps of these sizes from now on: all that is compiled so far, ascending."""
        self._step_sizes = sizes

    def submit(self, request: Request) -> None:
        """Queue a request, or raise InvalidRequestError when it could never run.

        Sets ``arrival_index`` to the order of submission, and lowers ``max_output_tokens`` to
        what the model's length and the pool can hold for this request alone: so it can always
        end, with LENGTH at the latest. The last sampled token is never computed and needs no slot
        in the pool.
        """
        self._refuse_impossible(request)
        num_prompt = request.num_prompt_tokens
        request.max_output_tokens = min(
            request.max_output_tokens,
            self.config.max_model_len - num_prompt,
            self.config.usable_tokens - num_prompt + 1,
        )
        request.arrival_index = self._num_submitted
        self._num_submitted += 1
        self._tables.extend_hashes(request)
        self._live[request.request_id] = request
        self._waiting.add(request)

    def schedule(self, *, max_chained_steps: int | None = None) -> StepPlan:
        """The next step's plan; the requests' counters already stand where it ends.

        Empty when nothing can run before results are read, or nothing is left.
        ``max_chained_steps`` stands in for the config's, for one who knows that so many steps from
        now on nobody comes or ends.
        """
        self._view.begin()
        rules = self._guard.compose(self._view)
        longest_chain = self._max_chain_length(max_chained_steps)
        draft = self._fill(rules, longest_chain)
        is_stuck = draft.is_empty and not draft.preempted and not self._running.draining
        if is_stuck and rules is not SPLITFUSE:
            draft = self._fill(SPLITFUSE, longest_chain)
        for victim, _ in draft.preempted:
            self._waiting.add(victim)
        self._num_preemptions += len(draft.preempted)
        self._num_steps += 1
        plan = draft.build(
            step_index=self._num_steps - 1,
            time=self._view.now,
            # An empty plan never reaches the device, so its changes wait for the next.
            table_changes=() if draft.is_empty else self._tables.take_changes(),
            num_waiting=len(self._waiting),
            num_free_blocks=self.pool.num_free,
        )
        self._view.made(plan)
        return plan

    def add_token(self, request: Request, token_id: int) -> None:
        """Append a sampled token that was read; its block becomes findable when it is full.

        One of a live request that fills no block needs nothing but to be appended.
        """
        token_ids = request.token_ids
        if len(token_ids) >= request.num_tokens:
            raise ValueError(f"request {request.request_id!r} awaits no token")
        token_ids.append(token_id)
        if not len(token_ids) % self._block_size:
            self._tables.append_known(request)

    def finish(
        self, request: Request, reason: FinishReason, stop_reason: int | str | None = None
    ) -> None:
        """End a live request in whatever state it is; its row and blocks are free at once.

        Tokens still in flight no longer count, and ``add_token`` refuses them.
        """
        if self._live.get(request.request_id) is not request:
            raise ValueError(f"request {request.request_id!r} isn't live")
        del self._live[request.request_id]
        if request.state is RequestState.RUNNING:
            self._running.vacate(request)
            self._waiting.forget_order()
        else:
            self._waiting.remove(request)
        request.state = RequestState.FINISHED
        request.num_tokens = len(request.token_ids)
        request.finish_reason = reason
        request.stop_reason = stop_reason

    def abort(self, request_id: str) -> Request | None:
        """The request, ended with ABORT; None when no live request has this id.

        Tokens of it that are still in flight must be ignored: ``is_finished`` tells.
        """
        request = self._live.get(request_id)
        if request is not None:
            self.finish(request, FinishReason.ABORT)
        return request

    def fail(self, request: Request, message: str) -> None:
        """End a request with ERROR; nobody will share the blocks it computed or shared."""
        self.finish(request, FinishReason.ERROR)
        request.error = message
        self._tables.forget(request)

    def reset_prefix_cache(self) -> None:
        """Share no block that was computed before now; running requests keep theirs."""
        self.pool.reset_prefix_cache()

    def metrics(self) -> SchedulerMetrics:
        """Counts as of now."""
        pool = self.pool
        return SchedulerMetrics(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_blocks=pool.num_usable,
            num_free_blocks=pool.num_free,
            num_cached_blocks=pool.num_cached,
            num_steps=self._num_steps,
            num_preemptions=self._num_preemptions,
            num_queried_tokens=pool.index.num_queried_tokens,
            num_hit_tokens=pool.index.num_hit_tokens,
        )

    def check(self) -> None:
        """Raise AssertionError unless every live request is in one place with its blocks."""
        running, waiting = self._running, self._waiting
        assert len(running) + len(waiting) == len(self._live), "a request is lost or double"
        rows = [r.row for r in self._live.values() if r in running]
        assert len(set(rows)) == len(rows), "two running requests share a row"
        assert all(0 <= row < self.config.max_num_seqs for row in rows), "a row doesn't exist"
        for request in self._live.values():
            is_running = request.state is RequestState.RUNNING
            assert is_running == (request in running), f"{request.request_id} is misplaced"
            assert is_running != (request in waiting), f"{request.request_id} is misplaced"
            assert is_running or (not request.block_ids and request.row == -1)
        self.pool.check([request.block_ids for request in self._live.values()])

    def _fill(self, rules: StepRules, longest_chain: int) -> PlanDraft:
        """A draft with all that may run; the passes' order is the rules' only say in who does."""
        config = self.config
        draft = PlanDraft(
            self._budget(rules), config.max_step_rows, config.chunk_multiple, rules=rules
        )
        for request in self._running.draining:
            draft.wait(request, Reason.IN_FLIGHT)
        if rules.stalls_decodes:
            self._run_prompts(draft)
            self._decodes.run_unless_stalled(draft, longest_chain)
        else:
            self._decodes.run(draft, longest_chain)
            self._run_prompts(draft)
        return draft

    def _run_prompts(self, draft: PlanDraft) -> None:
        self._prefills.run(draft)
        self._admission.run(draft)
        self._prefills.top_up(draft)

    def _budget(self, rules: StepRules) -> int:
        config, running = self.config, self._running
        if not self._step_sizes:
            return config.token_budget
        if self._guard.whole_prompts or rules.stalls_decodes:
            # A smaller size could cut a prompt, or count decodes that don't run.
            return self._step_sizes[-1]
        num_decodes = len(running.decoding)
        demand = num_decodes + sum(
            request.num_tokens - request.num_computed_tokens for request in running.prefilling
        )
        if running.has_free_row:
            demand += self._waiting.demand(config.token_budget - demand)
        return choose_budget(
            self._step_sizes,
            demand=demand,
            num_decodes=num_decodes,
            overhead=config.step_overhead,
        )

    def _max_chain_length(self, known: int | None) -> int:
        """More than one step only of decodes, and only while nobody waits for a place in a step.

        No row needs the host between two steps: the device knows the tokens, and what is drawn
        after a stop is dropped. But a chain can't be joined, nor left.
        """
        num_decodes = len(self._running.decoding)
        if not num_decodes or self._waiting or self._running.prefilling:
            return 1
        if known is not None:
            return known
        steps, tokens = self.config.max_chained_steps, self.config.max_chained_tokens
        return steps if tokens is None else max(1, min(steps, tokens // num_decodes))

    def check_fits(self, num_prompt: int) -> None:
        """Nothing, when a prompt of this length can ever run; else InvalidRequestError."""
        config = self.config
        if self._guard.whole_prompts and num_prompt > config.token_budget:
            raise InvalidRequestError(
                "the policy runs prompts whole, in one step of at most "
                f"token_budget={config.token_budget} tokens",
                field="num_prompt_tokens",
                value=num_prompt,
                remedy="raise token_budget, or take a policy that splits prompts, such as fcfs",
            )
        if not num_prompt:
            raise InvalidRequestError(
                "is empty", field="prompt_token_ids", value=(), remedy="give at least one token"
            )
        if num_prompt + 1 > config.max_model_len:
            raise InvalidRequestError(
                f"the prompt and one output token need {num_prompt + 1} positions, "
                f"max_model_len is {config.max_model_len}",
                field="num_prompt_tokens",
                value=num_prompt,
                remedy="shorten the prompt or raise max_model_len",
            )
        needed = blocks_for(num_prompt + 1, config.block_size)
        if needed > self.pool.num_usable:
            raise InvalidRequestError(
                f"the prompt and one output token need {needed} blocks of {config.block_size} "
                f"tokens, the pool has {self.pool.num_usable}",
                field="num_prompt_tokens",
                value=num_prompt,
                remedy="shorten the prompt or give the cache more memory (num_kv_blocks)",
            )

    def _refuse_impossible(self, request: Request) -> None:
        if request.request_id in self._live:
            raise InvalidRequestError(
                "belongs to a request that is still live",
                field="request_id",
                value=request.request_id,
                remedy="use another id, or wait for the first to finish",
            )
        if request.max_output_tokens < 1:
            raise InvalidRequestError(
                "must be at least 1", field="max_output_tokens", value=request.max_output_tokens
            )
        self.check_fits(request.num_prompt_tokens)
