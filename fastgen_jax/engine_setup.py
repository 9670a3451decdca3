"""All that an engine's decisions depend on besides its requests, as one object and as data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastgen_jax.batching import StepPacker, StepShape
from fastgen_jax.engine import Engine
from fastgen_jax.kv.layout import blocks_for
from fastgen_jax.observe.observer import Observer
from fastgen_jax.sampling.row_limits import RowLimits
from fastgen_jax.scheduling.policy import Policy
from fastgen_jax.scheduling.scheduler import Scheduler, SchedulerConfig
from fastgen_jax.step_executor import StepExecutor
from fastgen_jax.text import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """Sizes, shapes and seed of an engine: with a policy and an executor, an engine.

    Attributes:
        scheduler: the limits that the scheduler keeps.
        shapes: of the steps.
        limits: of the device rows.
        eos_token_ids: tokens that end a request.
        seed: start of the seeds given to requests without one.
    """

    scheduler: SchedulerConfig
    shapes: tuple[StepShape, ...]
    limits: RowLimits
    eos_token_ids: tuple[int, ...]
    seed: int

    def build[Kind: Engine](
        self,
        kind: Callable[..., Kind] = Engine,
        *,
        executor: StepExecutor,
        policy: str | Policy,
        tokenizer: Tokenizer | None,
        clock: Callable[[], float] = time.monotonic,
        observers: Sequence[Observer] = (),
    ) -> Kind:
        """An engine of this setup; ``kind`` is its class."""
        return kind(
            executor=executor,
            scheduler=Scheduler(self.scheduler, policy, clock=clock),
            packer=StepPacker(
                list(self.shapes),
                max_num_seqs=self.scheduler.max_num_seqs,
                max_blocks_per_seq=blocks_for(
                    self.scheduler.max_model_len, self.scheduler.block_size
                ),
            ),
            limits=self.limits,
            tokenizer=tokenizer,
            eos_token_ids=self.eos_token_ids,
            seed=self.seed,
            clock=clock,
            observers=observers,
        )

    def to_data(self) -> dict[str, Any]:
        """The setup as JSON can hold it."""
        return {
            "scheduler": asdict(self.scheduler),
            "shapes": [list(shape) for shape in self.shapes],
            "limits": asdict(self.limits),
            "eos_token_ids": list(self.eos_token_ids),
            "seed": self.seed,
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> EngineSetup:
        """The setup that ``to_data`` described.

        Raises:
            KeyError, TypeError, ValueError: the data doesn't describe one.
        """
        scheduler = dict(data["scheduler"])
        scheduler["step_sizes"] = tuple(scheduler["step_sizes"])
        return cls(
            scheduler=SchedulerConfig(**scheduler),
            shapes=tuple(StepShape(*shape) for shape in data["shapes"]),
            limits=RowLimits(**data["limits"]),
            eos_token_ids=tuple(data["eos_token_ids"]),
            seed=data["seed"],
        )
