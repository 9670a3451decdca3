"""The loop: schedule, pack, launch, and read the step before; two steps in flight."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from fastgen_jax.batching import StepPacker, StepResults, StepShape
from fastgen_jax.completion import Completion
from fastgen_jax.errors import ConfigError, EngineClosedError
from fastgen_jax.intake import Intake
from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.live_completions import LiveCompletions
from fastgen_jax.metrics import EngineMetrics, StepCounters
from fastgen_jax.observe.observer import Observer
from fastgen_jax.prompt_tokens import plain_token_ids
from fastgen_jax.request import FinishReason, Request, RequestState
from fastgen_jax.sampling.row_limits import RowLimits
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.scheduling.plan import StepPlan
from fastgen_jax.scheduling.policy import Policy
from fastgen_jax.scheduling.scheduler import Scheduler
from fastgen_jax.step_executor import PendingStep, StepExecutor
from fastgen_jax.text import Tokenizer


@dataclass(frozen=True, slots=True)
class _StepInFlight:
    plan: StepPlan
    watched: np.ndarray  # [C, R] of each chained step's rows, those to look at anyway
    pending: PendingStep


class Engine:
    """Requests in, completions out, a step at a time; owns no device memory of its own.

    A step is planned before the tokens of the one before it are read: the scheduler counts them,
    the device knows them. What ended meanwhile has run one token too far, which is dropped.
    """

    def __init__(
        self,
        *,
        executor: StepExecutor,
        scheduler: Scheduler,
        packer: StepPacker,
        limits: RowLimits,
        tokenizer: Tokenizer | None = None,
        eos_token_ids: Sequence[int] = (),
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.scheduler = scheduler
        self.counters = StepCounters()
        self._on_first_token: Callable[[], None] | None = None
        self._shapes_lock = threading.Lock()
        self._executor = executor
        self._packer = packer
        self._intake = Intake(limits, tokenizer=tokenizer, eos_token_ids=eos_token_ids, seed=seed)
        self._clock = clock
        self._observers = tuple(observers)
        self._new_shapes: list[StepShape] = []  # of other threads, until the next step
        self._live = LiveCompletions(
            max_num_seqs=limits.max_num_seqs,
            vocab_size=limits.vocab_size,
            block_size=scheduler.config.block_size,
        )
        self._in_flight: deque[_StepInFlight] = deque()
        self._is_waiting = False
        self._failure: BaseException | None = None
        for observer in self._observers:
            observer.shapes_changed(packer.shapes)

    @property
    def has_work(self) -> bool:
        """True while a request is unfinished or a step is in flight."""
        return self.scheduler.has_unfinished or bool(self._in_flight)

    def use_shapes(self, shapes: Sequence[StepShape]) -> None:
        """Run steps of these shapes only, from now on; not while another thread steps."""
        self._packer.use_shapes(shapes)
        self.scheduler.use_step_sizes(self._step_sizes(self.scheduler.config.token_budget))
        for observer in self._observers:
            observer.shapes_changed(self._packer.shapes)

    def add_shape(self, shape: StepShape) -> None:
        """Run steps of this shape too, from the next step on; from any thread."""
        with self._shapes_lock:
            self._new_shapes.append(shape)

    def use_policy(self, policy: str | Policy, *, token_budget: int | None = None) -> None:
        """Schedule by another policy from now on, with what is compiled and an empty prefix cache.

        ``token_budget`` bounds a step's tokens; None: as many as the largest compiled step has.

        Raises:
            ConfigError: a request is unfinished, or no compiled step holds the budget.
        """
        self._check_alive()
        if self.scheduler.has_unfinished:
            raise ConfigError(
                "can't be changed while requests are unfinished",
                field="policy",
                value=policy,
                remedy="wait for them, or abort them",
            )
        while self._in_flight:  # of requests that have ended
            self.step()
        largest = self._packer.shapes[-1].num_tokens
        budget = largest if token_budget is None else token_budget
        if budget > largest:
            raise ConfigError(
                f"is more than the {largest} tokens of the largest compiled step",
                field="token_budget",
                value=budget,
                remedy="build the engine with that token_budget, and lower it here",
            )
        old = self.scheduler.config
        sizes = self._step_sizes(budget) if old.step_sizes else ()
        config = replace(old, token_budget=budget, step_sizes=sizes)
        self.scheduler = self.scheduler.successor(config, policy)
        for observer in self._observers:
            observer.policy_changed(policy, budget)

    def after_first_token(self, work: Callable[[], None]) -> None:
        """Call ``work`` once, after the first token: what nobody waiting for it should pay."""
        self._on_first_token = work

    def run_late_work(self) -> None:
        """Do now what ``after_first_token`` left for later; nothing the second time."""
        work, self._on_first_token = self._on_first_token, None
        if work is not None:
            work()

    def check(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Nothing, when ``submit`` would take the request.

        Raises:
            InvalidRequestError: names the field, its value and the remedy.
        """
        self._check_alive()
        self._intake.check(plain_token_ids(prompt_token_ids), params, self.scheduler)

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        targets: LatencyTargets | None = None,
    ) -> list[Completion]:
        """The n completions of a prompt, queued; ``step`` makes them grow.

        ``targets`` are what the policy sees of each completion.

        Raises:
            InvalidRequestError: the request can't be served; nothing was queued.
        """
        self._check_alive()
        requests = self._intake.requests(
            plain_token_ids(prompt_token_ids),
            params,
            self.scheduler,
            arrival_time=self._clock(),
            priority=priority,
            cache_salt=cache_salt,
            targets=targets or LatencyTargets(),
        )
        completions: list[Completion] = []
        for index, request in enumerate(requests):
            self.scheduler.submit(request)
            completions.append(self._intake.completion(request, index))
            self._live.add(completions[-1])
        for observer in self._observers:
            observer.submitted(requests)
        return completions

    def step(self) -> list[Completion]:
        """The completions that got tokens or ended, after planning one step and reading another.

        Raises:
            EngineClosedError: a step failed; every request in the engine ended with it.
        """
        self._check_alive()
        try:
            if self._new_shapes:
                self._take_new_shapes()
            is_launched = self._launch(self.scheduler.schedule())
            touched: list[Completion] = []
            # More than one is left only by an interrupt that came while a result was awaited.
            while len(self._in_flight) > is_launched:
                results = self._wait(self._in_flight[0])
                launched = self._in_flight.popleft()
                for index in range(launched.plan.chain_length):
                    touched += self._read(launched, index, results.step(index))
                if launched.plan.chain_length > 1:
                    touched = list(dict.fromkeys(touched))
            if touched and self._on_first_token is not None:
                self.run_late_work()
            return touched
        except Exception as error:
            self._fail_all(error)
            raise EngineClosedError(
                f"a step failed and ended all requests: {_describe(error)}",
                remedy="build a new LLM; the cause is in the chained exception",
            ) from error
        except BaseException as error:
            # An interrupt while waiting changes nothing: the next call waits again. Anywhere else
            # plans and device may disagree, and tokens could be wrong without a sign.
            if not self._is_waiting:
                self._fail_all(error)
            raise
        finally:
            self._is_waiting = False

    def abort(self, request: Request) -> None:
        """End a request in whatever state it is; a finished one stays as it is."""
        if request in self._live:
            self.scheduler.abort(request.request_id)
            self._end(request)

    def metrics(self) -> EngineMetrics:
        """Counts since the engine started and gauges of this moment."""
        return self.counters.snapshot(self.scheduler.metrics())

    def close(self) -> None:
        """Abort what is unfinished and free the device memory."""
        for request in self._live:
            self.abort(request)
        self._in_flight.clear()
        self._executor.close()
        self._failure = self._failure or EngineClosedError("the engine was closed")
        observers, self._observers = self._observers, ()
        for observer in observers:
            observer.closed()

    def _step_sizes(self, budget: int) -> tuple[int, ...]:
        """What plans may fill: the compiled sizes, cut at the budget."""
        sizes = [shape.num_tokens for shape in self._packer.shapes]
        return (*(size for size in sizes if size < budget), min(budget, sizes[-1]))

    def _launch(self, plan: StepPlan) -> bool:
        """True when the plan had something to run."""
        self.counters.count_plan(plan)
        for observer in self._observers:
            observer.planned(plan)
        if plan.is_empty:
            return False
        for request in plan.admitted:
            self._executor.write_row(request.row, self._intake.pack_row(request))
            completion = self._live[request]
            self._live.admit(completion)
            if completion.first_scheduled_time is None:
                completion.first_scheduled_time = self._clock()
        shape = self._packer.shape_for(plan)
        pending = self._executor.launch(shape, self._packer.pack(plan, shape))
        self.counters.count_step(plan, shape)
        self._in_flight.append(_StepInFlight(plan, self._live.watched(plan), pending))
        for observer in self._observers:
            observer.launched(plan, shape)
        return True

    def _take_new_shapes(self) -> None:
        with self._shapes_lock:
            shapes, self._new_shapes = self._new_shapes, []
        self.use_shapes((*self._packer.shapes, *shapes))

    def _wait(self, step: _StepInFlight) -> StepResults:
        self._is_waiting = True
        results = step.pending.read()
        self._is_waiting = False
        return results

    def _read(self, launched: _StepInFlight, step: int, results: StepResults) -> list[Completion]:
        """The completions that got tokens or ended in one of the steps that were launched.

        Most rows' tokens are appended and no more.
        """
        rows = launched.plan.rows
        now = self._clock()
        for observer in self._observers:
            observer.read(launched.plan, step, results.token_ids, now)
        drawn = results.field("token_ids")[: len(rows)]
        closely = np.flatnonzero(launched.watched[step] | self._live.may_stop(drawn)).tolist()
        completions = list(self._live.of(rows.requests))  # None: ended while this was in flight
        touched: list[Completion] = []
        for index in closely:
            completion, completions[index] = completions[index], None
            if completion is None:
                continue
            if self._read_closely(completion, launched.plan, index, results, now):
                touched.append(completion)
        for completion, token_id in zip(completions, results.token_ids, strict=False):
            if completion is not None:
                completion.request.token_ids.append(token_id)
                touched.append(completion)
        return touched

    def _read_closely(
        self, completion: Completion, plan: StepPlan, index: int, results: StepResults, now: float
    ) -> bool:
        """True when the completion got a token or ended: all that one row of a step can bring."""
        request, start, num_tokens, samples = plan.rows[index]
        if completion.wants_prompt_logprobs and start < request.num_prompt_tokens - 1:
            first = int(plan.rows.lengths[:index].sum())
            completion.add_prompt_logprobs(results, first, start, num_tokens)
        if not samples:
            return False
        token_id = results.token_ids[index]
        if token_id < 0:
            self.scheduler.fail(request, "the model's logits hold NaN or no finite value")
            self._end(request, now)
            return True
        self.scheduler.add_token(request, token_id)
        if completion.first_token_time is None:
            completion.first_token_time = now
        if completion.wants_logprobs:
            completion.add_logprobs(results, index, token_id)
        end = completion.end_after(token_id)
        if end is not None:
            self.scheduler.finish(request, end.reason, end.stop_reason)
            self._end(request, now)
        return True

    def _end(self, request: Request, now: float | None = None) -> None:
        completion = self._live.remove(request)
        completion.finished_time = self._clock() if now is None else now
        self._intake.forget(request)
        self.counters.count_end(completion)
        for observer in self._observers:
            observer.ended(request, completion.finished_time)

    def _fail_all(self, error: BaseException) -> None:
        self._failure = error
        self._in_flight.clear()
        for observer in self._observers:
            observer.failed(_describe(error))
        message = f"the engine failed: {_describe(error)}"
        for request in self._live:
            # A scheduler that broke off in the middle may not know its own requests any more.
            with suppress(Exception):
                self.scheduler.fail(request, message)
            if not request.is_finished:
                request.state = RequestState.FINISHED
                request.count_alone()
                request.num_tokens = len(request.token_ids)
                request.finish_reason = FinishReason.ERROR
                request.error = message
            self._end(request)

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise EngineClosedError(
                f"the engine has stopped: {_describe(self._failure)}", remedy="build a new LLM"
            )


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__
