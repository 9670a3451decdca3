"""The one program of a step: backbone over T tokens, head and sampler over R rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from fastgen_jax.batching.inputs import (
    ROW_FLAG_PROMPT_LOGPROBS,
    ROW_FLAG_SAMPLES,
    InputLayout,
    ResultLayout,
    StepShape,
)
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.decoder import Decoder
from fastgen_jax.parallel.experts import over_experts
from fastgen_jax.parallel.mesh import num_shares
from fastgen_jax.parallel.rows import map_rows
from fastgen_jax.parallel.sharding import PAGE_AXES, constrain
from fastgen_jax.runtime.cache import CacheSpec, Pages, paged_attention
from fastgen_jax.sampling import (
    RowState,
    TokenLogprobs,
    append_tokens,
    sample,
    wanted_logprobs,
    wants_logprobs,
)
from pallas_kernels import (
    AttentionConfig,
    AttentionShape,
    KvWriteConfig,
    KvWriteReference,
    RaggedBatch,
    ReferenceConfig,
    plan_work,
)
from pallas_kernels.linear import LinearConfig

_Chain = tuple[Pages, RowState, Array]  # and the results of each step
Step = Callable[[tuple[Array, ...], Pages, RowState, Array], tuple[Pages, RowState, Array]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpec:
    """Everything static about a step; equal specs compile to the same program.

    ``attention`` and ``kv_write`` choose the kernels by their class, and how they are cut;
    ``sampling_groups`` are the groups of rows that are sampled one after the other. A program for
    ``max_chained_steps`` above 1 can run several steps of the same decodes in one launch.
    ``linear`` is how packed weights are multiplied, where that isn't the weights' own choice.
    """

    shape: StepShape
    max_blocks_per_seq: int
    max_logprobs: int
    cache: CacheSpec
    attention: AttentionConfig = field(default_factory=ReferenceConfig)
    kv_write: KvWriteConfig = field(default_factory=KvWriteReference)
    sampling_groups: int = 1
    max_chained_steps: int = 1
    linear: LinearConfig | None = None

    @property
    def inputs(self) -> InputLayout:
        """Layout of the packed input."""
        return InputLayout(self.shape, self.max_blocks_per_seq)

    @property
    def results(self) -> ResultLayout:
        """Layout of the packed result."""
        return ResultLayout(self.shape, self.max_logprobs, self.max_chained_steps)


def attention_shape(model: ModelConfig, spec: StepSpec, *, num_shards: int = 1) -> AttentionShape:
    """Sizes of a step's attention as one of ``num_shards`` devices sees them."""
    return AttentionShape(
        num_tokens=spec.shape.num_tokens,
        num_rows=spec.shape.num_rows,
        num_heads=model.num_heads // num_shards,
        num_kv_heads=model.num_kv_heads // num_shards,
        head_dim=model.head_dim,
        page_size=spec.cache.block_size,
        pages_per_row=spec.max_blocks_per_seq,
        dtype=spec.cache.dtype,
        kv_dtype=spec.cache.dtype,
    )


@dataclass(frozen=True, slots=True)
class SplitModel:
    """A decoder as its structure and its weights as a flat tuple, split once at load.

    Two other engines lost 17 to 34 ms a step to flattening modules on every call.
    """

    treedef: Any  # a jax PyTreeDef
    leaves: tuple[Array, ...]

    @classmethod
    def of(cls, model: Decoder) -> SplitModel:
        """The parts of a model with concrete or abstract weights."""
        leaves, treedef = jax.tree.flatten(model)
        return cls(treedef, tuple(leaves))

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The leaves' names, as in ``models.tensors.tensor_shapes`` where they are dense."""
        places = jax.tree.unflatten(self.treedef, range(len(self.leaves)))
        paths, _ = jax.tree.flatten_with_path(places)
        return tuple(".".join(_keys(path)) for path, _ in paths)

    def merge(self, leaves: tuple[Array, ...]) -> Decoder:
        """The model again, around the given weights."""
        return jax.tree.unflatten(self.treedef, leaves)


def _keys(path: tuple[Any, ...]) -> list[str]:
    return [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]


