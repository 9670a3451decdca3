"""Fixtures and settings of the whole suite. Nothing here imports jax before a test asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("dev", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")  # --hypothesis-profile overrides


@pytest.hookimpl(tryfirst=True)  # before -m is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test that uses the real model's weights as ``real_model``."""
    for item in items:
        if "smollm2_gguf" in getattr(item, "fixturenames", ()):
            item.add_marker("real_model")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips ``gpu`` tests where jax finds no GPU."""
    if item.get_closest_marker("gpu"):
        import jax

        if jax.default_backend() != "gpu":
            pytest.skip(f"needs a GPU; jax runs on {jax.default_backend()}")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct; fetched once, then taken from the cache."""
    from fastgen_jax.models.sources import resolve_model

    return resolve_model("smollm2-135m-instruct", progress=False)


@pytest.fixture(scope="session")
def compilation_cache(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """A persistent compilation cache for this run alone, shared by all its workers."""
    import jax

    base = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # an xdist worker; its base lies in the run's
        base = base.parent
    directory = base / "compilation_cache"
    directory.mkdir(exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    return directory


@pytest.fixture(scope="module")
def jax_strict(compilation_cache: Path) -> Iterator[None]:
    """Makes jax refuse implicit promotion of dtypes and ranks while a module's tests run.

    Opt in with ``pytestmark = pytest.mark.usefixtures("jax_strict")``.
    """
    import jax

    strict = {"jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise"}
    before = {name: getattr(jax.config, name) for name in strict}
    for name, value in strict.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
