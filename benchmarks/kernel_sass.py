"""A kernel's machine code: its instructions, and what its inner loops cost to issue.

Every instruction since Volta is 128 bits, of which bits 105 to 108 say after how many cycles the
warp may issue the next one (Jia et al., 2018, "Dissecting the NVIDIA Volta GPU architecture via
microbenchmarking"). Waits for memory, barriers and matrix products come on top and are in no
instruction.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass

_STALL_SHIFT = 105 - 64  # in the upper half of the encoding
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_CODE = re.compile(r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<text>.*?);\s*/\* 0x[0-9a-f]{16} \*/")
# What Mosaic GPU leaves: control codes in front, the stall as the last of them, a decimal number.
_ANNOTATED = re.compile(
    r"^\s*[^\s:]+:[^\s:]+:[^\s:]+:[^\s:]:(?P<stall>\d{2})\s+/\*(?P<address>[0-9a-f]{4,})\*/"
    r"\s+(?P<text>.*?);?\s*$"
)
_UPPER = re.compile(r"^\s*/\* 0x(?P<word>[0-9a-f]{16}) \*/")
_GUARD = re.compile(r"^@!?(?:U?P\d|U?PT)\s+")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_ENDS = ("EXIT", "RET", "BRX", "JMX", "KILL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One machine instruction.

    Attributes:
        address: in the kernel.
        opcode: with its modifiers, as "HGMMA.64x64x16.F32.BF16".
        stall: cycles from its issue to that of the warp's next one.
        target: address that it may branch to; None where it doesn't.
        falls_through: whether the next instruction may follow.
    """

    address: int
    opcode: str
    stall: int
    target: int | None
    falls_through: bool

    def is_a(self, name: str) -> bool:
        """Whether the opcode, without modifiers, has that name."""
        return self.opcode.split(".")[0] == name


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """One turn of an innermost loop with matrix products, along its cheapest way.

    The cheapest way takes no branch that a full block of keys doesn't need: no barrier is tried
    twice and no tail is cleared.

    Attributes:
        multiply_adds: of one warp's matrix instructions, which one tensor core works off.
        instructions: all instructions of one warp.
        cycles: from the first one's issue to the next turn's, without any wait.
        copies: instructions that start an asynchronous copy.
    """

    multiply_adds: int
    instructions: int
    cycles: int
    copies: int


PRODUCTS = ("HGMMA", "HMMA")
COPIES = ("UTMALDG", "LDGSTS")


def read_code(text: str) -> tuple[Instruction, ...]:
    """The instructions of a file with one kernel.

    ``text`` is what ``nvdisasm -hex`` printed, or Mosaic GPU's dump with control codes.
    """
    found: list[tuple[int, str, int]] = []
    labels: dict[str, int] = {}
    open_labels: list[str] = []
    pending: tuple[int, str] | None = None
    for line in text.splitlines():
        if label := _LABEL.match(line):
            open_labels.append(label.group(1))
        elif both := _ANNOTATED.match(line):
            address = int(both["address"], 16)
            labels.update(dict.fromkeys(open_labels, address))
            open_labels = []
            found.append((address, both["text"].strip(), int(both["stall"])))
        elif code := _CODE.match(line):
            pending = int(code["address"], 16), code["text"].strip()
            labels.update(dict.fromkeys(open_labels, pending[0]))
            open_labels = []
        elif pending is not None and (upper := _UPPER.match(line)):
            stall = int(upper["word"], 16) >> _STALL_SHIFT & 0xF
            found.append((*pending, stall))
            pending = None
    return tuple(_instruction(address, code, stall, labels) for address, code, stall in found)


def count_opcodes(code: Sequence[Instruction], names: Sequence[str]) -> dict[str, int]:
    """How many instructions there are of each name; names without any are left out."""
    counts = {name: sum(item.is_a(name) for item in code) for name in names}
    return {name: count for name, count in counts.items() if count}


def product_loops(code: Sequence[Instruction]) -> tuple[Loop, ...]:
    """The innermost loops with matrix products, in the order of their addresses.

    A branch backwards makes a loop. Compilers put what is rarely run behind everything else, from
    where it jumps back into a loop's middle; what such a jump spans is no loop, and it is told by
    overlapping a smaller one.
    """
    spans = sorted(
        ((item.target, item.address) for item in code if _is_backwards(item)),
        key=lambda span: span[1] - (span[0] or 0),
    )
    taken: list[tuple[int, int]] = []
    loops: list[tuple[int, Loop]] = []
    for first, last in spans:
        assert first is not None
        if any(first <= end and start <= last for start, end in taken):
            continue
        body = [item for item in code if first <= item.address <= last]
        if not any(item.is_a(name) for item in body for name in PRODUCTS):
            continue
        taken.append((first, last))
        loops.append((first, _cheapest_way(body)))
    return tuple(loop for _, loop in sorted(loops, key=lambda pair: pair[0]))


def _cheapest_way(body: Sequence[Instruction]) -> Loop:
    """From the first to the last instruction of a loop by the fewest cycles."""
    places = {item.address: index for index, item in enumerate(body)}
    best = {0: 0}
    before: dict[int, int] = {}
    queue = [(0, 0)]
    while queue:
        cycles, index = heapq.heappop(queue)
        if index == len(body) - 1:
            break
        if cycles > best[index]:
            continue
        item = body[index]
        follow = [index + 1] if item.falls_through else []
        if item.target is not None and item.target in places:
            follow.append(places[item.target])
        for other in follow:
            after = cycles + item.stall
            if after < best.get(other, after + 1):
                best[other] = after
                before[other] = index
                heapq.heappush(queue, (after, other))
    way = [len(body) - 1]
    while way[-1] != 0:
        way.append(before[way[-1]])
    run = [body[index] for index in way]
    return Loop(
        multiply_adds=sum(_multiply_adds(item.opcode) for item in run),
        instructions=len(run),
        cycles=sum(item.stall for item in run),
        copies=sum(item.is_a(name) for item in run for name in COPIES),
    )


def _multiply_adds(opcode: str) -> int:
    """Of a matrix instruction such as HMMA.16816.F32.BF16 or HGMMA.64x128x16.F32.BF16; 0 of others.

    Four warps share the work of the second kind.
    """
    name, *modifiers = opcode.split(".")
    if name not in PRODUCTS:
        return 0
    if name == "HMMA":
        sizes = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8}
        return next((sizes[modifier] for modifier in modifiers if modifier in sizes), 0)
    rows, columns, depth = (int(size) for size in modifiers[0].split("x"))
    return rows * columns * depth // 4


def _instruction(address: int, code: str, stall: int, labels: dict[str, int]) -> Instruction:
    bare = _GUARD.sub("", code)
    is_guarded = bare != code
    opcode = bare.split()[0]
    name = opcode.split(".")[0]
    target = _TARGET.search(bare) if name == "BRA" else None
    # BRA.U and BRA.DIV, and a BRA with a predicate among its operands, don't always branch.
    is_certain = opcode == "BRA" and bare.split()[1].startswith("`")
    leaves = (name == "BRA" and is_certain) or name in _ENDS
    return Instruction(
        address=address,
        opcode=opcode,
        stall=stall,
        target=labels.get(target.group(1)) if target else None,
        falls_through=is_guarded or not leaves,
    )


def _is_backwards(item: Instruction) -> bool:
    return item.target is not None and item.target < item.address
