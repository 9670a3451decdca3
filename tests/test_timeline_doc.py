"""docs/explanations.md shows what its simulation says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from fastgen_jax.observe.step_history import StepHistory

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def history() -> StepHistory:
    return runpy.run_path(str(ROOT / "scripts" / "timeline_doc.py"))["history"]()


def test_the_picture_is_the_one_that_the_script_makes(history: StepHistory) -> None:
    picture = (ROOT / "docs" / "images" / "timeline.svg").read_text(encoding="utf-8")
    assert picture == history.timeline().svg(), "run python scripts/timeline_doc.py --write"


def test_the_sentences_are_those_of_the_simulation(history: StepHistory) -> None:
    page = (ROOT / "docs" / "explanations.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^> (.*)$", page, re.M)
    assert quoted == list(history.explain("12").sentences)


def test_every_table_is_in_the_page() -> None:
    page = (ROOT / "docs" / "explanations.md").read_text(encoding="utf-8")
    tables = [name for name in dir(StepHistory) if name.endswith("_rows")]
    assert len(tables) == 3
    assert all(f"`{name}()`" in page for name in tables)