def build_step(split: SplitModel, spec: StepSpec, mesh: Mesh | None = None) -> Step:
    """The step as a function of flat weights, pages, row state and the packed input.

    Pages and row state are meant to be donated: both come back updated in place. On a mesh the
    arguments are to be sharded as ``abstract_step`` says. XLA's partitioner then sums over the
    devices twice a layer, after the products that consume split heads and feed-forward; attention
    and sampling are shared out by hand, because it can't know that they stay within a head or row.
    """

    def launch(
        leaves: tuple[Array, ...], pages: Pages, rows: RowState, packed: Int[Array, "I"]
    ) -> tuple[Pages, RowState, Int[Array, "O"]]:
        inputs = _unpack(packed, spec.inputs)
        model = split.merge(leaves)
        if spec.linear is not None:
            model = model.with_linear(spec.linear)
        if spec.max_chained_steps == 1:
            return step(model, pages, rows, inputs)

        def chained(index: Array, carry: _Chain) -> _Chain:
            pages, rows, results = carry
            pages, rows, found = step(model, pages, rows, _further(inputs, index))
            return pages, rows, results.at[index].set(found)

        results = jnp.zeros((spec.max_chained_steps, spec.results.step_size), jnp.int32)
        chain = lax.fori_loop(0, inputs["num_steps"], chained, (pages, rows, results))
        pages, rows, results = chain
        return pages, rows, results.reshape(-1)

    def step(
        model: Decoder, pages: Pages, rows: RowState, inputs: dict[str, Array]
    ) -> tuple[Pages, RowState, Int[Array, "O"]]:
        tokens = _tokens(inputs, rows, spec)
        batch = RaggedBatch(
            query_start=inputs["query_start"],
            query_len=inputs["query_len"],
            kv_len=inputs["kv_len"],
            block_tables=inputs["block_tables"],
            num_single_rows=inputs["num_single_rows"],
            num_rows=inputs["num_rows"],
        )
        heads = attention_shape(model.config, spec, num_shards=num_shares(mesh))
        # Layers that are looped take their window as a number, and share what is planned for none.
        windows = model.config.windows if spec.cache.unroll_layers else (None,)
        works = {
            window: plan_work(batch, shape=heads, config=spec.attention, window=window)
            for window in windows
        }
        hidden, pages = model(
            tokens.token_ids,
            tokens.positions,
            paged_attention(
                spec.cache,
                model.config.attention,
                works,
                tokens.page_ids,
                tokens.slots,
                tokens.count,
                attention=spec.attention,
                kv_write=spec.kv_write,
                mesh=mesh,
            ),
            pages,
            unroll_layers=spec.cache.unroll_layers,
            num_tokens=tokens.count,
            lengths=_lengths(tokens, inputs, rows) if model.config.depends_on_length else None,
            over_experts=over_experts(mesh),
        )
        last = jnp.maximum(inputs["query_start"] + inputs["query_len"] - 1, 0)

        def head(hidden: Array, num_rows: Array | None = None) -> Array:
            return constrain(model.logits(hidden, num_rows), mesh, "tokens", "vocab")

        def whole_head(hidden: Array) -> Array:
            return constrain(head(hidden), mesh)

        token_ids, rows = _draw(head, hidden[last], inputs, rows, mesh, spec.sampling_groups)
        # On a mesh the logits of a group lie whole on every device, so a group is a device's share.
        group = -(-spec.shape.num_rows // num_shares(mesh))
        found = _logprobs(whole_head, hidden, last, token_ids, tokens, inputs, rows, group, spec)
        results = constrain(_pack_results(token_ids, found), mesh)
        rows = jax.tree.map(lambda array: constrain(array, mesh), rows)
        return tuple(constrain(pool, mesh, *PAGE_AXES) for pool in pages), rows, results

    return launch


@dataclass(frozen=True, slots=True)
class _Tokens:
    token_ids: Int[Array, "T"]
    positions: Int[Array, "T"]
    row: Int[Array, "T"]  # index into the step's rows
    page_ids: Int[Array, "T"]
    slots: Int[Array, "T"]
    is_valid: Array
    count: Int[Array, ""]  # tokens that aren't padding; they come first


def _unpack(packed: Int[Array, "I"], layout: InputLayout) -> dict[str, Array]:
    slices = layout.slices
    return {name: packed[slices[name]].reshape(shape) for name, shape in layout.fields.items()}


def _further(inputs: dict[str, Array], num_steps: Int[Array, ""]) -> dict[str, Array]:
    """The inputs of a step of the same decodes, each so many tokens further."""
    kv_len = inputs["kv_len"]
    is_row = jnp.arange(len(kv_len), dtype=jnp.int32) < inputs["num_rows"]
    return inputs | {"kv_len": jnp.where(is_row, kv_len + num_steps, kv_len)}


def _tokens(inputs: dict[str, Array], rows: RowState, spec: StepSpec) -> _Tokens:
    """Each token's row, position, id and place in the cache; padding goes to the null page."""
    num_tokens, num_rows = spec.shape
    token = jnp.arange(num_tokens, dtype=jnp.int32)
    row_end = inputs["query_start"] + inputs["query_len"]
    is_row = jnp.arange(num_rows, dtype=jnp.int32) < inputs["num_rows"]
    is_past = is_row[None] & (row_end[None] <= token[:, None])
    row = is_past.sum(-1, dtype=jnp.int32)
    is_valid = row < inputs["num_rows"]
    row = jnp.where(is_valid, row, 0)
    offset = token - inputs["query_start"][row]
    positions = inputs["kv_len"][row] - inputs["query_len"][row] + offset
    positions = jnp.where(is_valid, positions, 0)
    pages = inputs["block_tables"][row, positions // spec.cache.block_size]
    return _Tokens(
        token_ids=rows.token_ids[inputs["device_row"][row], positions],
        positions=positions,
        row=row,
        page_ids=jnp.where(is_valid, pages, 0),
        slots=positions % spec.cache.block_size,
        is_valid=is_valid,
        count=jnp.where(is_row, inputs["query_len"], 0).sum(dtype=jnp.int32),
    )


def _lengths(tokens: _Tokens, inputs: dict[str, Array], rows: RowState) -> Int[Array, "T"]:
    """How long each token's text is when it is computed: its prompt, and what was generated.

    A prompt's tokens see the whole prompt however it is cut into chunks, as in a forward over all
    of it; a generated token sees itself last. So the lengths depend on neither chunks nor
    preemption, and the keys in the cache are those of a cached generation in transformers.
    """
    prompt_len = rows.prompt_len[inputs["device_row"][tokens.row]]
    return jnp.maximum(prompt_len, tokens.positions + 1)


def _draw(
    head: Callable[[Array, Array], Array],
    hidden: Array,
    inputs: dict[str, Array],
    rows: RowState,
    mesh: Mesh | None,
    num_groups: int,
) -> tuple[Int[Array, "R"], RowState]:
    """The rows' new tokens, also appended to their histories; no head where no row draws."""
    is_sampled = (inputs["flags"] & ROW_FLAG_SAMPLES) != 0

    def draw_share(logits: Array, per_row: tuple[Array, ...], rows: RowState) -> Int[Array, "R"]:
        return sample(logits, rows, *per_row, num_groups=num_groups)

    def draw() -> Int[Array, "R"]:
        per_row = (inputs["device_row"], inputs["kv_len"], is_sampled)
        logits = head(hidden, inputs["num_rows"])
        return map_rows(draw_share, mesh, logits, per_row, rows)

    token_ids = lax.cond(is_sampled.any(), draw, lambda: jnp.full_like(inputs["flags"], -1))
    rows = append_tokens(rows, inputs["device_row"], inputs["kv_len"], token_ids, is_sampled)
    return token_ids, rows


def _logprobs(
    head: Callable[[Array], Array],
    hidden: Array,
    last: Int[Array, "R"],
    token_ids: Int[Array, "R"],
    tokens: _Tokens,
    inputs: dict[str, Array],
    rows: RowState,
    group: int,
    spec: StepSpec,
) -> TokenLogprobs:
    """Of the R drawn tokens, then of the T tokens that follow in their prompts, where wanted.

    One computation serves both: it exists once in the program, and runs only on what is wanted.
    """
    device_row = inputs["device_row"][tokens.row]
    following = tokens.positions + 1
    is_in_prompt = following < rows.prompt_len[device_row]
    wants_prompt = (inputs["flags"][tokens.row] & ROW_FLAG_PROMPT_LOGPROBS) != 0
    # The last position of a full row has no successor in its history.
    column = jnp.minimum(following, rows.token_ids.shape[1] - 1)
    is_sampled = (inputs["flags"] & ROW_FLAG_SAMPLES) != 0
    return wanted_logprobs(
        head,
        jnp.concatenate([hidden[last], hidden]),
        jnp.concatenate([token_ids, rows.token_ids[device_row, column]]),
        jnp.concatenate(
            [
                wants_logprobs(rows, inputs["device_row"], is_sampled),
                tokens.is_valid & is_in_prompt & wants_prompt,
            ]
        ),
        group=group,
        k=spec.max_logprobs,
    )


def _pack_results(token_ids: Int[Array, "R"], found: TokenLogprobs) -> Int[Array, "O"]:
    """The result vector; each kind of log-probability has its R drawn tokens first, then T."""
    return jnp.concatenate(
        [
            token_ids,
            lax.bitcast_convert_type(found.chosen, jnp.int32),
            found.rank,
            found.top_ids.reshape(-1),
            lax.bitcast_convert_type(found.top, jnp.int32).reshape(-1),
        ]
    )
