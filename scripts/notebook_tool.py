"""Runs the notebooks from top to bottom, or takes their outputs away.

scripts/notebooks [NAME ...]              run them; pages with outputs go to build/notebooks
scripts/notebook_tool.py strip FILE ...   what is committed has no outputs
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
SECONDS_PER_CELL = 300


def read(path: Path) -> NotebookNode:
    """A valid notebook.

    Raises:
        nbformat.ValidationError: it isn't one.
    """
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def write(path: Path, notebook: NotebookNode) -> None:
    """With one key a line, so that changes show as lines."""
    path.write_text(nbformat.writes(notebook, indent=1) + "\n", encoding="utf-8")


def stripped(notebook: NotebookNode) -> NotebookNode:
    """The notebook as it is committed: no outputs, counts or traces of who ran it."""
    found = nbformat.from_dict(notebook)
    for cell in found.cells:
        cell.metadata = NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = []
            cell.execution_count = None
    found.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return found


def execute(path: Path) -> NotebookNode:
    """The notebook with its outputs, run by this Python in the notebook's folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; shows the cell and the traceback.
    """
    notebook = read(path)
    with tempfile.TemporaryDirectory() as directory:
        # Settings and histories of whoever runs this stay untouched and unread.
        homes = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
        env = {
            **os.environ,
            **dict.fromkeys(homes, directory),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # draws into the page
        }
        config = Config()
        config.KernelManager.connection_file = f"{directory}/kernel.json"
        config.KernelManager.transport = "ipc"  # through files, so that nobody else can connect
        config.KernelManager.ip = f"{directory}/kernel"
        client = NotebookClient(
            notebook,
            config=config,
            timeout=SECONDS_PER_CELL,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
        )
        client.execute(env=env)
    return notebook


def main() -> None:
    """Run or strip what the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run notebooks; all of them by default")
    running.add_argument("names", nargs="*", help="file names, or beginnings such as 03")
    running.add_argument("--out", type=Path, default=ROOT / "build" / "notebooks")
    stripping = commands.add_parser("strip", help="take outputs away")
    stripping.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "strip":
        for path in arguments.files:
            write(path, stripped(read(path)))
        return
    chosen = [
        path
        for path in sorted(NOTEBOOKS.glob("*.ipynb"))
        if not arguments.names or path.name.startswith(tuple(arguments.names))
    ]
    if not chosen:
        parser.error(f"no notebook begins with {' or '.join(arguments.names)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in chosen:
        start = time.perf_counter()
        write(arguments.out / path.name, execute(path))
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
