"""Four bits for a weight: a scale and a minimum for each group, chosen for small squared error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float32, UInt8

_MAX_CODE = 15
# Ranges tried, as shares of a group's own: clipping the outermost weights makes steps finer.
_RANGES = (1.0, 0.92)


def quantize_groups(
    values: Float32[np.ndarray, "n G 32"],
) -> tuple[UInt8[np.ndarray, "n G 32"], Float16[np.ndarray, "n G"], Float16[np.ndarray, "n G"]]:
    """Codes from 0 to 15, scales and minimums: a weight is about scale * code + minimum.

    Scales and minimums are rounded to float16 before the codes are computed, so that the codes
    make up for that rounding. For each range tried, codes are computed, then scale and minimum
    are fitted to them by least squares and the codes computed again; the attempt with the least
    squared error is kept for each group. What float16 can't hold comes back infinite.
    """
    # Groups along the last axis: what is done for each group is then done for many at once.
    columns = np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T)
    # Fresh arrays of this size would cost more than what is computed in them.
    codes, scratch = np.empty_like(columns), np.empty_like(columns)
    low, high = columns.min(axis=0), columns.max(axis=0)
    best = _Steps.between(low, high)
    least = np.full(low.shape, np.inf, np.float32)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # infinite scales
        for share in _RANGES:
            cut = (high - low) * np.float32((1 - share) / 2)
            steps = _Steps.between(low + cut, high - cut)
            steps.encode(columns, codes)
            best.take_better(steps, least, steps.error(codes, columns, scratch))
            steps = steps.fitted(codes, columns)
            steps.encode(columns, codes)
            best.take_better(steps, least, steps.error(codes, columns, scratch))
        best.encode(columns, codes)
        chosen = codes.T.astype(np.uint8, order="C").reshape(values.shape)
    groups = values.shape[:-1]
    return chosen, best.scales.reshape(groups), best.mins.reshape(groups)


@dataclass(frozen=True, slots=True)
class _Steps:
    """The values that codes can stand for: a scale and a minimum of each group, float16 [g]."""

    scales: np.ndarray
    mins: np.ndarray

    @classmethod
    def between(cls, low: np.ndarray, high: np.ndarray) -> _Steps:
        return cls.rounded((high - low) / np.float32(_MAX_CODE), low)

    @classmethod
    def rounded(cls, scales: np.ndarray, mins: np.ndarray) -> _Steps:
        with np.errstate(over="ignore"):  # the caller refuses what is infinite
            return cls(scales.astype(np.float16), mins.astype(np.float16))

    def encode(self, columns: np.ndarray, codes: np.ndarray) -> None:
        """Write the nearest code of each value [32, g], as float32."""
        scales = self.scales.astype(np.float32)
        np.subtract(columns, self.mins.astype(np.float32), out=codes)
        codes /= np.where(scales == 0, np.float32(np.inf), scales)
        np.rint(codes, out=codes)
        np.clip(codes, 0, _MAX_CODE, out=codes)

    def error(self, codes: np.ndarray, columns: np.ndarray, scratch: np.ndarray) -> np.ndarray:
        """The sum of squared errors of each group."""
        error = np.multiply(codes, self.scales.astype(np.float32), out=scratch)
        error += self.mins.astype(np.float32)
        error -= columns
        return np.einsum("kg,kg->g", error, error)

    def fitted(self, codes: np.ndarray, columns: np.ndarray) -> _Steps:
        """The steps of least squares for these codes; these where all codes are equal."""
        count = np.float32(len(columns))
        sums, squares = codes.sum(axis=0), np.einsum("kg,kg->g", codes, codes)
        values, products = columns.sum(axis=0), np.einsum("kg,kg->g", codes, columns)
        spread = count * squares - sums * sums
        scales = (count * products - sums * values) / spread
        mins = (values - scales * sums) / count
        is_fitted = (spread > 0) & (scales > 0) & np.isfinite(mins)
        return _Steps.rounded(
            np.where(is_fitted, scales, self.scales), np.where(is_fitted, mins, self.mins)
        )

    def take_better(self, other: _Steps, least: np.ndarray, error: np.ndarray) -> None:
        """Take over the groups in which the other's error is below the least one so far."""
        better = error < least
        np.copyto(self.scales, other.scales, where=better)
        np.copyto(self.mins, other.mins, where=better)
        np.copyto(least, error, where=better)
