"""The last steps of an engine, kept so that it can be asked why it did what it did."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastgen_jax.batching import StepShape
from fastgen_jax.errors import ConfigError, InvalidRequestError
from fastgen_jax.observe.columns import Columns, decision_columns, request_columns, step_columns
from fastgen_jax.observe.explain import Explanation, explain
from fastgen_jax.observe.observer import Observer
from fastgen_jax.observe.records import HistoryWindow, RequestTrace, StepTrace, timed
from fastgen_jax.request import Request
from fastgen_jax.scheduling.plan import StepPlan

if TYPE_CHECKING:
    from fastgen_jax.observe.timeline import Timeline

# Of requests that ended without a step between, a history could otherwise hold any number.
_ENDED_PER_STEP = 32


class StepHistory(Observer):
    """The last ``max_steps`` plans of one engine or simulation, and the requests of that time.

    Keeping a step costs about two microseconds: the plan is kept as it is, and everything else is
    made of it when somebody asks. 1000 steps hold 4 MiB with 32 rows and 12 MiB with 256, and more
    with long prompts: a kept plan holds its requests, some 44 bytes for each of their tokens.
    May be asked from any thread while the engine steps. A history given to a ``Simulator`` begins
    anew with each run.

    Raises:
        ConfigError: max_steps isn't positive.
    """

    def __init__(self, max_steps: int = 1000) -> None:
        if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
            raise ConfigError("must be an integer from 1 on", field="max_steps", value=max_steps)
        self.max_steps = max_steps
        self._lock = threading.Lock()
        self._has_shapes = False
        self._clear()

    def __len__(self) -> int:
        """Steps that are kept."""
        return len(self._steps)

    # --- What the engine tells ---------------------------------------------------------------

    def shapes_changed(self, shapes: Sequence[StepShape]) -> None:
        """Steps have shapes: this is no simulation."""
        self._has_shapes = True

    def submitted(self, requests: Sequence[Request]) -> None:
        """Keep requests from their arrival on."""
        with self._lock:
            if requests[0].arrival_index == 0:  # another run of a simulator
                self._clear()
            for request in requests:
                self._requests[request.request_id] = RequestTrace(request, self._next_step)

    def planned(self, plan: StepPlan) -> None:
        """Keep a plan that ran something or says why not."""
        self._next_step = plan.step_index + 1
        trace = StepTrace(plan)
        if plan.rows.requests:
            self._unread[plan.step_index] = trace
        elif not (plan.waits or plan.preempted):
            return
        with self._lock:
            steps = self._steps
            if len(steps) == self.max_steps:
                self._forget(steps.popleft())
            steps.append(trace)

    def launched(self, plan: StepPlan, shape: StepShape) -> None:
        """Note the shape."""
        self._unread[plan.step_index].shape = shape

    def read(self, plan: StepPlan, step: int, token_ids: Sequence[int], now: float) -> None:
        """Note when the result came."""
        self._unread[plan.step_index].read_times.append(now)
        if step + 1 == plan.chain_length:
            del self._unread[plan.step_index]

    def ended(self, request: Request, now: float) -> None:
        """Note when it ended; it is kept as long as its last step."""
        with self._lock:
            trace = self._requests.get(request.request_id)
            if trace is None:
                return
            trace.end_time = now
            trace.last_step = self._next_step - 1
            self._ended.append((trace.last_step, trace))
            if len(self._ended) > _ENDED_PER_STEP * self.max_steps:
                self._drop(self._ended.popleft()[1])

    # --- What it tells -----------------------------------------------------------------------

    def window(self, first: int | None = None, last: int | None = None) -> HistoryWindow:
        """The kept steps whose index is from ``first`` to ``last``, with their times.

        Raises:
            InvalidRequestError: ``first`` is above ``last``, or no such step is kept.
        """
        with self._lock:
            traces, requests = list(self._steps), tuple(self._requests.values())
            forgotten, is_cut = self._forgotten, self._is_cut
        if self._has_shapes:  # one whose launch is under way can't be told yet
            traces = [t for t in traces if t.shape is not None or t.plan.is_empty]
        times = [] if forgotten is None else forgotten.read_times
        steps = timed(traces, times[-1] if times else -math.inf)
        if first is not None or last is not None:
            low = -1 if first is None else first
            high = self._next_step if last is None else last
            kept = [step for step in steps if low <= step.index <= high]
            if not kept:
                raise self._no_steps(steps[0].index if steps else None, first, last)
            is_cut = is_cut or kept[0] is not steps[0]
            steps = kept
        return HistoryWindow(steps=tuple(steps), requests=requests, is_cut=is_cut)

    def decision_rows(self) -> Columns:
        """A row for every decision of every step; ``pandas.DataFrame`` takes it as it is.

        Columns: step, time (of the plan), request_id, num_tokens, reason, preempted_for, start
        (position of the first token; -1 where nothing ran), samples, chain_length.
        """
        return decision_columns(self.window())

    def step_rows(self) -> Columns:
        """A row for every step, times in seconds on the engine's clock.

        Columns: step, planned, start, end, seconds (NaN while in flight), shape_tokens,
        shape_rows, num_rows, decode_tokens, prefill_tokens, padding_tokens (these four of one step
        of a chain), chain_length, num_admitted, num_waits, num_preempted, num_waiting,
        num_free_blocks (the last two after the plan).
        """
        return step_columns(self.window())

    def request_rows(self) -> Columns:
        """A row for every request of the time that is kept; NaN where a time isn't known.

        Columns: request_id, arrival_time, first_scheduled_time, first_token_time, end_time,
        finish_reason, num_prompt_tokens, num_output_tokens, num_cached_tokens, num_chunks,
        num_waits (plans that passed it by), num_preemptions, mean_gap, slowest_gap (seconds).
        """
        return request_columns(self.window())

    def explain(self, request_id: str) -> Explanation:
        """In sentences, what became of a request and why; "3" stands for "3-0", "3-1" too.

        Raises:
            InvalidRequestError: the history doesn't have it.
        """
        window = self.window()
        found = [
            trace
            for trace in window.requests
            if trace.request_id == request_id or trace.request_id.startswith(f"{request_id}-")
        ]
        if not found:
            known = [trace.request_id for trace in window.requests]
            kept = f"{known[0]!r} to {known[-1]!r}" if known else "none"
            raise InvalidRequestError(
                f"the history doesn't have this request; it has {kept} of the last "
                f"{self.max_steps} steps",
                field="request_id",
                value=request_id,
                remedy="use RequestOutput.request_id; if it ended earlier, keep more steps "
                "(EngineConfig.step_history)",
            )
        return explain(window, found, request_id)

    def timeline(self, *, first: int | None = None, last: int | None = None) -> Timeline:
        """A picture of the steps with index ``first`` to ``last``, and of their requests.

        Raises:
            InvalidRequestError: no such step is kept.
        """
        from fastgen_jax.observe.timeline import Timeline

        return Timeline(self.window(first, last))

    # --- Inside ------------------------------------------------------------------------------

    def _clear(self) -> None:
        self._steps: deque[StepTrace] = deque()
        self._unread: dict[int, StepTrace] = {}
        self._requests: dict[str, RequestTrace] = {}
        self._ended: deque[tuple[int, RequestTrace]] = deque()
        self._next_step = 0
        self._forgotten: StepTrace | None = None
        self._is_cut = False

    def _forget(self, oldest: StepTrace) -> None:
        self._is_cut = True
        if not oldest.plan.is_empty:
            self._forgotten = oldest  # its result may still come
        first = oldest.plan.step_index
        while self._ended and self._ended[0][0] <= first:
            self._drop(self._ended.popleft()[1])

    def _drop(self, trace: RequestTrace) -> None:
        # A simulator or a bare scheduler may have used the id again.
        if self._requests.get(trace.request_id) is trace:
            del self._requests[trace.request_id]

    def _no_steps(
        self, oldest: int | None, first: int | None, last: int | None
    ) -> InvalidRequestError:
        kept = "no step yet" if oldest is None else f"steps {oldest} to {self._next_step - 1}"
        return InvalidRequestError(
            f"the history has {kept}",
            field="first, last",
            value=(first, last),
            remedy="ask for those; EngineConfig.step_history says how many are kept",
        )
