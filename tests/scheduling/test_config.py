"""Sizes with which nothing could run are refused."""

from __future__ import annotations

from typing import Any

import pytest

from fastgen_jax.errors import ConfigError
from fastgen_jax.scheduling.scheduler import SchedulerConfig

SIZES: dict[str, Any] = {
    "token_budget": 1,
    "max_num_seqs": 1,
    "max_step_rows": 1,
    "max_model_len": 2,
    "block_size": 1,
    "num_blocks": 2,
    "chunk_multiple": 1,
    "max_chained_steps": 1,
    "max_chained_tokens": 1,
    "max_admission_skips": 0,
    "max_admission_lookahead": 1,
}


@pytest.mark.parametrize("name", SIZES)
def test_each_size_has_a_least_value(name: str) -> None:
    SchedulerConfig(**SIZES)
    with pytest.raises(ConfigError, match=f"{name}={SIZES[name] - 1}: must be at least"):
        SchedulerConfig(**(SIZES | {name: SIZES[name] - 1}))
