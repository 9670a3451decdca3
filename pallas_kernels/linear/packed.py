"""A matrix of all layers of a model in one packed array."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import jax

from pallas_kernels.linear.format import FORMATS, PANEL, FormatName, WeightFormat


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class PackedMatrix:
    """The weights of L layers of one matrix; a pytree whose leaves are the arrays.

    Arrays may be of jax or numpy, or only their ``jax.ShapeDtypeStruct``. ``WeightFormat`` says
    what is in them.

    Attributes:
        codes: the weights, or what a scale makes weights of.
        scales: None where the format has none.
        mins: None where the format has none.
        format: the format's name.
        in_features: K.
        out_features: N.
    """

    codes: Any
    scales: Any = None
    mins: Any = None
    format: FormatName = field(metadata={"static": True})
    in_features: int = field(metadata={"static": True})
    out_features: int = field(metadata={"static": True})

    @classmethod
    def abstract(
        cls, format: FormatName, *, num_layers: int, in_features: int, out_features: int
    ) -> PackedMatrix:
        """A matrix of shapes and dtypes alone.

        Raises:
            ValueError: the format can't hold so many input features.
        """
        weight_format = FORMATS[format]
        obstacle = weight_format.obstacle(in_features)
        if obstacle is not None:
            raise ValueError(f"in_features={in_features}: {obstacle}; use another format")
        sizes = (num_layers, in_features, out_features)
        scales = None
        if weight_format.scale_dtype is not None:
            scales = jax.ShapeDtypeStruct(
                weight_format.scales_shape(*sizes), weight_format.scale_dtype
            )
        return cls(
            codes=jax.ShapeDtypeStruct(weight_format.codes_shape(*sizes), weight_format.code_dtype),
            scales=scales,
            mins=scales if weight_format.has_mins else None,
            format=format,
            in_features=in_features,
            out_features=out_features,
        )

    @property
    def num_layers(self) -> int:
        """L."""
        return self.codes.shape[0]

    @property
    def weight_format(self) -> WeightFormat:
        """How the weights are stored."""
        return FORMATS[self.format]

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers, padding included."""
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))

    def problem(self) -> str | None:
        """What is wrong with shapes or dtypes of the arrays; None where they fit the format."""
        expected = PackedMatrix.abstract(
            self.format,
            num_layers=self.num_layers,
            in_features=self.in_features,
            out_features=self.out_features,
        )
        for name in ("codes", "scales", "mins"):
            seen, wanted = getattr(self, name), getattr(expected, name)
            if (seen is None) != (wanted is None):
                return f"{name} of {self.format} must {'not ' if wanted is None else ''}be given"
            if wanted is not None and (seen.shape, seen.dtype) != (wanted.shape, wanted.dtype):
                return (
                    f"{name} {seen.dtype}{seen.shape}: {self.format} of {self.in_features} in and "
                    f"{self.out_features} out has {wanted.dtype}{wanted.shape}"
                )
        return None

    def check_lines(self, first: int, count: int) -> None:
        """Nothing, when so many output features from ``first`` on are whole panels, or the last.

        Raises:
            ValueError: they aren't, or lie beyond the matrix.
        """
        end = first + count
        is_whole = count % PANEL == 0 or end == self.out_features
        if first < 0 or first % PANEL or end > self.out_features or not is_whole:
            raise ValueError(
                f"lines {first} to {end} of {self.out_features}: "
                f"must be whole panels of {PANEL}, or end where the matrix does"
            )
