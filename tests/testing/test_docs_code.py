"""The code in the pages about policies and simulation runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fastgen_jax.scheduling.policy import POLICIES

DOCS = Path(__file__).parents[2] / "docs"


def run_page(name: str) -> dict[str, Any]:
    """The names that a page's code leaves, all its blocks run one after the other."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.S)
    names: dict[str, Any] = {"__name__": name}
    exec(compile("\n".join(blocks), name, "exec", dont_inherit=True), names)
    return names


def test_adding_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgen_jax.scheduling.policy.POLICIES", dict(POLICIES))
    names = run_page("adding_a_policy.md")
    names["test_short_prompts_are_admitted_first"]()
    contract = names["TestShortPromptsFirst"]()
    contract.num_runs = 3
    contract.test_its_answers_need_no_repair()
    contract.test_every_request_is_served()


def test_every_policy_is_in_the_page() -> None:
    page = (DOCS / "adding_a_policy.md").read_text(encoding="utf-8")
    assert all(f"| `{name}`" in page for name in POLICIES)


def test_simulation(capsys: pytest.CaptureFixture[str]) -> None:
    run_page("simulation.md")
    assert "prefill_first" in capsys.readouterr().out
