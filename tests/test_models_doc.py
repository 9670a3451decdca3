"""docs/models.md says what the registry and the reference cases say."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_document_is_the_one_that_the_registry_makes() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "models_doc.py"))
    expected = made["document"]()
    assert (ROOT / "docs" / "models.md").read_text() == expected, (
        "run python scripts/models_doc.py --write"
    )


def test_every_family_is_held_equal_to_something() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "models_doc.py"))
    without = {family.title for family in made["FAMILIES"]} - {
        family.title for family in made["FAMILIES"] if family.architecture in made["cases"]()
    }
    assert without == {"Qwen 1"}  # tests/models/test_qwen1.py does
