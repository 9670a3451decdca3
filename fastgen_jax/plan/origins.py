"""What a value of a program is made of: a weight, a page pool, or neither."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fastgen_jax.plan.hlo import Computation, Instruction

Origins = tuple[str, ...]  # of each member of a value, which is one for an array


@dataclass(frozen=True, slots=True, kw_only=True)
class StepArguments:
    """What the entry's flat parameters are: weights first, then pages, then all others.

    Attributes:
        weight_names: as in ``models.tensors.tensor_shapes``, in order.
        num_pages: page arrays that follow.
    """

    weight_names: tuple[str, ...]
    num_pages: int

    def origin(self, number: int) -> str:
        """What parameter ``number`` holds: "weight:" and its name, "kv", or nothing."""
        if number < len(self.weight_names):
            return f"weight:{self.weight_names[number]}"
        return "kv" if number < len(self.weight_names) + self.num_pages else ""


def origin_of(item: Instruction, origins: Mapping[str, Origins], within: Computation) -> Origins:
    """Where a value comes from: views and updates in place keep their operand's origin."""
    of_operands = [origins.get(name, ("",)) for name in item.operands]
    if item.opcode == "get-tuple-element":
        found = re.search(r"index=(\d+)", item.attributes)
        members, index = of_operands[0], int(found.group(1)) if found else 0
        return (members[index],) if index < len(members) else ("",)
    if item.opcode == "tuple":
        return tuple(member for origin in of_operands for member in origin)
    if item.opcode in ("bitcast", "optimization-barrier", "while") and of_operands:
        return of_operands[0]
    if item.opcode == "custom-call":
        aliases = changed_in_place(item)
        return tuple(
            of_operands[aliases[index]][0] if index in aliases else ""
            for index in range(len(item.shapes))
        )
    if item.opcode in ("fusion", "scatter", "dynamic-update-slice"):
        pools = {
            within.by_name[name].shapes
            for name, origin in zip(item.operands, of_operands, strict=True)
            if origin == ("kv",)
        }
        return tuple("kv" if (shape,) in pools else "" for shape in item.shapes)
    return ("",) * len(item.shapes)


def changed_in_place(item: Instruction) -> dict[int, int]:
    """Results of a custom call that are operands changed in place: their places."""
    found = re.search(r"output_to_operand_aliasing=\{(.*?\)) ?\}", item.attributes)
    pairs = re.findall(r"\{(\d*)\}: \((\d+), \{\}\)", found.group(1)) if found else []
    return {int(result or 0): int(operand) for result, operand in pairs}
