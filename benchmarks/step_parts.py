"""The parts of a compiled step as programs of their own, to be timed one by one.

Each part does for all layers what the step does, in a loop like the step's, on the step's own
inputs, and is built from the functions that the step is built from, with the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from benchmarks.matmul_limit import random_array
from benchmarks.recorded_step import RecordedStep, token_places, unpack
from fastgen_jax.batching.inputs import ROW_FLAG_SAMPLES
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.decoder import Decoder
from fastgen_jax.models.layer import LayerIndex
from fastgen_jax.models.rope import Rotation, rope_tables
from fastgen_jax.runtime.cache import Pages
from fastgen_jax.runtime.step import SplitModel, StepSpec, attention_shape, build_step
from fastgen_jax.sampling import (
    RowLimits,
    RowState,
    append_tokens,
    init_row_state,
    sample,
    write_row,
)
from pallas_kernels import (
    AttentionOptions,
    LayerPages,
    RaggedBatch,
    plan_work,
    ragged_paged_attention,
    write_kv,
)

Call = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParts:
    """One recorded step on this device; each method compiles a part and gives a call to time.

    A call returns when the device is done. ``spec`` names the kernels.
    """

    decoder: Decoder
    spec: StepSpec
    limits: RowLimits
    step: RecordedStep

    def whole(self) -> Call:
        """The step as the engine runs it."""
        split = SplitModel.of(self.decoder)
        state = (self.spec.cache.zeros(), self._row_state())
        packed = jnp.asarray(self.step.packed)
        run = jax.jit(build_step(split, self.spec), donate_argnums=(1, 2))
        return _Passing(lambda pages, rows: run(split.leaves, pages, rows, packed)[:2], state)

    def layers(self) -> Call:
        """The decoder but for attention and pages: embedding, norms, products, residuals."""
        split = SplitModel.of(self.decoder)
        positions, _, _ = self._places()
        num_tokens = jnp.int32(self.step.num_tokens)

        def attend(
            layer: LayerIndex,
            q: Array,
            k: Array,
            v: Array,
            rotation: Rotation | None,
            cache: None,
            *,
            window: int | Array | None,
            sinks: Array | None,
        ) -> tuple[Array, None]:
            # Nothing but a use of all three, or their products would be left out.
            return q + (k + v).sum(axis=1, keepdims=True), cache

        def run(
            leaves: tuple[Array, ...], token_ids: Array, positions: Array, num_tokens: Array
        ) -> Array:
            model, unroll = split.merge(leaves), self.spec.cache.unroll_layers
            return model(
                token_ids, positions, attend, None, unroll_layers=unroll, num_tokens=num_tokens
            )[0]

        return _call(run, split.leaves, jnp.ones_like(positions), positions, num_tokens)

    def head(self) -> Call:
        """The rows' logits."""
        split = SplitModel.of(self.decoder)
        hidden = self._random((self.spec.shape.num_rows, self._model.hidden_size))
        num_rows = self._fields()["num_rows"]

        def run(leaves: tuple[Array, ...], hidden: Array, num_rows: Array) -> Array:
            return split.merge(leaves).logits(hidden, num_rows)

        return _call(run, split.leaves, hidden, num_rows)

    def attention(self) -> Call:
        """Planning the work, and attention over the pages in every layer, with its rotation."""
        fields, (positions, _, _) = self._fields(), self._places()
        batch = RaggedBatch(**{name: fields[name] for name in RaggedBatch.__dataclass_fields__})
        cache, config = self.spec.cache, self.spec.attention

        def run(q: Array, pages: Pages, batch: RaggedBatch, positions: Array) -> Array:
            shape, rotation = attention_shape(self._model, self.spec), self._rotation(positions)
            work = plan_work(batch, shape=shape, config=config)

            def layer(index: LayerIndex, q: Array) -> Array:
                pool, layer_pages = self._place(index)
                return ragged_paged_attention(
                    q,
                    pages[2 * pool],
                    pages[2 * pool + 1],
                    work,
                    rotation=rotation,
                    layer_pages=layer_pages,
                    options=AttentionOptions(scale=cache.head_dim**-0.5),
                    config=config,
                )

            return self._for_layers(layer, q)

        return _call(run, self._heads(self._model.num_heads), cache.zeros(), batch, positions)

    def kv_write(self) -> Call:
        """The step's rotated keys and values into their pages, in every layer."""
        positions, page_ids, slots = self._places()
        k, v = self._heads(self._model.num_kv_heads), self._heads(self._model.num_kv_heads)

        def run(pages: Pages, positions: Array, num_tokens: Array) -> Pages:
            rotation = self._rotation(positions)

            def layer(index: LayerIndex, pages: Pages) -> Pages:
                pool, layer_pages = self._place(index)
                written = write_kv(
                    pages[2 * pool],
                    pages[2 * pool + 1],
                    k,
                    v,
                    page_ids,
                    slots,
                    rotation=rotation,
                    num_tokens=num_tokens,
                    layer_pages=layer_pages,
                    config=self.spec.kv_write,
                )
                return (*pages[: 2 * pool], *written, *pages[2 * pool + 2 :])

            return self._for_layers(layer, pages)

        compiled = jax.jit(run, donate_argnums=0)
        count = jnp.int32(self.step.num_tokens)
        state = (self.spec.cache.zeros(),)
        return _Passing(lambda pages: (compiled(pages, positions, count),), state)

    def sampler(self) -> Call:
        """Tokens out of the rows' logits, and into the rows' histories."""
        fields = self._fields()
        rows, positions = fields["device_row"], fields["kv_len"]
        is_sampled = (fields["flags"] & ROW_FLAG_SAMPLES) != 0
        shape = (self.spec.shape.num_rows, self._model.vocab_size)
        logits = random_array(shape, jnp.dtype("float32"), seed=2)
        groups = self.spec.sampling_groups

        def run(state: RowState) -> tuple[RowState, Array]:
            token_ids = sample(logits, state, rows, positions, is_sampled, num_groups=groups)
            return append_tokens(state, rows, positions, token_ids, is_sampled), token_ids

        compiled = jax.jit(run, donate_argnums=0)
        return _Passing(lambda state: compiled(state)[:1], (self._row_state(),))

    @property
    def _model(self) -> ModelConfig:
        return self.decoder.config

    def _rotation(self, positions: Array) -> Rotation:
        model = self._model
        return rope_tables(positions, model.ropes[0])

    def _fields(self) -> dict[str, Array]:
        fields = unpack(self.step, self.spec.max_blocks_per_seq)
        return {name: jnp.asarray(values) for name, values in fields.items()}

    def _places(self) -> tuple[Array, Array, Array]:
        fields = unpack(self.step, self.spec.max_blocks_per_seq)
        places = token_places(fields, self.spec.shape.num_tokens, self.spec.cache.block_size)
        positions, page_ids, slots = map(jnp.asarray, places)
        return positions, page_ids, slots

    def _row_state(self) -> RowState:
        write = jax.jit(write_row, donate_argnums=0)
        state = init_row_state(self.limits)
        for row, packed in self.step.rows.items():
            state = write(state, jnp.int32(row), packed)
        return state

    def _random(self, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return random_array(shape, jnp.dtype(self.spec.cache.dtype), seed=len(shape))

    def _heads(self, count: int) -> Float[Array, "T H D"]:
        return self._random((self.spec.shape.num_tokens, count, self._model.head_dim))

    def _place(self, layer: LayerIndex) -> tuple[int, LayerPages | None]:
        """The layer's pool and its pages in it, as runtime.cache lays them out."""
        if isinstance(layer, int):
            return layer, None
        return 0, LayerPages(layer=layer, pages_per_layer=self.spec.cache.num_blocks)

    def _for_layers(self, layer: Callable[[LayerIndex, Any], Any], carry: Any) -> Any:
        if not self.spec.cache.unroll_layers:
            return lax.fori_loop(0, self._model.num_layers, layer, carry)
        for index in range(self._model.num_layers):
            carry = layer(index, carry)
        return carry


class _Passing:
    """A call that gives each time what it got back the time before: its arguments are donated."""

    def __init__(self, run: Callable[..., tuple[Any, ...]], state: tuple[Any, ...]) -> None:
        self._run = run
        self._state = state

    def __call__(self) -> object:
        self._state = jax.block_until_ready(self._run(*self._state))
        return self._state


def _call(run: Callable[..., object], *arguments: object) -> Call:
    compiled = jax.jit(run)
    return lambda: jax.block_until_ready(compiled(*arguments))
