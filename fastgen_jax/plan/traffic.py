"""What one kernel reads, writes and multiplies, from the HLO of its fused computation.

Memory is counted as the kernel touches it: a slice or gather reads what it takes, an update in
place writes what it changes. Intermediate values inside a fusion cost nothing. Every other operand
and result counts as memory traffic although the L2 cache serves a part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fastgen_jax.plan.hlo import Computation, Instruction, Shape

_TAKES = ("slice", "dynamic-slice", "gather")
_UPDATES = ("dynamic-update-slice", "scatter")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a kernel reads of each operand, bytes it writes, FLOPs of its matrix products."""

    reads: tuple[int, ...]
    writes: int
    flops: int

    @property
    def num_bytes(self) -> int:
        """Everything read and written."""
        return sum(self.reads) + self.writes


def fusion_traffic(computation: Computation) -> Traffic:
    """Traffic of a kernel made of a fused computation."""
    used = _used_elements(computation)
    reads = []
    for parameter in computation.parameters:
        share = used.get(parameter.name, 0) / max(1, _elements(parameter))
        reads.append(round(min(1.0, share) * parameter.num_bytes))
    return Traffic(
        reads=tuple(reads),
        writes=sum(_written(computation, name) for name in _results(computation)),
        flops=sum(dot_flops(item, computation.by_name) for item in computation),
    )


def plain_traffic(instruction: Instruction, operands: list[tuple[Shape, ...]]) -> Traffic:
    """Traffic of an instruction that is a kernel by itself: a copy, a sort, a custom call."""
    sizes = [sum(shape.num_bytes for shape in shapes) for shapes in operands]
    if instruction.opcode in _TAKES:
        sizes[0] = min(sizes[0], instruction.num_bytes)
    writes = instruction.num_bytes
    if instruction.opcode in _UPDATES:
        update = 1 if instruction.opcode == "dynamic-update-slice" else 2
        sizes[0], writes = 0, sizes[update]
    return Traffic(tuple(sizes), writes, 0)


def dot_flops(instruction: Instruction, known: Mapping[str, Instruction]) -> int:
    """FLOPs of a dot inside a fusion, 0 for anything else."""
    if instruction.opcode != "dot":
        return 0
    left = known[instruction.operands[0]].shapes[0]
    depth = math.prod(left.sizes[i] for i in instruction.sizes_attribute("lhs_contracting_dims"))
    return 2 * instruction.shapes[0].num_elements * depth


def _elements(instruction: Instruction) -> int:
    return sum(shape.num_elements for shape in instruction.shapes)


def _used_elements(computation: Computation) -> dict[str, float]:
    """How many elements of each value the results need, from the root backwards."""
    known = computation.by_name
    used: dict[str, float] = {name: _elements(known[name]) for name in _results(computation)}
    used[computation.root.name] = _elements(computation.root)
    for user in reversed(computation.instructions):
        amount = min(used.get(user.name, 0), _elements(user))
        share = amount / max(1, _elements(user))
        for place, name in enumerate(user.operands):
            if user.opcode in _TAKES and place == 0:
                needed = amount
            elif user.opcode in _UPDATES and place == 0:
                needed = 0.0  # in place: what isn't changed isn't read
            elif user.opcode in ("tuple", "get-tuple-element"):
                needed = _elements(known[name])
            else:
                needed = share * _elements(known[name])
            used[name] = used.get(name, 0) + needed
    return used


def _results(computation: Computation) -> tuple[str, ...]:
    root = computation.root
    return root.operands if root.opcode == "tuple" else (root.name,)


def _written(computation: Computation, name: str) -> int:
    """Bytes that storing a result writes: an update in place stores only what it changes."""
    item = computation.by_name[name]
    while item.opcode in ("bitcast", "copy") and item.operands:
        item = computation.by_name[item.operands[0]]
    if item.opcode == "dynamic-update-slice":
        return computation.by_name[item.operands[1]].num_bytes
    if item.opcode == "scatter":
        # operands: the n arrays, the indices, the n updates
        count = len(item.operands) // 2
        return sum(computation.by_name[update].num_bytes for update in item.operands[count + 1 :])
    return computation.by_name[name].num_bytes
