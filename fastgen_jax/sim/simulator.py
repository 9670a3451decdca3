"""The engine's loop without an engine: the real scheduler under a virtual clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.errors import ConfigError, InvalidRequestError
from fastgen_jax.observe.observer import Observer
from fastgen_jax.request import FinishReason, Request
from fastgen_jax.scheduling.plan import StepPlan
from fastgen_jax.scheduling.policy import Policy
from fastgen_jax.scheduling.scheduler import Scheduler, SchedulerConfig
from fastgen_jax.sim.arrival import Arrival
from fastgen_jax.sim.clock import VirtualClock
from fastgen_jax.sim.costs.model import CostModel
from fastgen_jax.sim.inbox import Inbox
from fastgen_jax.sim.live import LiveRequest
from fastgen_jax.sim.load import StepLoad
from fastgen_jax.sim.result import SimulatedStep, SimulationResult
from fastgen_jax.sim.workloads.workload import Workload


class _Launched(NamedTuple):
    plan: StepPlan
    ends: list[float]  # of each step of the chain
    first: int = 0  # of its steps
    is_quiet: bool = False  # nobody ends in it


class Simulator:
    """Runs a workload through a scheduler and a cost model; each ``run`` begins anew.

    A pass of the loop is one of ``Engine.step``: what has come is submitted, a plan is made and
    launched, and results are read till as many launches are in flight as before. So the plans of an
    engine with the same arrivals before the same steps are the same.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        cost: CostModel,
        *,
        policy: str | Callable[[], Policy] = "fcfs",
        launches_in_flight: int = 2,
        host_seconds: float = 0.0,
        observers: Sequence[Observer] = (),
        merge_decodes: bool = True,
    ) -> None:
        """A simulator of this engine.

        Args:
            config: the scheduler's limits.
            cost: how long steps take.
            policy: a name, or what makes a policy anew for each run.
            launches_in_flight: 2 as in the engine, which plans a step while the one before runs; 1
                for an engine that waits for a step before it plans the next.
            host_seconds: from one plan to its launch; hidden behind a step that still runs.
            observers: are told of everything but shapes, of which a simulation has none.
            merge_decodes: plan steps of the same decodes, during which nobody comes or ends, as
                one chain, which is many times faster while few requests run. The records are the
                same, the plans fewer. Only where the policy doesn't compose steps itself, without
                host_seconds, and with a cost that never falls as contexts grow.
        """
        if launches_in_flight not in (1, 2):
            raise ConfigError(
                "must be 1 or 2", field="launches_in_flight", value=launches_in_flight
            )
        self.config = config
        self._cost = cost
        self._policy = policy
        self._most_in_flight = launches_in_flight
        self._host_seconds = host_seconds
        self._observers = tuple(observers)
        self._merges_decodes = merge_decodes

    def run(self, workload: Workload) -> SimulationResult:
        """The run from the first arrival till nobody comes and nothing is left."""
        policy = self._policy if isinstance(self._policy, str) else self._policy()
        clock = VirtualClock()
        scheduler = Scheduler(self.config, policy, clock=clock)
        can_merge = not (
            scheduler.composes_steps or self._host_seconds or self.config.max_chained_steps > 1
        )
        run = _Run(
            scheduler=scheduler,
            clock=clock,
            inbox=Inbox(workload),
            cost=self._cost,
            most_in_flight=self._most_in_flight,
            host_seconds=self._host_seconds,
            observers=self._observers,
            merges_decodes=self._merges_decodes and can_merge,
        )
        return run.to_the_end()


