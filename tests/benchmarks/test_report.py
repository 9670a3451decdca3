from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.report import (
    DOCUMENT,
    RESULTS,
    SECTIONS,
    fill_sections,
    render_section,
    section_names,
)
from benchmarks.report_tables import spread, table
from benchmarks.roofline import MODELS, Machine, cost_of, machines

MACHINE = {"cpu": "a CPU", "num_threads": 2, "num_cores": 2, "flags": {"avx2": True, "fma": False}}
GAP = {"median": 0.0002, "low": 0.0001, "high": 0.0003}
LAUNCH = {"median": 0.02, "low": 0.01, "high": 0.03}
STEP_GAP = {
    "machine": MACHINE,
    "load_average": {"start": 0.25, "end": 2.0},
    "settings": {"rows": 32, "quick": False},
    "steps_per_launch": 4.0,
    "launch_seconds": LAUNCH,
    "traced_busy_seconds": LAUNCH,
    "gap_seconds": GAP,
    "gap_share": 0.01,
    "gap_share_of_step": 0.04,
    "gap_share_of_traced_time": 0.0125,
}


def test_the_document_says_what_the_results_say():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert fill_sections(text, RESULTS) == text, "run python -m benchmarks.report --write"


def test_the_document_has_every_section_once():
    assert sorted(section_names(DOCUMENT.read_text(encoding="utf-8"))) == sorted(SECTIONS)


def test_a_section_follows_its_file(tmp_path: Path):
    text = "before\n<!-- results: step_gap -->\nold\n<!-- end -->\nafter\n"
    empty = fill_sections(text, tmp_path)
    assert "Not measured yet" in empty
    (tmp_path / "step_gap.json").write_text(json.dumps(STEP_GAP))
    filled = fill_sections(empty, tmp_path)
    assert filled.startswith("before\n<!-- results: step_gap -->\n")
    assert filled.endswith("<!-- end -->\nafter\n")
    assert "| gap between launches, ms | 0.200 (0.100 to 0.300) |" in filled
    assert "| median gap over median launch | 1.00% |" in filled
    assert "a CPU, 2 threads, avx2, load 0.25 at the start" in filled
    assert "old" not in filled
    assert fill_sections(filled, tmp_path) == filled


def test_trial_runs_are_marked(tmp_path: Path):
    quick = {**STEP_GAP, "settings": {"rows": 4, "quick": True}}
    (tmp_path / "step_gap.json").write_text(json.dumps(quick))
    assert "trial run" in render_section("step_gap", tmp_path)


def test_an_unknown_section_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no section 'nonsense'"):
        fill_sections("<!-- results: nonsense -->\n<!-- end -->", tmp_path)


def test_tables_have_as_many_cells_as_columns():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
    with pytest.raises(ValueError, match="a row of 1 cells under 2 columns"):
        table(["a", "b"], [["1"]])


def test_spreads_are_scaled():
    assert spread(GAP, 2, 1e3) == "0.20 (0.10 to 0.30)"


def test_the_ridge_is_where_products_take_as_long_as_reading():
    machine = Machine(name="one", bandwidth=100.0, flops=2000.0)
    cost = cost_of(MODELS["Llama-3.1-8B"])
    floor = cost.floor(rows=20, context=0, read_rate=100.0, flop_rate=2000.0)
    assert machine.ridge == 20.0
    assert machine.rows_at_ridge(cost) == pytest.approx(20.0, rel=1e-3)
    assert floor.memory == pytest.approx(floor.matmul, rel=1e-3)


def test_a_measured_machine_comes_first(tmp_path: Path):
    known = machines(tmp_path)
    content = {"machine": MACHINE, "read_rate": 1e10, "flop_rate": 2e11}
    (tmp_path / "decode_steps.json").write_text(json.dumps(content))
    first, *others = machines(tmp_path)
    assert others == known
    assert first.ridge == 20.0
    assert "as measured" in first.name
