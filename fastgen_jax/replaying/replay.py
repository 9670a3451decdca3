"""``fastgen_jax.replay(path)``: a log in, what its replay found out."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from fastgen_jax.engine_setup import EngineSetup
from fastgen_jax.errors import ReplayError
from fastgen_jax.observe.log_reader import LoggedEvent, LogReader
from fastgen_jax.observe.policy_data import policy_from_data
from fastgen_jax.observe.submissions import Submission
from fastgen_jax.replaying.checker import Checker, FirstDifference
from fastgen_jax.replaying.executors import LoggedDevice, LoggedTokens
from fastgen_jax.replaying.header import RunHeader
from fastgen_jax.replaying.late_tokenizer import LateTokenizer
from fastgen_jax.replaying.model_identity import model_digest
from fastgen_jax.replaying.replayer import LogClock, Replayer
from fastgen_jax.replaying.report import ReplayReport
from fastgen_jax.scheduling.policy import Policy
from fastgen_jax.text import Tokenizer

if TYPE_CHECKING:
    from fastgen_jax.engine import Engine
    from fastgen_jax.loaded_model import LoadedModel
    from fastgen_jax.step_executor import StepExecutor


def replay(
    log: str | Path,
    *,
    simulate: bool = False,
    model: str | Path | None = None,
    policy: str | Policy | None = None,
    tokenizer: Tokenizer | None = None,
    until_step: int | None = None,
    show_progress: bool = False,
) -> ReplayReport:
    """Run a logged run again, up to the first thing that isn't as the log says.

    Args:
        log: a file that ``EngineConfig(replay_log=...)`` wrote.
        simulate: take the tokens from the log; loads no model, and checks decisions and ends.
        model: the model, where it isn't to be found under the logged name any more.
        policy: where the log's was an object that can't be made again; as before its first step.
        tokenizer: for a simulation of requests with stop strings or bad words, in place of the
            model's.
        until_step: the last plan to replay.
        show_progress: a bar on standard error.

    Raises:
        ReplayError: the file is no such log, is damaged, or needs something that wasn't given.
        FastGenError: the model can't be loaded.
    """
    with LogReader(log) as reader:
        run = _Replay(reader, RunHeader.from_data(reader.header, path=str(log)), policy)
        engine = run.simulated(model, tokenizer) if simulate else run.real(model, show_progress)
        try:
            run.go(until_step, show_progress)
        finally:
            run.checker.stop()
            engine.close()
        return run.report(is_simulated=simulate)


class _Replay:
    """One replay while it runs."""

    def __init__(self, log: LogReader, header: RunHeader, policy: str | Policy | None) -> None:
        self.checker = Checker(log)
        self._log = log
        self._header = header
        self._policy = policy_from_data(header.policy) if policy is None else policy
        self._clock = LogClock()
        self._replayer: Replayer | None = None
        self._seconds = 0.0
        self._notes: list[str] = []

    def simulated(self, model: str | Path | None, tokenizer: Tokenizer | None) -> Engine:
        """An engine over the log's own tokens."""
        late = None
        if self._header.has_tokenizer:
            logged = self._header.model
            late = LateTokenizer(
                logged.name if model is None and logged is not None else model, tokenizer
            )

        def check(event: LoggedEvent, submission: Submission) -> None:
            params = submission.params
            if late is not None and (params.stop_strings or params.bad_words):
                late.load(for_whom=f"request {event.data.get('request')}")

        return self._build(LoggedTokens(self._header.setup, self._log), late, check)

    def real(self, model: str | Path | None, show_progress: bool) -> LoadedModel:
        """The model, with an engine over it."""
        config = self._header.engine_config(show_progress=show_progress)
        logged = self._header.model
        assert logged is not None
        from fastgen_jax.loaded_model import load_model

        loaded = load_model(
            logged.name if model is None else model, config, make_engine=self._over_device
        )
        if model_digest(loaded.path, loaded.model) != logged.digest:
            self._notes.append(
                f"The model isn't the one that the log calls {logged.name!r}: its configuration or "
                "its files are other ones"
            )
        return loaded

    def go(self, until_step: int | None, show_progress: bool) -> None:
        """Replay; returns at the first difference too."""
        assert self._replayer is not None
        begin = time.perf_counter()
        with tqdm(
            total=self._log.num_bytes,
            desc="Replaying",
            unit="B",
            unit_scale=True,
            disable=not show_progress,
            dynamic_ncols=True,
        ) as bar:

            def on_event(event: LoggedEvent) -> None:
                if event.kind == "plan" and self._log.num_bytes_read - bar.n > 1 << 14:
                    bar.set_postfix_str(f"step {event.data.get('step')}", refresh=False)
                    bar.update(self._log.num_bytes_read - bar.n)

            try:
                self._replayer.run(until_step=until_step, on_event=on_event)
            except FirstDifference:
                pass
            finally:
                self._seconds = time.perf_counter() - begin
                bar.update(self._log.num_bytes_read - bar.n)

    def report(self, *, is_simulated: bool) -> ReplayReport:
        """What was found."""
        checker = self.checker
        return ReplayReport(
            num_events=checker.num_events,
            num_steps=0 if checker.step is None else checker.step + 1,
            num_requests=checker.num_requests,
            num_preemptions=checker.num_preemptions,
            num_tokens=checker.num_tokens,
            seconds=self._seconds,
            difference=checker.difference,
            failure=None if self._replayer is None else self._replayer.failure,
            is_cut=self._log.is_cut,
            is_simulated=is_simulated,
            notes=tuple(self._notes),
        )

    def _over_device(
        self, setup: EngineSetup, executor: StepExecutor, tokenizer: Tokenizer | None
    ) -> Engine:
        """The engine of the log, whatever ``setup`` this machine would choose."""
        logged = self._header.setup.limits
        if setup.limits != logged:
            raise ReplayError(
                f"has rows of {setup.limits}, the logged run had {logged}",
                field="model",
                remedy="give the model of the log",
            )
        return self._build(executor, tokenizer)

    def _build(
        self,
        executor: StepExecutor,
        tokenizer: Tokenizer | None,
        check: Callable[[LoggedEvent, Submission], None] = lambda *_: None,
    ) -> Engine:
        engine = self._header.setup.build(
            executor=LoggedDevice(executor, self._log),
            policy=self._policy,
            tokenizer=tokenizer,
            clock=self._clock,
            observers=[self.checker],
        )
        self._replayer = Replayer(
            engine, self._log, self.checker, self._clock, check_submission=check
        )
        return engine
