"""Who multiplies many rows: measured once, kept, and asked for again where anything changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastgen_jax.models.packed import PackedWeights
from fastgen_jax.runtime.crossover import fastest_linear
from pallas_kernels.linear import LinearConfig, LinearNative, LinearReference, LinearXla
from pallas_kernels.linear.packed import PackedMatrix
from pallas_kernels.native import native_obstacle
from tests.models.test_packed import model_config, packed_source


class FakeClock:
    """Times of products, by their configuration; keeps what it is asked for."""

    def __init__(self, *, native: float, xla: float) -> None:
        self._seconds = {LinearNative: native, LinearXla: xla}
        self.asked: list[LinearConfig] = []

    @property
    def num_asked(self) -> int:
        return len(self.asked)

    def __call__(
        self, config: LinearConfig, matrix: PackedMatrix, num_tokens: int, dtype: str
    ) -> list[float]:
        self.asked.append(config)
        return [9.0, self._seconds[type(config)]]


def weights(linear: LinearConfig | None = None, quantization: str | None = None) -> PackedWeights:
    return packed_source(
        model_config(tied=True),
        linear or LinearNative(),
        dtype="float32",
        quantization=quantization,
    ).abstract()


def choose(clock: FakeClock, folder: Path | None, **changes: object) -> LinearConfig:
    settings = {"num_tokens": 256, "num_threads": 2, "weights": weights(), **changes}
    return fastest_linear(cache_dir=folder, seconds=clock, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("native", "xla", "expected"),
    [(1.0, 0.5, LinearXla()), (1.0, 0.9, LinearNative()), (1.0, 3.0, LinearNative())],
)
def test_xla_must_win_clearly(
    tmp_path: Path, native: float, xla: float, expected: LinearConfig
) -> None:
    assert choose(FakeClock(native=native, xla=xla), tmp_path) == expected


def test_it_is_measured_once(tmp_path: Path) -> None:
    clock = FakeClock(native=1.0, xla=0.1)
    assert choose(clock, tmp_path / "new") == choose(clock, tmp_path / "new") == LinearXla()
    assert clock.num_asked == 2  # each of the two, once


@pytest.mark.parametrize(
    "changes",
    [{"num_tokens": 128}, {"num_threads": 4}, {"weights": weights(quantization="int8")}],
)
def test_another_case_is_measured_again(tmp_path: Path, changes: dict[str, object]) -> None:
    clock = FakeClock(native=1.0, xla=0.1)
    choose(clock, tmp_path)
    choose(clock, tmp_path, **changes)
    assert clock.num_asked == 4


def test_rounded_rows_are_a_case_of_their_own(tmp_path: Path) -> None:
    clock = FakeClock(native=1.0, xla=0.1)
    rounding = weights(LinearNative(rounds_rows=True), "int8")
    assert choose(clock, tmp_path, weights=rounding) == LinearXla(rounds_rows=True)
    assert choose(clock, tmp_path, weights=weights(quantization="int8")) == LinearXla()
    assert clock.num_asked == 4
    assert all(config.rounds_rows for config in clock.asked[:2])


def test_few_rows_and_other_choices_are_left_alone(tmp_path: Path) -> None:
    clock = FakeClock(native=1.0, xla=0.1)
    assert choose(clock, tmp_path, num_tokens=8) == LinearNative()
    assert choose(clock, tmp_path, weights=weights(LinearReference())) == LinearReference()
    assert clock.num_asked == 0


def test_a_damaged_file_costs_a_measurement(tmp_path: Path) -> None:
    (tmp_path / "crossover.json").write_text("{ not json")
    clock = FakeClock(native=1.0, xla=0.1)
    assert choose(clock, tmp_path) == choose(clock, tmp_path) == LinearXla()
    assert clock.num_asked == 2


@pytest.mark.skipif(native_obstacle() is not None, reason=str(native_obstacle()))
def test_both_can_be_timed_here() -> None:
    chosen = fastest_linear(weights(), 64, num_threads=1, cache_dir=None)
    assert isinstance(chosen, LinearNative | LinearXla)
