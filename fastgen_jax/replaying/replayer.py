"""Feeding a log's inputs to an engine, at the places where they came."""

from __future__ import annotations

from collections.abc import Callable

from fastgen_jax.batching import StepShape
from fastgen_jax.engine import Engine
from fastgen_jax.errors import EngineClosedError, FastGenError, ReplayError
from fastgen_jax.observe.log_reader import LoggedEvent, LogReader
from fastgen_jax.observe.policy_data import policy_from_data
from fastgen_jax.observe.submissions import Submission, submission_from_data
from fastgen_jax.replaying.checker import Checker, FirstDifference
from fastgen_jax.replaying.executors import NotRead


class LogClock:
    """A clock that stands at the log's times."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds on the logged engine's clock."""
        return self.now


class Replayer:
    """Moves an engine on as the log says; the checker among its observers compares.

    Attributes:
        failure: why the logged engine failed, once this one has failed in the same way.
    """

    def __init__(
        self,
        engine: Engine,
        log: LogReader,
        checker: Checker,
        clock: LogClock,
        *,
        check_submission: Callable[[LoggedEvent, Submission], None],
    ) -> None:
        """``clock`` must be the engine's, and ``checker`` one of its observers.

        ``check_submission`` raises where a request can't be replayed.
        """
        self.failure: str | None = None
        self._engine = engine
        self._log = log
        self._checker = checker
        self._clock = clock
        self._check_submission = check_submission

    def run(
        self,
        *,
        until_step: int | None = None,
        on_event: Callable[[LoggedEvent], None] = lambda _: None,
    ) -> None:
        """Go on to the log's end, past the plan ``until_step``, or to the first difference.

        Raises:
            FirstDifference: the checker has it.
            ReplayError: the log is damaged.
        """
        while self._checker.difference is None and (event := self._log.peek()) is not None:
            is_plan = event.kind == "plan"
            if is_plan and until_step is not None and self._value(event, "step", int) > until_step:
                return
            on_event(event)
            self._do(event)

    def _do(self, event: LoggedEvent) -> None:
        match event.kind:
            case "submit":
                self._submit(event)
            case "abort":
                self._abort(event)
            case "shapes":
                self._use_shapes(event)
            case "policy":
                self._use_policy(event)
            case "close":
                self._engine.close()
            case "plan":
                self._clock.now = float(self._value(event, "time", (int, float)))
                self._step()
            case "failed":
                self._step()
            case _:
                self._checker.reject(event, "the replay did nothing there")

    def _submit(self, event: LoggedEvent) -> None:
        try:
            submission = submission_from_data(event.data)
        except (KeyError, TypeError, ValueError) as error:
            raise self._log.damaged(event.line, f"{type(error).__name__}: {error}") from error
        self._check_submission(event, submission)
        self._clock.now = submission.arrival
        try:
            self._engine.submit(
                submission.prompt_token_ids,
                submission.params,
                priority=submission.priority,
                cache_salt=submission.cache_salt,
                targets=submission.targets,
            )
        except FastGenError as error:
            self._checker.reject(event, f"the replay refused it ({error})")

    def _abort(self, event: LoggedEvent) -> None:
        request = self._checker.live.get(self._value(event, "request", str))
        if request is None:
            self._checker.reject(event, "the replay has no such request that is alive")
        else:
            self._engine.abort(request)

    def _use_shapes(self, event: LoggedEvent) -> None:
        shapes = self._value(event, "shapes", list)
        try:
            self._engine.use_shapes([StepShape(*shape) for shape in shapes])
        except TypeError as error:
            raise self._log.damaged(event.line, str(error)) from error

    def _use_policy(self, event: LoggedEvent) -> None:
        data = self._value(event, "policy", dict)
        policy = data.get("name") or policy_from_data(data)
        budget = self._value(event, "token_budget", int)
        try:
            self._engine.use_policy(policy, token_budget=budget)
        except FastGenError as error:
            self._checker.reject(event, f"the replay refused it ({error})")

    def _step(self) -> None:
        try:
            self._engine.step()
        except NotRead:
            pass
        except EngineClosedError as error:
            cause = error.__cause__
            if isinstance(cause, ReplayError | FirstDifference):
                raise cause from None
            self.failure = str(cause or error)

    def _value[Kind](
        self, event: LoggedEvent, name: str, kind: type[Kind] | tuple[type[Kind], ...]
    ) -> Kind:
        value = event.data.get(name)
        if not isinstance(value, kind):
            raise self._log.damaged(event.line, f"its {name} is {value!r}")
        return value
