"""A stand-in for engine and device: runs plans on a model of the cache and checks every claim."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from fastgen_jax.errors import InvalidRequestError
from fastgen_jax.request import FinishReason, Request, RequestState
from fastgen_jax.scheduling.plan import Reason, StepPlan
from fastgen_jax.scheduling.policy import Policy
from fastgen_jax.scheduling.scheduler import Scheduler, SchedulerConfig

NUM_DRAWN_IDS = 2


def next_token(seed: int, token_ids: list[int]) -> int:
    """The model: a token that depends on all before it and on the seed."""
    state = seed
    for token_id in token_ids:
        state = (state * 31 + token_id + 7) % 1_000_003
    return state % NUM_DRAWN_IDS


def expected_output(request: Request) -> list[int]:
    """What a request must produce when nothing is lost."""
    token_ids = list(request.prompt_token_ids)
    for _ in range(request.max_output_tokens):
        token_ids.append(next_token(request.seed, token_ids))
    return token_ids[len(request.prompt_token_ids) :]


class FakeDevice:
    """Launches plans at once, as a device would later, and gives results when they are read.

    ``slots`` maps (block, slot) to all that its keys and values depend on: salt and history.
    """

    def __init__(self, config: SchedulerConfig, policy: str | Policy = "fcfs") -> None:
        self.config = config
        self.scheduler = Scheduler(config, policy)
        self.slots: dict[tuple[int, int], tuple[str | None, tuple[int, ...]]] = {}
        self.histories: dict[str, list[int]] = {}
        self.in_flight: deque[list[tuple[Request, int]]] = deque()
        self.requests: dict[str, Request] = {}
        self.stop: Callable[[Request], bool] = lambda request: False

    def submit(self, request: Request) -> bool:
        """True when the scheduler took the request."""
        try:
            self.scheduler.submit(request)
        except InvalidRequestError:
            assert request.request_id not in self.scheduler._live or self._is_duplicate(request)
            return False
        request.seed = request.arrival_index
        self.requests[request.request_id] = request
        self.histories[request.request_id] = list(request.prompt_token_ids)
        return True

    def _is_duplicate(self, request: Request) -> bool:
        return self.scheduler._live[request.request_id] is not request

    def step(self) -> StepPlan:
        """Schedule, check the plan, run it; its results wait in ``in_flight``."""
        before = self._running()
        plan = self.scheduler.schedule()
        self.check_plan(plan, before)
        sampled: list[tuple[Request, int]] = []
        for step in range(plan.chain_length):
            self._write(plan, step)
            self._read_back(plan, step)
            sampled += self._sample(plan, step)
        self.in_flight.append(sampled)
        self.scheduler.check()
        return plan

    def read(self) -> list[Request]:
        """Read the oldest step in flight; the requests that ended."""
        ended: list[Request] = []
        for request, token_id in self.in_flight.popleft():
            if request.is_finished:
                continue
            self.scheduler.add_token(request, token_id)
            if self.stop(request):
                self.scheduler.finish(request, FinishReason.STOP, token_id)
                ended.append(request)
            elif request.num_output_tokens == request.max_output_tokens:
                self.scheduler.finish(request, FinishReason.LENGTH)
                ended.append(request)
        self.scheduler.check()
        return ended

    def drain(self, max_steps: int = 3000, latency: int = 1) -> list[StepPlan]:
        """Run till nothing is unfinished; fails when that takes too long."""
        plans: list[StepPlan] = []
        while self.scheduler.has_unfinished:
            plans.append(self.step())
            while len(self.in_flight) > (latency if plans[-1].rows else 0):
                self.read()
            assert len(plans) < max_steps, "requests starve"
        return plans

    def check_plan(self, plan: StepPlan, running_before: list[Request]) -> None:
        """Every limit and every bookkeeping claim of a plan."""
        config = self.config
        assert sum(row.num_tokens for row in plan.rows) == plan.num_tokens <= config.token_budget
        assert len(plan.rows) <= config.max_step_rows
        assert self.scheduler.num_running <= config.max_num_seqs
        ran = [row.request for row in plan.rows]
        assert all(row.num_tokens > 0 for row in plan.rows)
        assert len(set(ran)) == len(ran), "a request runs twice in a step"
        singles = [row.num_tokens == 1 for row in plan.rows]
        assert singles == sorted(singles, reverse=True), "single tokens don't come first"
        decided = ran + [r for r, _ in plan.waits] + [r for r, _ in plan.preempted]
        assert len(set(decided)) == len(decided), "a request has two reasons"
        assert set(running_before) <= set(decided), "a running request has no reason"
        assert all(request in ran for request in plan.admitted)
        assert not set(plan.admitted) & {victim for victim, _ in plan.preempted}
        assert 1 <= plan.chain_length <= config.max_chained_steps
        if plan.chain_length > 1:
            tokens = plan.chain_length * plan.num_tokens
            assert tokens <= (config.max_chained_tokens or tokens), "a chain of too many tokens"
            assert not self.scheduler.num_waiting, "somebody waits for a chain's end"
            assert plan.num_decode_tokens == plan.num_tokens, "a chain of more than decodes"
        if self.scheduler.num_waiting > len(plan.preempted):
            assert any(r.state is RequestState.WAITING for r, _ in plan.waits), "nobody told why"
        decodes = [d for d in plan.decisions if d.reason is Reason.DECODE]
        assert plan.num_decode_tokens == len(decodes)
        for request in plan.admitted:
            row = plan.rows[ran.index(request)]
            assert row.start <= len(request.token_ids) - 1, "the last token isn't computed"
            assert row.start + row.num_tokens <= len(request.token_ids), "admitted unread"

    def _running(self) -> list[Request]:
        return [r for r in self.requests.values() if r.state is RequestState.RUNNING]

    def _write(self, plan: StepPlan, step: int = 0) -> None:
        """All writes of a step come before its reads, as in every layer of a model."""
        size = self.config.block_size
        written: set[tuple[int, int]] = set()
        for row in plan.rows:
            history = self.histories[row.request.request_id]
            for position in range(row.start + step, row.start + step + row.num_tokens):
                place = (row.request.block_ids[position // size], position % size)
                assert place not in written, "two rows write one slot"
                assert place[0] != 0, "a row writes the null block"
                written.add(place)
                self.slots[place] = (row.request.cache_salt, tuple(history[: position + 1]))

    def _read_back(self, plan: StepPlan, step: int = 0) -> None:
        size = self.config.block_size
        for row in plan.rows:
            request = row.request
            history = self.histories[request.request_id]
            for position in range(row.start + step + row.num_tokens):
                place = (request.block_ids[position // size], position % size)
                expected = (request.cache_salt, tuple(history[: position + 1]))
                assert self.slots.get(place) == expected, "a row reads another one's cache"

    def _sample(self, plan: StepPlan, step: int) -> list[tuple[Request, int]]:
        sampled: list[tuple[Request, int]] = []
        for row in plan.rows:
            history = self.histories[row.request.request_id]
            assert row.samples == (row.start + step + row.num_tokens == len(history))
            if row.samples:
                history.append(next_token(row.request.seed, history))
                sampled.append((row.request, history[-1]))
        return sampled
