"""Executors of a replay: the device as the log saw it fail and wait, or the log in its place."""

from __future__ import annotations

import numpy as np

from fastgen_jax.batching import ResultLayout, StepResults, StepShape
from fastgen_jax.engine_setup import EngineSetup
from fastgen_jax.observe.log_reader import LogReader
from fastgen_jax.step_executor import PendingStep, StepExecutor


class LoggedFailure(RuntimeError):
    """A step fails as it did in the logged run."""


class NotRead(BaseException):  # passes by those who catch errors
    """The logged run didn't read this result then: somebody interrupted it, or its log ends."""


class LoggedDevice:
    """An executor that fails where the logged one failed, and is interrupted where it was."""

    def __init__(self, executor: StepExecutor, log: LogReader) -> None:
        self._executor = executor
        self._log = log

    def write_row(self, row: int, packed: np.ndarray) -> None:
        """Pass it on."""
        self._executor.write_row(row, packed)

    def launch(self, shape: StepShape, packed: np.ndarray) -> PendingStep:
        """Launch, or fail."""
        self._fail_as_logged(launching=True)
        return _LoggedStep(self, self._executor.launch(shape, packed))

    def close(self) -> None:
        """Close the executor beneath."""
        self._executor.close()

    def before_reading(self) -> None:
        """Raises what kept the logged run from reading a result here."""
        self._fail_as_logged(launching=False)
        event = self._log.peek()
        if event is None or event.kind in ("plan", "submit", "abort", "shapes", "policy", "close"):
            raise NotRead

    def _fail_as_logged(self, *, launching: bool) -> None:
        event = self._log.peek()
        if event is None or event.kind != "failed":
            return
        if event.data.get("launching") is launching:
            raise LoggedFailure(event.data.get("error", ""))


class _LoggedStep:
    def __init__(self, device: LoggedDevice, pending: PendingStep) -> None:
        self._device = device
        self._pending = pending

    def read(self) -> StepResults:
        self._device.before_reading()
        return self._pending.read()


class LoggedTokens:
    """An executor that runs nothing: each step has the tokens that the log says."""

    def __init__(self, setup: EngineSetup, log: LogReader) -> None:
        self._setup = setup
        self._log = log

    def write_row(self, row: int, packed: np.ndarray) -> None:
        """Nothing: there are no rows."""

    def launch(self, shape: StepShape, packed: np.ndarray) -> PendingStep:
        """A step whose tokens the log has."""
        chained = self._setup.scheduler.max_chained_steps
        return _TokensOfLog(
            self._log, ResultLayout(shape, self._setup.limits.max_logprobs, chained)
        )

    def close(self) -> None:
        """Nothing to free."""


class _TokensOfLog:
    def __init__(self, log: LogReader, layout: ResultLayout) -> None:
        self._log = log
        self._layout = layout

    def read(self) -> StepResults:
        """The next tokens in the log, and those of the same launch behind them."""
        packed = np.zeros(self._layout.size, np.int32)
        place = self._layout.slices["token_ids"]
        for turn, tokens in enumerate(self._turns()):
            begin = turn * self._layout.step_size
            row = packed[begin : begin + self._layout.step_size][place]
            row[:] = -1
            known = tokens[: len(row)]
            row[: len(known)] = [-1 if token is None else token for token in known]
        return StepResults(packed, self._layout)

    def _turns(self) -> list[list[int | None]]:
        found: list[list[int | None]] = []
        step: object = None
        ahead = 0
        while len(found) < self._layout.max_steps:
            event = self._log.peek(ahead)
            ahead += 1
            if event is None or event.kind not in ("tokens", "end"):
                break
            if event.kind == "end":
                continue
            if found and event.data.get("step") != step:
                break
            step = event.data.get("step")
            tokens = event.data.get("tokens")
            if not isinstance(tokens, list) or not all(_is_token(token) for token in tokens):
                raise self._log.damaged(event.line, "its tokens aren't integers")
            found.append(tokens)
        return found


def _is_token(value: object) -> bool:
    return value is None or (isinstance(value, int) and -1 <= value < 2**31)
