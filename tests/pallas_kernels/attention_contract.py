"""One class of tests for every implementation of the attention, and what its calls are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import AttentionOptions, AttentionShape
from tests.pallas_kernels.dense_attention import (
    AttentionCase,
    AttentionExtras,
    AttentionInputs,
    dense_attention,
    make_inputs,
)

# float32 sums of up to 256 products of unit normals, in another order than the float64 check.
FLOAT32_TOLERANCE = 2e-5
# 16-bit keys, values and weights: bfloat16 has 8 bits, so each is rounded by up to 2^-9.
HALF_TOLERANCE = 3e-2
SCALE = 0.125

# Rows with no, one or many queries; keys that end before, on and after the edge of a page of 16;
# chunks that begin in the middle of a page and reach over several.
MIX = ((1, 1), (1, 15), (1, 16), (1, 17), (1, 100), (5, 5), (3, 64), (21, 53))


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A case and what else one call takes; ``kv_dtype=None`` is the dtype of the queries."""

    case: AttentionCase
    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False
    kv_dtype: str | None = None
    is_split: bool = False

    @property
    def options(self) -> AttentionOptions:
        return AttentionOptions(scale=SCALE, window=self.window, softcap=self.softcap)

    @property
    def shape(self) -> AttentionShape:
        case = self.case
        return AttentionShape(
            num_tokens=case.num_tokens,
            num_rows=case.max_rows,
            num_heads=case.num_heads,
            num_kv_heads=case.num_kv_heads,
            head_dim=case.head_dim,
            page_size=case.page_size,
            pages_per_row=case.pages_per_row,
            dtype=case.dtype,
            kv_dtype=self.kv_dtype or case.dtype,
        )

    @property
    def extras(self) -> AttentionExtras:
        rng = np.random.default_rng(7)
        sinks = (rng.normal(size=self.case.num_heads) * 2).astype(np.float32)
        scales = rng.uniform(0.5, 2, (2, self.case.num_kv_heads)).astype(np.float32)
        is_scaled = self.kv_dtype is not None
        return AttentionExtras(
            sinks=sinks if self.has_sinks else None,
            k_scales=scales[0] if is_scaled else None,
            v_scales=scales[1] if is_scaled else None,
        )

    @property
    def tolerance(self) -> float:
        return FLOAT32_TOLERANCE if self.case.dtype == "float32" else HALF_TOLERANCE

    def inputs(self, seed: int = 0) -> AttentionInputs:
        inputs = make_inputs(self.case, seed)
        if self.kv_dtype is None:
            return inputs
        pages = (pages.astype(self.kv_dtype) for pages in (inputs.k_pages, inputs.v_pages))
        return AttentionInputs(inputs.q, *pages, inputs.batch)

    def check(self, seen: np.ndarray, inputs: AttentionInputs) -> None:
        """Every token of a row equals dense attention; others may hold anything."""
        count = sum(queries for queries, _ in self.case.rows)
        expected = dense_attention(self.case, inputs, self.options, self.extras)
        np.testing.assert_allclose(seen[:count], expected[:count], atol=self.tolerance, rtol=0)


def mix(
    *,
    num_heads: int,
    num_kv_heads: int,
    rows: tuple[tuple[int, int], ...] = MIX,
    page_size: int = 16,
    head_dim: int = 64,
    dtype: str = "float32",
    num_tokens: int = 40,
    max_rows: int = 10,
) -> AttentionCase:
    """The mix of rows with these heads; two of the ten rows and some tokens are padding."""
    return AttentionCase(
        rows=rows,
        num_tokens=num_tokens,
        max_rows=max_rows,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        pages_per_row=112 // page_size + 1,
        dtype=dtype,
    )


