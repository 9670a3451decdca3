"""Who may import whom: the rules of docs/architecture.md, held by reading the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastgen_jax"

# Package -> what it may import of fastgen_jax besides itself and the leaves.
LEAVES = {
    "config",
    "errors",
    "latency_targets",
    "markup",
    "outputs",
    "request",
    "sampling_params",
}
ALLOWED = {
    "kv": set(),
    "scheduling": {"kv"},
    "batching": {"scheduling"},
    "bench": set(),
    "observe": {"batching", "scheduling"},
    "replaying": {
        "batching",
        "engine",
        "engine_setup",
        "loaded_model",
        "model_files",
        "models",
        "observe",
        "scheduling",
        "step_executor",
        "text",
    },
    "sim": {"bench", "kv", "observe", "scheduling"},
    "text": set(),
    "models": set(),
    "sampling": set(),
    "parallel": {"models"},
    "plan": {"batching", "kv", "models", "parallel", "runtime", "sampling"},
    "runtime": {"batching", "kv", "models", "parallel", "sampling"},
}


def imports_of(path: Path) -> set[str]:
    """Dotted names of everything a file imports when it runs, type-checking blocks left out."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return names


def own_rooms(path: Path) -> set[str]:
    """The rooms of fastgen_jax that a file imports from."""
    parts = (name.split(".") for name in imports_of(path))
    return {part[1] for part in parts if part[0] == "fastgen_jax" and len(part) > 1}


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_rooms_import_only_what_they_may(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        beyond = own_rooms(path) - ALLOWED[room] - LEAVES - {room}
        assert not beyond, f"{path.relative_to(ROOT)} imports {sorted(beyond)}"


def test_the_kernels_never_import_the_engine() -> None:
    for path in (ROOT / "pallas_kernels").rglob("*.py"):
        tops = {name.split(".")[0] for name in imports_of(path)}
        assert "fastgen_jax" not in tops, path


def test_only_the_runtime_compiles() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "runtime"):
            continue
        called = ast.dump(ast.parse(path.read_text(encoding="utf-8")))
        assert "attr='jit'" not in called, f"{path.relative_to(ROOT)} calls jax.jit"


def test_the_reader_of_imports_notices_one(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from fastgen_jax.engine import Engine\n"
        "def f():\n    import fastgen_jax.runtime.step\n"
    )
    assert own_rooms(path) == {"runtime"}


@pytest.mark.parametrize(
    "module",
    [
        "fastgen_jax",
        "fastgen_jax.scheduling.scheduler",
        "fastgen_jax.kv.pool",
        "fastgen_jax.bench.sla",
        "fastgen_jax.replaying.replay",
        "fastgen_jax.observe.step_history",
        "fastgen_jax.observe.timeline",
        "fastgen_jax.sim.simulator",
        "fastgen_jax.text",
        "fastgen_jax.engine",
        "fastgen_jax.testing",
    ],
)
def test_scheduling_needs_no_jax(module: str) -> None:
    program = f"import sys, {module}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
