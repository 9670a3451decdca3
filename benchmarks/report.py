"""The results files as the tables of docs/performance.md, so that text and numbers agree.

A table stands in the document between ``<!-- results: NAME -->`` and ``<!-- end -->``; ``--write``
puts what this prints there. A test holds the document to it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.policy_table import policy_comparison
from benchmarks.report_tables import RENDERERS as ENGINE_RENDERERS
from benchmarks.report_tables import Content
from benchmarks.roofline import roofline
from benchmarks.targets import targets_table

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
RENDERERS = {**ENGINE_RENDERERS, "policy_comparison": policy_comparison}
# Sections whose renderer has another name.
RENDERER_OF = {
    "offline_throughput_vllm": "offline_throughput",
    "offline_throughput_transformers": "offline_throughput",
    "single_stream_vllm": "single_stream",
}
# Sections made of several files, or of none: data sheets and model shapes.
WHOLE = {"targets": targets_table, "roofline": roofline}
SECTIONS = (*WHOLE, *RENDERERS, *RENDERER_OF)
_SECTION = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Prints the tables of all results, or writes them into the document."""

    results: Path = RESULTS
    """Where the results files are."""
    document: Path = DOCUMENT
    """The document that holds the tables."""
    write: bool = False
    """Put the tables into the document instead of printing them."""

    def main(self) -> None:
        """Print or write."""
        if not self.write:
            for name in SECTIONS:
                print(f"## {name}\n\n{render_section(name, self.results)}")
            return
        text = self.document.read_text(encoding="utf-8")
        self.document.write_text(fill_sections(text, self.results), encoding="utf-8")


def fill_sections(text: str, results: Path) -> str:
    """The document with every section as the results have it.

    Raises:
        ValueError: a section that no results file could fill.
    """

    def fill(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        return f"{begin}\n{render_section(name, results)}\n{end}"

    return _SECTION.sub(fill, text)


def section_names(text: str) -> list[str]:
    """The sections that a document has."""
    return [match.group(2) for match in _SECTION.finditer(text)]


def render_section(name: str, results: Path) -> str:
    """One results file as markdown; a sentence where there is none yet.

    Raises:
        ValueError: there is no such section; names those there are.
    """
    if name not in SECTIONS:
        raise ValueError(f"no section {name!r}; there are {', '.join(SECTIONS)}")
    if name in WHOLE:
        return WHOLE[name](results)
    path = results / f"{name}.json"
    if not path.exists():
        return f"Not measured yet: there is no `benchmarks/results/{name}.json`.\n"
    content: Content = json.loads(path.read_text(encoding="utf-8"))
    render = RENDERERS[RENDERER_OF.get(name, name)]
    return f"{origin(name, content)}\n\n{render(content)}\n"


def origin(name: str, content: Content) -> str:
    """Which file a table is made of, and which machine its numbers are from."""
    machine: dict[str, Any] = content["machine"]
    parts = [machine["cpu"], f"{machine.get('num_threads', machine.get('cores'))} threads"]
    flags = [flag for flag, has_it in machine.get("flags", {}).items() if has_it]
    parts += [" ".join(flags)] if flags else []
    load = content.get("load_average")
    if isinstance(load, dict):
        parts.append(f"load {load['start']:.2f} at the start")
    text = f"From `benchmarks/results/{name}.json`; {', '.join(parts)}."
    if content.get("settings", {}).get("quick"):
        text += " **A trial run: the numbers mean nothing.**"
    return text


if __name__ == "__main__":
    tyro.cli(Report, description=__doc__).main()
