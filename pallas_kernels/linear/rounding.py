"""Rows rounded to eight bits."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

ROW_GROUP = 16  # input features of a row that share a step: half as many as of a weight

_MAX_CODE = 127


def rounded_rows(rows: Float[Array, "T I"]) -> Float32[Array, "T I"]:
    """The rows with each 16 features rounded to whole multiples of a step of their own.

    The step is the group's largest magnitude times 1/127, and a number becomes a code from -127 to
    127 times the step; ties go to the even code. A group whose step isn't a normal number becomes
    zeros, one that has a number that isn't finite becomes NaN.
    """
    num_rows, width = rows.shape
    padded = jnp.pad(rows.astype(jnp.float32), ((0, 0), (0, -width % ROW_GROUP)))
    groups = padded.reshape(num_rows, -1, ROW_GROUP)
    largest = jnp.abs(groups).max(axis=-1, keepdims=True)
    steps = jnp.where(jnp.isfinite(largest), largest, jnp.nan) * jnp.float32(1 / _MAX_CODE)
    steps = jnp.where(steps < jnp.finfo(jnp.float32).tiny, 0.0, steps)
    # Not divided by the steps: XLA would make a product of it, and native code wouldn't.
    codes = jnp.rint(groups * jnp.where(steps == 0, 0.0, 1 / steps))
    numbers = jnp.clip(codes, -_MAX_CODE, _MAX_CODE) * steps
    return numbers.reshape(num_rows, -1)[:, :width]