SCENARIOS = {
    "group of 1": Scenario(case=mix(num_heads=2, num_kv_heads=2)),
    "group of 3": Scenario(case=mix(num_heads=3, num_kv_heads=1)),
    "group of 4": Scenario(case=mix(num_heads=8, num_kv_heads=2)),
    "group of 7": Scenario(case=mix(num_heads=7, num_kv_heads=1)),
    "group of 8": Scenario(case=mix(num_heads=8, num_kv_heads=1)),
    "window": Scenario(case=mix(num_heads=4, num_kv_heads=1), window=20),
    "softcap and sinks": Scenario(
        case=mix(num_heads=4, num_kv_heads=1), softcap=1.5, has_sinks=True
    ),
    "splits": Scenario(case=mix(num_heads=4, num_kv_heads=1), is_split=True),
    "splits with a window and sinks": Scenario(
        case=mix(num_heads=3, num_kv_heads=1), is_split=True, window=40, has_sinks=True
    ),
    "no rows": Scenario(case=mix(num_heads=4, num_kv_heads=1, rows=())),
    "one decode": Scenario(
        case=mix(num_heads=4, num_kv_heads=1, rows=((1, 65),), num_tokens=1, max_rows=1)
    ),
    "whole prompt": Scenario(case=mix(num_heads=4, num_kv_heads=1, rows=((40, 40),))),
    "pages of 128": Scenario(case=mix(num_heads=4, num_kv_heads=1, page_size=128)),
    "bfloat16": Scenario(case=mix(num_heads=4, num_kv_heads=1, dtype="bfloat16")),
    "8-bit pages": Scenario(
        case=mix(num_heads=4, num_kv_heads=1, dtype="bfloat16"), kv_dtype="float8_e4m3fn"
    ),
}


class AttentionContract:
    """What an implementation must satisfy; subclasses say how it is called."""

    def attend(self, scenario: Scenario, inputs: AttentionInputs) -> np.ndarray:
        """The implementation's result, float64."""
        raise NotImplementedError

    @pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
    def test_equals_dense_attention(self, scenario: Scenario) -> None:
        inputs = scenario.inputs()
        scenario.check(self.attend(scenario, inputs), inputs)

    def test_a_row_does_not_depend_on_its_neighbours(self) -> None:
        """To the last bit, split rows included."""
        rows = ((1, 100), (1, 20), (9, 81))
        case = mix(num_heads=4, num_kv_heads=1, rows=rows, num_tokens=16, max_rows=4)
        scenario = Scenario(case=case, is_split=True)
        inputs = scenario.inputs()
        together = self.attend(scenario, inputs)
        batch = inputs.batch
        single = replace(
            batch,
            query_start=jnp.zeros(4, jnp.int32),
            query_len=jnp.array([1, 0, 0, 0], jnp.int32),
            kv_len=jnp.array([100, 0, 0, 0], jnp.int32),
            num_single_rows=jnp.int32(1),
            num_rows=jnp.int32(1),
        )
        chunk = replace(
            batch,
            query_start=jnp.array([2, 0, 0, 0], jnp.int32),
            query_len=jnp.array([9, 0, 0, 0], jnp.int32),
            kv_len=jnp.array([81, 0, 0, 0], jnp.int32),
            block_tables=batch.block_tables.at[0].set(batch.block_tables[2]),
            num_single_rows=jnp.int32(0),
            num_rows=jnp.int32(1),
        )
        for alone, tokens in ((single, slice(0, 1)), (chunk, slice(2, 11))):
            lone = replace(inputs, batch=alone)
            np.testing.assert_array_equal(
                together[tokens], self.attend(scenario, lone)[tokens], strict=True
            )

    def test_nan_stays_in_its_row(self) -> None:
        """Whoever held NaN gives its next row clean results, and so do pages next to NaN."""
        rows = ((1, 20), (1, 30), (5, 9), (6, 40))
        case = mix(num_heads=4, num_kv_heads=1, rows=rows, num_tokens=16, max_rows=4)
        scenario = Scenario(case=case)
        inputs = scenario.inputs()
        poisoned = inputs.q.at[0].set(jnp.nan).at[2:7].set(jnp.nan)
        seen = self.attend(scenario, replace(inputs, q=poisoned))
        expected = dense_attention(case, inputs, scenario.options)
        assert np.isnan(seen[[0, 2, 6]]).all()
        clean = [1, *range(7, 13)]
        np.testing.assert_allclose(seen[clean], expected[clean], atol=scenario.tolerance, rtol=0)
