"""Rotary position embedding, rotate-half convention (Su et al., 2021, section 3.4).

Frequencies, cosines and sines are float32 and computed as transformers computes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fastgen_jax.models.rope_config import (
    DynamicNtkScaling,
    FrequencyFactors,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    YarnScaling,
)

Rotation = tuple[Float[Array, "T D2"], Float[Array, "T D2"]]  # cosines and sines, float32


def rope_tables(
    positions: Int[Array, "T"], rope: RopeConfig, lengths: Int[Array, "T"] | None = None
) -> Rotation:
    """Cosines and sines of every position.

    ``lengths`` says for every token how long the text is that it was computed in; only a rope that
    depends on it needs it.

    Raises:
        ValueError: it is missing.
    """
    if rope.depends_on_length:
        if lengths is None:
            raise ValueError(f"lengths: {rope.scaling} depends on them; give one for each token")
        frequencies, factor = _frequencies_at(rope, lengths)
    else:
        frequencies, factor = _frequencies(rope)
        frequencies = frequencies[None]
    angles = positions.astype(jnp.float32)[:, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


def stacked_tables(
    positions: Int[Array, "T"],
    ropes: Sequence[RopeConfig],
    lengths: Int[Array, "T"] | None,
    *,
    with_identity: bool,
) -> tuple[Float[Array, "N T D2"], Float[Array, "N T D2"]]:
    """The tables of several ropes, and after them one that turns nothing where that is wanted."""
    tables = [rope_tables(positions, rope, lengths) for rope in ropes]
    if with_identity:
        tables.append((jnp.ones_like(tables[0][0]), jnp.zeros_like(tables[0][1])))
    cos, sin = zip(*tables, strict=True)
    return jnp.stack(cos), jnp.stack(sin)


def apply_rope(x: Float[Array, "T H D"], rotation: Rotation) -> Float[Array, "T H D"]:
    """x with its first 2 * D2 numbers rotated; computed in float32, returned in x's dtype."""
    cos, sin = (table[:, None] for table in rotation)
    half = cos.shape[-1]
    wide = x.astype(jnp.float32)
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    rotated = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _powers(rope: RopeConfig) -> Float[Array, "D2"]:
    exponents = jnp.arange(0, rope.rotary_dim, 2, dtype=jnp.float32) / rope.rotary_dim
    return rope.theta**exponents


def _frequencies(rope: RopeConfig) -> tuple[Float[Array, "D2"], float]:
    """Angle of position 1 for every pair, and the factor of cosines and sines."""
    powers = _powers(rope)
    plain = 1.0 / powers
    match rope.scaling:
        case None:
            return plain, 1.0
        case LinearScaling(factor=factor):
            return plain / factor, 1.0
        case FrequencyFactors(factors=factors):
            return plain / np.asarray(factors, np.float32), 1.0
        case Llama3Scaling() as scaling:
            return _llama3(plain, scaling), 1.0
        case YarnScaling() as scaling:
            return _yarn(powers, rope, scaling), scaling.attention_factor
        case _:
            raise TypeError(f"{rope.scaling} depends on the length")


def _frequencies_at(
    rope: RopeConfig, lengths: Int[Array, "T"]
) -> tuple[Float[Array, "T D2"], float]:
    if isinstance(rope.scaling, LongRopeScaling):
        scaling = rope.scaling
        short, long = (
            1.0 / (np.asarray(factors, np.float32) * _powers(rope))
            for factors in (scaling.short_factors, scaling.long_factors)
        )
        is_long = (lengths > scaling.original_length)[:, None]
        return jnp.where(is_long, long[None], short[None]), scaling.attention_factor
    scaling = rope.scaling
    assert isinstance(scaling, DynamicNtkScaling)
    size = rope.rotary_dim
    length = jnp.maximum(lengths, scaling.original_length).astype(jnp.float32)
    growth = scaling.factor * length / scaling.original_length - (scaling.factor - 1)
    base = rope.theta * growth ** (size / (size - 2))
    exponents = jnp.arange(0, size, 2, dtype=jnp.float32) / size
    return 1.0 / base[:, None] ** exponents[None], 1.0


def _llama3(plain: Float[Array, "D2"], scaling: Llama3Scaling) -> Float[Array, "D2"]:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wave = 2 * math.pi / plain
    is_long = wave > scaling.original_length / low
    is_short = wave < scaling.original_length / high
    ramp = (scaling.original_length / wave - low) / (high - low)
    between = (1 - ramp) * plain / scaling.factor + ramp * plain
    return jnp.where(is_long, plain / scaling.factor, jnp.where(is_short, plain, between))


def _yarn(powers: Float[Array, "D2"], rope: RopeConfig, scaling: YarnScaling) -> Float[Array, "D2"]:
    size = rope.rotary_dim

    def pair_with(turns: float) -> float:
        """The pair, counted in halves, that turns so often within the original length."""
        length = scaling.original_length / (turns * 2 * math.pi)
        return size * math.log(length) / (2 * math.log(rope.theta))

    first, last = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    if first == last:
        last += 0.001  # a ramp of no length would divide by zero
    pair = jnp.arange(size // 2, dtype=jnp.float32)
    kept = 1 - jnp.clip((pair - first) / (last - first), 0, 1)
    return (1.0 / (scaling.factor * powers)) * (1 - kept) + (1.0 / powers) * kept
