"""A plan's parts without a compiler, and the mark of the tests that need one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastgen_jax.errors import ConfigError
from fastgen_jax.plan.hlo import HloModule, parse_hlo

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="session")
def compiler() -> Path:
    """The CUDA compiler's folder; skips where it isn't installed."""
    from fastgen_jax.plan.deviceless import find_compiler

    try:
        return find_compiler()
    except ConfigError as error:
        pytest.skip(f"needs the CUDA compiler's packages: {error.remedy}")


@pytest.fixture(scope="session")
def small_step() -> HloModule:
    """The program that ``programs/make_small_step.py`` compiled."""
    return parse_hlo((PROGRAMS / "small_step.hlo").read_text(encoding="utf-8"))
