"""An engine over the fake executor, to try policies and sizes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fastgen_jax import __version__
from fastgen_jax.batching import StepShape
from fastgen_jax.engine import Engine
from fastgen_jax.engine_setup import EngineSetup
from fastgen_jax.kv.layout import blocks_for
from fastgen_jax.observe.event_log import EventLog
from fastgen_jax.observe.observer import Observer, PlanWatcher
from fastgen_jax.replaying.header import RunHeader
from fastgen_jax.sampling.row_limits import RowLimits
from fastgen_jax.scheduling.plan import StepPlan
from fastgen_jax.scheduling.policy import Policy
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from fastgen_jax.testing.byte_tokenizer import ByteTokenizer
from fastgen_jax.testing.fake_executor import FakeExecutor, Faults
from fastgen_jax.testing.fake_tokens import NextToken
from fastgen_jax.text import Tokenizer

_BYTE_TOKENIZER = ByteTokenizer()


class FakeEngine(Engine):
    """An ``Engine`` that shows its fake executor; made by ``fake_engine``."""

    executor: FakeExecutor

    def run(self, max_steps: int = 10_000) -> int:
        """Steps taken till nothing is left to do; AssertionError when max_steps don't do."""
        for num_steps in range(max_steps):
            if not self.has_work:
                return num_steps
            self.step()
        raise AssertionError(f"requests are unfinished after {max_steps} steps")


def fake_engine(
    *,
    policy: str | Policy = "fcfs",
    token_budget: int = 16,
    max_num_seqs: int = 4,
    max_step_rows: int | None = None,
    max_model_len: int = 64,
    block_size: int = 4,
    num_blocks: int = 65,
    chunk_multiple: int = 1,
    max_chained_steps: int = 1,
    enable_prefix_caching: bool = True,
    shapes: Sequence[tuple[int, int]] | None = None,
    vocab_size: int = ByteTokenizer.vocab_size,
    max_logprobs: int = 5,
    tokenizer: Tokenizer | None = _BYTE_TOKENIZER,
    eos_token_ids: Sequence[int] = ByteTokenizer.eos_token_ids,
    seed: int = 0,
    next_token: NextToken | None = None,
    faults: Faults | None = None,
    check: bool = True,
    clock: Callable[[], float] = time.monotonic,
    on_plan: Callable[[StepPlan], None] | None = None,
    observers: Sequence[Observer] = (),
    replay_log: str | Path | None = None,
) -> FakeEngine:
    """An engine of small sizes whose executor checks every step.

    ``max_step_rows`` is max_num_seqs unless given; ``shapes`` are (tokens, rows) pairs, by
    default one for decodes alone and one for the full budget. ``replay_log`` is as in EngineConfig;
    such a log is replayed with ``simulate=True``. The other names are those of SchedulerConfig,
    RowLimits, Engine and FakeExecutor.
    """
    max_step_rows = max_step_rows or max_num_seqs
    rows = min(max_step_rows, token_budget)
    shapes = shapes or [(rows, rows), (token_budget, rows)]
    limits = RowLimits(
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        vocab_size=vocab_size,
        max_logprobs=min(max_logprobs, vocab_size),
    )
    executor = FakeExecutor(
        limits=limits,
        num_blocks=num_blocks,
        block_size=block_size,
        max_blocks_per_seq=blocks_for(max_model_len, block_size),
        max_chained_steps=max_chained_steps,
        next_token=next_token,
        faults=faults,
        check=check,
    )
    config = SchedulerConfig(
        token_budget=token_budget,
        max_num_seqs=max_num_seqs,
        max_step_rows=max_step_rows,
        max_model_len=max_model_len,
        block_size=block_size,
        num_blocks=num_blocks,
        chunk_multiple=chunk_multiple,
        max_chained_steps=max_chained_steps,
        enable_prefix_caching=enable_prefix_caching,
    )
    setup = EngineSetup(
        scheduler=config,
        shapes=tuple(StepShape(*shape) for shape in dict.fromkeys(shapes)),
        limits=limits,
        eos_token_ids=tuple(eos_token_ids),
        seed=seed,
    )
    if on_plan is not None:
        observers = (PlanWatcher(on_plan), *observers)
    if replay_log is not None:
        header = RunHeader.of(
            setup, policy, version=__version__, has_tokenizer=tokenizer is not None
        )
        observers = (EventLog(replay_log, header.to_data()), *observers)
    engine = setup.build(
        FakeEngine,
        executor=executor,
        policy=policy,
        tokenizer=tokenizer,
        clock=clock,
        observers=observers,
    )
    engine.executor = executor
    return engine
