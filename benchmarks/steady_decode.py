"""The engine's compiled step, launched over and over with a decode batch of any size and context.

Nothing is prefilled: a decode step of the wanted rows is recorded from a real scheduler with short
prompts, and its lengths and block tables are then set to the context. What lies in the pages are
the zeros the engine wrote when it took them, which are read like any keys and values.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace

import numpy as np

from benchmarks.recorded_step import RecordedStep, record_steps
from benchmarks.workload import Mix, draw_workload
from fastgen_jax.batching import StepShape
from fastgen_jax.batching.inputs import InputLayout
from fastgen_jax.config import EngineConfig
from fastgen_jax.kv.layout import blocks_for
from fastgen_jax.loaded_model import LoadedModel, scheduler_config
from fastgen_jax.sampling import RowLimits
from fastgen_jax.step_executor import StepExecutor

PROMPT_LENGTH = 4


def at_context(
    packed: np.ndarray, layout: InputLayout, *, rows: int, context: int, block_size: int
) -> np.ndarray:
    """The packed decode step with ``context`` tokens in each row, each row in blocks of its own.

    Block 0 is the null block, so the rows' blocks start at 1.
    """
    num_blocks = blocks_for(context, block_size)
    packed = packed.copy()
    packed[layout.slices["kv_len"]][:rows] = context
    tables = packed[layout.slices["block_tables"]].reshape(layout.fields["block_tables"])
    tables[:rows] = 0
    own = np.arange(1, rows * num_blocks + 1, dtype=np.int32).reshape(num_blocks, rows)
    tables[:rows, :num_blocks] = own.T  # neighbours in the pool belong to different rows
    return packed


class SteadyDecode:
    """A loaded model whose decode steps are timed; ``config`` is what it was loaded with."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        self._loaded = loaded
        self._config = config
        # The very executor that the engine launches its steps with; the engine itself rests.
        self._executor: StepExecutor = loaded.engine._executor

    def seconds(self, *, rows: int, context: int) -> Generator[float]:
        """Seconds of one step after another, without end; the first ones are a warm-up.

        As in the engine, a step is launched before the one before it is read, so the host's work
        hides behind the device's. Every launch writes the same token to the same place.
        """
        step = self._record(rows)
        resolved = self._loaded.config
        layout = InputLayout(step.shape, resolved.max_blocks_per_seq)
        packed = at_context(
            step.packed, layout, rows=rows, context=context, block_size=resolved.block_size
        )
        for row, values in step.rows.items():
            self._executor.write_row(row, values)
        pending = self._executor.launch(step.shape, packed)
        last = time.perf_counter()
        while True:
            following = self._executor.launch(step.shape, packed)
            pending.read()
            now = time.perf_counter()
            yield now - last
            pending, last = following, now

    def shape(self, rows: int) -> StepShape:
        """The compiled step that the engine takes for so many decodes."""
        return self._record(rows).shape

    def _record(self, rows: int) -> RecordedStep:
        config, resolved, model = self._config, self._loaded.config, self._loaded.model
        mix = Mix(
            num_requests=rows,
            prompt_mean=PROMPT_LENGTH,
            output_mean=8 + rows,
            relative_deviation=0.0,
            vocab_size=model.vocab_size,
            num_special_ids=0,
        )
        num_blocks = rows * blocks_for(PROMPT_LENGTH + 8 + rows, resolved.block_size) + 1
        steps = record_steps(
            draw_workload(mix),
            shapes=[StepShape(*shape) for shape in resolved.step_shapes],
            limits=RowLimits(
                max_num_seqs=resolved.max_num_seqs,
                max_model_len=resolved.max_model_len,
                vocab_size=model.vocab_size,
                max_logprobs=config.max_logprobs,
                max_logit_bias=config.max_logit_bias,
                max_bad_words=config.max_bad_words,
            ),
            scheduler=replace(scheduler_config(config, resolved, num_blocks), max_chained_steps=1),
            max_blocks_per_seq=resolved.max_blocks_per_seq,
        )
        return next(step for step in reversed(steps) if step.num_decode_tokens == rows)
