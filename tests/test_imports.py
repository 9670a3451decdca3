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
    "bench/plots": set(),
    "bench/live": {
        "async_llm",
        "batching",
        "llm",
        "models",
        "observe",
        "scheduling",
        "sim",
        "text",
    },
    "bench/commands": {"engine_options", "async_llm", "model_files", "models", "text"},
    "observe": {"batching", "scheduling"},
    "replaying": {
        "batching",
        "bench",
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


def files_of(room: str) -> list[Path]:
    """A room's files, without those of a room inside it that has rules of its own."""
    inner = [PACKAGE / other for other in ALLOWED if other.startswith(f"{room}/")]
    files = (PACKAGE / room).rglob("*.py")
    return [path for path in files if not any(path.is_relative_to(one) for one in inner)]


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_rooms_import_only_what_they_may(room: str) -> None:
    assert files_of(room)
    for path in files_of(room):
        beyond = own_rooms(path) - ALLOWED[room] - LEAVES - {room.split("/")[0]}
        assert not beyond, f"{path.relative_to(ROOT)} imports {sorted(beyond)}"


@pytest.mark.parametrize("room", ["bench", "bench/plots"])
def test_what_judges_a_run_never_starts_one(room: str) -> None:
    for path in files_of(room):
        names = {".".join(name.split(".")[:3]) for name in imports_of(path)}
        assert not names & {"fastgen_jax.bench.live", "fastgen_jax.bench.commands"}, path


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
        "fastgen_jax.bench.results",
        "fastgen_jax.bench.plots.draw",
        "fastgen_jax.bench.live.generator",
        "fastgen_jax.bench.live.openai_http",
        "fastgen_jax.bench.live.workload_spec",
        "fastgen_jax.bench.commands.group",
        "fastgen_jax.sim.simulator",
        "fastgen_jax.text",
        "fastgen_jax.engine",
        "fastgen_jax.testing",
    ],
)
def test_scheduling_needs_no_jax(module: str) -> None:
    program = f"import sys, {module}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
