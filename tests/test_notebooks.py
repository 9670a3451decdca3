"""The notebooks are what they are said to be, and run from top to bottom."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
README = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")

# ZeroMQ's sockets are closed by the garbage collector where a kernel was shut down in between.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "notebook_tool", ROOT / "scripts" / "notebook_tool.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 7
    assert [path.name[:2] for path in NOTEBOOKS] == [
        f"{n:02d}" for n in range(1, len(NOTEBOOKS) + 1)
    ]


@by_name
def test_what_is_committed_has_no_outputs(path: Path, tool: ModuleType) -> None:
    notebook = tool.read(path)
    assert tool.stripped(notebook) == notebook, "run scripts/notebook_tool.py strip"
    assert path.read_text(encoding="utf-8").endswith("}\n")


@by_name
def test_it_is_listed_and_names_its_subject(path: Path, tool: ModuleType) -> None:
    assert f"]({path.name})" in README
    assert tool.read(path).cells[0].source.startswith("# ")


@by_name
def test_it_runs(path: Path, tool: ModuleType, smollm2_gguf: Path) -> None:
    executed: NotebookNode = tool.execute(path)
    code = [cell for cell in executed.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in code)
    warnings = [
        output.text
        for cell in code
        for output in cell.outputs
        if output.output_type == "stream"
        and output.name == "stderr"
        and re.search("Warning|Error", output.text)
    ]
    assert not warnings
    assert any(cell.outputs for cell in code)


def test_outputs_and_counts_are_taken_away(tool: ModuleType) -> None:
    cell = nbformat.v4.new_code_cell("1 + 1", execution_count=3, metadata={"tags": ["x"]})
    cell.outputs = [nbformat.v4.new_output("stream", text="2")]
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"whose": "mine"})
    found = tool.stripped(notebook)
    assert found.cells[0].outputs == []
    assert found.cells[0].execution_count is None
    assert found.cells[0].metadata == {}
    assert "whose" not in found.metadata
    assert cell.outputs, "the given one stays as it is"


def test_a_cell_that_raises_is_shown(tool: ModuleType, tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell("1 / 0")]
    path = tmp_path / "broken.ipynb"
    tool.write(path, nbformat.v4.new_notebook(cells=cells))
    with pytest.raises(Exception, match="ZeroDivisionError"):
        tool.execute(path)
