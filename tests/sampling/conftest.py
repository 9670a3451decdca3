"""A small sampler under strict promotion, and its reference beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastgen_jax.sampling import RowLimits, init_row_state, pack_row, sample, write_row
from fastgen_jax.sampling.reference import ReferenceSample, sample_reference
from fastgen_jax.sampling_params import SamplingParams

V = 203  # no multiple of 32, and two blocks of the draw
EOS = (2, 7)


@dataclass
class Case:
    """One row's request; a history of six tokens, four of them the prompt, unless told."""

    params: SamplingParams
    history: Sequence[int] = (5, 9, 9, 11, 5, 20)
    prompt_len: int = 4
    seed: int = 0
    bad_word_ids: Sequence[Sequence[int]] = ()


@dataclass
class Bench:
    """Runs rows through the jitted sampler, and one row through the reference."""

    limits: RowLimits
    traces: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        def counted(*args: Any) -> jax.Array:
            self.traces.append(1)
            return sample(*args)

        self.step = jax.jit(counted)
        self.write = jax.jit(write_row, donate_argnums=0)
        self.state = init_row_state(self.limits)

    def put(self, row: int, case: Case) -> None:
        """Admit the request to a device row; the state's earlier content stays around it."""
        packed = pack_row(
            self.limits,
            token_ids=case.history,
            prompt_len=case.prompt_len,
            params=case.params,
            seed=case.seed,
            eos_token_ids=EOS,
            bad_word_ids=case.bad_word_ids,
        )
        self.state = self.write(self.state, np.int32(row), packed)

    def run(self, logits: np.ndarray, cases: Sequence[Case | None]) -> np.ndarray:
        """The step's tokens as numpy; None is a padding row."""
        for row, case in enumerate(cases):
            if case is not None:
                self.put(row, case)
        padding = self.limits.max_num_seqs + 3
        rows = [padding if case is None else row for row, case in enumerate(cases)]
        positions = [0 if case is None else len(case.history) for case in cases]
        is_valid = [case is not None for case in cases]
        return self.run_rows(logits, rows, positions, is_valid)

    def run_rows(self, logits: Any, rows: Any, positions: Any, is_valid: Any) -> np.ndarray:
        """The step's tokens as numpy, for device rows that were put before."""
        tokens = self.step(
            jnp.asarray(logits, jnp.float32),
            self.state,
            jnp.asarray(rows, jnp.int32),
            jnp.asarray(positions, jnp.int32),
            jnp.asarray(is_valid, bool),
        )
        return np.asarray(tokens)

    def expect(self, logits: np.ndarray, case: Case) -> ReferenceSample:
        """The reference's sample of one row."""
        return sample_reference(
            np.asarray(logits, np.float32),
            case.params,
            history=case.history,
            prompt_len=case.prompt_len,
            seed=case.seed,
            eos_token_ids=EOS,
            bad_word_ids=case.bad_word_ids,
            num_top=self.limits.max_logprobs,
        )

    def check(self, logits: np.ndarray, cases: Sequence[Case]) -> None:
        """Every row draws what the reference draws."""
        tokens = self.run(logits, cases).tolist()
        assert tokens == [self.expect(x, c).token_id for x, c in zip(logits, cases, strict=True)]


@pytest.fixture(autouse=True)
def _strict_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def bench() -> Bench:
    """One sampler for all tests: it compiles once per number of rows."""
    return Bench(
        RowLimits(
            max_num_seqs=6,
            max_model_len=600,
            vocab_size=V,
            max_logprobs=5,
            max_logit_bias=4,
            max_bad_words=3,
            max_bad_word_len=3,
            max_stop_ids=4,
        )
    )


@pytest.fixture(scope="session")
def make_case() -> type[Case]:
    """The class of a row's request."""
    return Case


@pytest.fixture
def logits() -> np.ndarray:
    """Four rows of logits without ties."""
    return np.random.default_rng(0).normal(0, 2, (4, V)).astype(np.float32)
