"""XLA's optimized program as data: its computations, their instructions, shapes and operands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

_ITEM_BITS = {
    "pred": 8,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "s16": 16,
    "u16": 16,
    "bf16": 16,
    "f16": 16,
    "s32": 32,
    "u32": 32,
    "f32": 32,
    "s64": 64,
    "u64": 64,
    "f64": 64,
    "c64": 64,
}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclass(frozen=True, slots=True)
class Shape:
    """One array's dtype, as HLO writes it, and sizes."""

    dtype: str
    sizes: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Product of the sizes."""
        count = 1
        for size in self.sizes:
            count *= size
        return count

    @property
    def num_bytes(self) -> int:
        """Bytes in memory; 0 for tokens and other values that take none."""
        bits = _ITEM_BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 0)
        return self.num_elements * bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.sizes))}]"


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        shapes: of the result; the members of a tuple, flattened.
        operands: names of the operands.
        attributes: the rest of the line, unparsed.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    is_tuple: bool
    operands: tuple[str, ...]
    argument: str
    attributes: str
    is_root: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of the result."""
        return sum(shape.num_bytes for shape in self.shapes)

    @property
    def op_name(self) -> str:
        """Where in the traced program the instruction comes from; empty where XLA made it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @cached_property
    def called(self) -> Mapping[str, str]:
        """Names of called computations by the attribute that calls them."""
        pattern = r"(calls|body|condition|to_apply|true_computation|false_computation)=%([\w.\-]+)"
        return dict(re.findall(pattern, self.attributes))

    @property
    def branches(self) -> tuple[str, ...]:
        """Computations of a conditional."""
        if "true_computation" in self.called:
            return (self.called["true_computation"], self.called["false_computation"])
        found = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        return tuple(_NAME.findall(found.group(1))) if found else ()

    @property
    def target(self) -> str:
        """What a custom call calls; empty for other instructions."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @property
    def trip_count(self) -> int | None:
        """Turns of a while loop, where XLA knows them."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self.attributes)
        return int(found.group(1)) if found else None

    def sizes_attribute(self, name: str) -> tuple[int, ...]:
        """Integers of an attribute such as ``"lhs_contracting_dimensions":["1"]`` or ``={1}``."""
        found = re.search(rf'"{name}":\[([^\]]*)\]', self.attributes)
        found = found or re.search(rf"\b{name}=\{{([^}}]*)\}}", self.attributes)
        return tuple(int(size) for size in re.findall(r"\d+", found.group(1))) if found else ()


@dataclass(frozen=True)
class Computation:
    """A list of instructions in their scheduled order."""

    name: str
    instructions: tuple[Instruction, ...]

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions)

    @cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """Instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @cached_property
    def root(self) -> Instruction:
        """What the computation returns."""
        return next(item for item in reversed(self.instructions) if item.is_root)

    @cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        """Parameters in the order of their numbers."""
        found = [item for item in self.instructions if item.opcode == "parameter"]
        return tuple(sorted(found, key=lambda item: int(item.argument)))


@dataclass(frozen=True)
class HloModule:
    """A whole program; ``aliases`` maps flat results to the flat parameters they reuse."""

    computations: Mapping[str, Computation]
    entry: Computation
    aliases: Mapping[int, int]


def parse_hlo(text: str) -> HloModule:
    """The module that XLA printed.

    Raises:
        ValueError: there is no entry computation in the text.
    """
    computations: dict[str, Computation] = {}
    entry: Computation | None = None
    current: list[Instruction] = []
    name, is_entry = "", False
    for line in text.split("\n"):  # splitlines would also cut at odd bytes of kernels
        header = _COMPUTATION.match(line)
        if header is not None:
            is_entry, name, current = header.group(1) is not None, header.group(2), []
        elif line.startswith("}") and name:
            computations[name] = Computation(name, tuple(current))
            if is_entry:
                entry = computations[name]
            name = ""
        elif name and " = " in line:
            current.append(_parse_instruction(line))
    if entry is None:
        raise ValueError("the text holds no entry computation, so it isn't an HLO module")
    return HloModule(computations, entry, _aliases(text))


def _aliases(text: str) -> dict[int, int]:
    header = text[: text.find("\n")]
    found = re.findall(r"\{(\d*)\}: \((\d+), \{\}, (?:may|must)-alias\)", header)
    return {int(result or 0): int(parameter) for result, parameter in found}


def _parse_instruction(line: str) -> Instruction:
    line = _COMMENT.sub("", line.strip())
    is_root = line.startswith("ROOT ")
    name, rest = line.removeprefix("ROOT ").removeprefix("%").split(" = ", 1)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    close = _closing(rest, start)
    argument = rest[start + 1 : close]
    shapes = tuple(
        Shape(dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in _SHAPE.findall(kind)
    )
    return Instruction(
        name=name,
        opcode=rest[:start],
        shapes=shapes,
        is_tuple=kind.startswith("("),
        operands=tuple(_NAME.findall(argument)),
        argument=argument,
        attributes=rest[close + 1 :],
        is_root=is_root,
    )


def _closing(text: str, start: int) -> int:
    """The place of the parenthesis that closes the one at ``start``."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if depth == 0:
                return place
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")