class _Run:
    """One run's state."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        clock: VirtualClock,
        inbox: Inbox,
        cost: CostModel,
        most_in_flight: int,
        host_seconds: float,
        observers: Sequence[Observer],
        merges_decodes: bool,
    ) -> None:
        self.scheduler = scheduler
        self.clock = clock
        self.inbox = inbox
        self.cost = cost
        self.most_in_flight = most_in_flight
        self.host_seconds = host_seconds
        self.observers = observers
        self.merges_decodes = merges_decodes
        self.last: StepPlan | None = None
        self.foreseen_rows = 0
        self.live: dict[Request, LiveRequest] = {}
        self.in_flight: deque[_Launched] = deque()
        self.device_free = 0.0
        self.num_arrived = 0
        self.records: list[RequestRecord] = []
        self.steps: list[SimulatedStep] = []
        self.refused: list[tuple[Arrival, InvalidRequestError]] = []

    def to_the_end(self) -> SimulationResult:
        """Loop till nothing is left."""
        while True:
            self._receive()
            if self.scheduler.has_unfinished or self.in_flight:
                self._step()
                continue
            coming = self.inbox.next_time
            if coming is None:
                break
            self.clock.advance_to(coming)
        return SimulationResult(
            records=tuple(self.records),
            steps=tuple(self.steps),
            refused=tuple(self.refused),
            scheduler=self.scheduler.metrics(),
        )

    def _receive(self) -> None:
        now = self.clock.now
        for arrival in self.inbox.take(now):
            live = LiveRequest(arrival, self.num_arrived)
            self.num_arrived += 1
            try:
                self.scheduler.submit(live.request)
            except InvalidRequestError as error:
                self.refused.append((arrival, error))
                self.inbox.ended(arrival, arrival.prompt_token_ids, now)
                continue
            # The model's length or the pool may end it earlier than its own tokens.
            live.num_left = min(arrival.num_output_tokens, live.request.max_output_tokens)
            self.live[live.request] = live
            for observer in self.observers:
                observer.submitted((live.request,))

    def _step(self) -> None:
        quiet = self._quiet_steps()
        plan = self.scheduler.schedule(max_chained_steps=None if quiet is None else len(quiet))
        self.last = plan
        for observer in self.observers:
            observer.planned(plan)
        is_launched = not plan.is_empty
        if is_launched:
            self._launch(plan, quiet or [])
        elif not self.in_flight:
            raise AssertionError("the scheduler has requests, and nothing runs")
        room = self.most_in_flight - 1 if is_launched else 0
        while len(self.in_flight) > room:
            launched = self.in_flight.popleft()
            self.clock.advance_to(launched.ends[-1])
            for step, end in enumerate(launched.ends, start=launched.first):
                if self.observers:
                    self._show(launched.plan, step, end)
                if not launched.is_quiet:
                    self._read(launched.plan, end)
            if launched.is_quiet:
                self._read_quiet(launched)

    def _quiet_steps(self) -> list[float] | None:
        """Seconds of the steps from here on that hold what the last one held: nobody comes or ends.

        A request may end with the last of them. None where it isn't known.
        """
        last = self.last
        if not self.merges_decodes or last is None or not last.rows.requests:
            return None
        if last.num_settled != len(last.rows):
            return None
        coming = self.inbox.next_time
        load = StepLoad.of(last).later(last.chain_length)
        self.foreseen_rows = load.num_rows
        end = max(self.clock.now, self.device_free)
        seconds = self.cost.seconds(load)
        if coming is not None and end + 2 * seconds >= coming:
            return [seconds]
        in_flight = sum(len(launched.ends) for launched in self.in_flight)
        left = [live.num_left for live in map(self.live.get, last.rows.requests) if live]
        most = min(left, default=0) - in_flight
        if self.scheduler.pool.caches_prefixes:
            # A block taken early would push cached ones out early.
            size = self.scheduler.pool.block_size
            filled = (last.rows.starts + last.chain_length) % size
            most = min(most, size - int(filled.max()))
        steps = [seconds]
        while len(steps) < most and (coming is None or end + seconds < coming):
            end += seconds
            load = load.later(1)
            seconds = self.cost.seconds(load)
            steps.append(seconds)
        return steps

    def _launch(self, plan: StepPlan, quiet: list[float]) -> None:
        planned = self.clock.now
        self.clock.advance_to(planned + self.host_seconds)
        start = end = max(self.clock.now, self.device_free)
        for request in plan.admitted:
            live = self.live[request]
            if live.first_scheduled is None:
                live.first_scheduled = start
        load = StepLoad.of(plan)
        ends: list[float] = []
        for seconds in self._seconds(load, plan.chain_length, quiet):
            end += seconds
            ends.append(end)
        self.device_free = end
        if self.merges_decodes and len(ends) > 1:
            # The next plan is made when all but the last of them have been read.
            self.in_flight.append(_Launched(plan, ends[:-1], is_quiet=True))
            self.in_flight.append(_Launched(plan, ends[-1:], first=len(ends) - 1))
        else:
            self.in_flight.append(_Launched(plan, ends))
        self.steps.append(
            SimulatedStep(
                planned=planned,
                start=start,
                end=end,
                chain_length=plan.chain_length,
                num_tokens=plan.num_tokens,
                num_decode_tokens=plan.num_decode_tokens,
                num_rows=len(plan.rows),
                num_waiting=plan.num_waiting,
                num_preempted=len(plan.preempted),
            )
        )

    def _seconds(self, load: StepLoad, count: int, quiet: list[float]) -> list[float]:
        """Of each step of a chain; those foreseen, unless somebody has left since."""
        if count > 1 and load.num_rows == self.foreseen_rows:
            return quiet[:count]
        steps: list[float] = []
        for _ in range(count):
            steps.append(self.cost.seconds(load))
            load = load.later(1)
        return steps

    def _read_quiet(self, launched: _Launched) -> None:
        """Give every row its tokens of all these steps at once."""
        caches = self.scheduler.pool.caches_prefixes
        count = len(launched.ends)
        for live in map(self.live.get, launched.plan.rows.requests):
            if live is None:
                continue
            live.times.extend(launched.ends)
            if caches:
                for _ in range(count):
                    self.scheduler.add_token(live.request, live.token_id)
            else:
                live.token_ids.extend([live.token_id] * count)
            live.num_left -= count

    def _show(self, plan: StepPlan, step: int, now: float) -> None:
        rows = map(self.live.get, plan.rows.requests)
        token_ids = [-1 if live is None else live.token_id for live in rows]
        for observer in self.observers:
            observer.read(plan, step, token_ids, now)

    def _read(self, plan: StepPlan, now: float) -> None:
        """Give every sampling row its token, unless its request has ended meanwhile."""
        caches = self.scheduler.pool.caches_prefixes
        rows = plan.rows
        if plan.num_settled == len(rows):
            sampled = rows.requests
        else:
            picked = zip(rows.requests, rows.samples.tolist(), strict=True)
            sampled = [request for request, samples in picked if samples]
        for live in list(map(self.live.get, sampled)):
            if live is None:
                continue
            live.times.append(now)
            if caches:
                self.scheduler.add_token(live.request, live.token_id)
            else:
                live.token_ids.append(live.token_id)
            live.num_left -= 1
            if not live.num_left:
                self._end(live, now)

    def _end(self, live: LiveRequest, now: float) -> None:
        request = live.request
        self.scheduler.finish(request, FinishReason.LENGTH)
        del self.live[request]
        self.records.append(live.record())
        for observer in self.observers:
            observer.ended(request, now)
        self.inbox.ended(live.arrival, request.token_ids, now)
