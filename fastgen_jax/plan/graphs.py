"""How a step's launches are gathered in CUDA graphs, from XLA's list of thunks."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_THUNK = re.compile(r"^(\s*)\d+: (k\w+)")
_CONTAINERS = ("kCommandBuffer", "kWhile", "kConditional", "kSequential", "kAsyncStart")


@dataclass(frozen=True, slots=True, kw_only=True)
class Graphs:
    """XLA's launches, counted as they stand in the program: loops once, branches all.

    Attributes:
        num_graphs: CUDA graphs of a step (XLA calls them command buffers).
        num_inside: launches in one of them.
        outside: kinds of the others, each with its number; a step without any is one launch.
    """

    num_graphs: int
    num_inside: int
    outside: tuple[tuple[str, int], ...]

    @property
    def num_outside(self) -> int:
        """Launches that the host makes one by one."""
        return sum(count for _, count in self.outside)


def read_graphs(thunks: str) -> Graphs:
    """The graphs in XLA's printed thunk sequence, where nesting is written as indentation."""
    open_graphs: list[int] = []  # indentation of the graphs around the line
    num_graphs = num_inside = 0
    outside: Counter[str] = Counter()
    for line in thunks.splitlines():
        found = _THUNK.match(line)
        if found is None:
            continue
        depth, kind = len(found.group(1)), found.group(2)
        open_graphs = [graph for graph in open_graphs if graph < depth]
        if kind == "kCommandBuffer":
            num_graphs += not open_graphs
            open_graphs.append(depth)
        elif open_graphs:
            num_inside += kind not in _CONTAINERS
        elif not kind.endswith("Done"):
            outside[kind] += 1
    return Graphs(
        num_graphs=num_graphs, num_inside=num_inside, outside=tuple(sorted(outside.items()))
    )
