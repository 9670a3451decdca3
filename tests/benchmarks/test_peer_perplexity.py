"""The engine's perplexity beside another's."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from benchmarks.peer_perplexity import asked, compare, line

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "peer_perplexity.json"


def test_texts_count_by_their_tokens_and_signs_are_kept_apart() -> None:
    half, quarter = math.log(0.5), math.log(0.25)
    result = compare(
        "m", "float32", {"a": [half, half], "b": [quarter]}, {"a": [half, quarter], "b": [half]}
    )
    assert result.relative_difference == pytest.approx(0)
    assert result.largest_difference == pytest.approx(math.log(2))
    assert result.mean_difference == pytest.approx(2 / 3 * math.log(2))
    assert "+0.0000%" in line(result)


def test_sides_that_judged_different_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare("m", "float32", {"a": [-1.0, -2.0]}, {"a": [-1.0]})


def test_failure_of_the_other_side_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="failed:"):
        asked(Path(sys.executable), tmp_path / "none", "float32", {"a": [1, 2]})


def test_committed_results_are_within_half_a_percent() -> None:
    models = json.loads(RESULTS.read_text())["models"]
    assert {one["model"] for one in models} == {"smollm2-135m-instruct", "gemma3-270m"}
    for one in models:
        limit = {"float32": 1e-4, "bfloat16": 5e-3}[one["dtype"]]
        assert abs(one["relative_difference"]) < limit
