"""Rotary position embeddings as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Positions divided by a factor (Chen et al., 2023)."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicNtkScaling:
    """A base that grows with the text once that is longer than in training.

    Attributes:
        factor: how fast it grows.
        original_length: up to which nothing changes.
    """

    factor: float
    original_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """Slow pairs divided by a factor, fast ones left, a ramp between (Peng et al., 2023).

    Attributes:
        factor: of the slow pairs.
        original_length: of texts in training.
        beta_fast, beta_slow: turns within that length above which a pair is fast, below which slow.
        attention_factor: of cosines and sines.
        truncate: whether the ramp begins and ends at whole pairs.
    """

    factor: float
    original_length: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Pairs with long waves divided by a factor, those with short ones left (Llama 3.1).

    Attributes:
        factor: of the long waves.
        low_freq_factor, high_freq_factor: turns within the original length that bound the ramp.
        original_length: of texts in training.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRopeScaling:
    """Divisors of every pair's frequency, others for long texts than for short (Ding et al., 2024).

    Attributes:
        short_factors, long_factors: one for each pair.
        original_length: the longest short text.
        attention_factor: of cosines and sines.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_length: int
    attention_factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyFactors:
    """Divisors of every pair's frequency, whatever the text, as GGUF files keep Llama 3's."""

    factors: tuple[float, ...]


RopeScaling = (
    LinearScaling
    | DynamicNtkScaling
    | YarnScaling
    | Llama3Scaling
    | LongRopeScaling
    | FrequencyFactors
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """One rotary embedding, rotate-half convention (Su et al., 2021, section 3.4).

    Attributes:
        theta: base of the frequencies.
        rotary_dim: numbers at the beginning of a head that are rotated; the rest passes through.
        scaling: how longer texts than those of training are reached; None for not.
    """

    theta: float
    rotary_dim: int
    scaling: RopeScaling | None

    @property
    def depends_on_length(self) -> bool:
        """Whether a position's angle depends on how long its text is."""
        return isinstance(self.scaling, DynamicNtkScaling | LongRopeScaling)
