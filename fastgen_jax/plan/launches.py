"""The kernels that one run of a compiled step launches, with what each moves and multiplies."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from fastgen_jax.plan.hlo import Computation, HloModule, Instruction, Shape
from fastgen_jax.plan.origins import Origins, StepArguments, changed_in_place, origin_of
from fastgen_jax.plan.traffic import Traffic, fusion_traffic, plain_traffic

_LARGE = 2**16  # bytes of a weight or pool whose moving is worth a word
_PALLAS_CALLS = ("pallas_call", "mpmd_map", "core_map")
PALLAS_TARGETS = ("mosaic_gpu", "xla.gpu.triton")
_FREE = frozenset(
    (
        "parameter",
        "constant",
        "get-tuple-element",
        "bitcast",
        "tuple",
        "after-all",
        "partition-id",
        "replica-id",
        "optimization-barrier",
        "add-dependency",
    )
)
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Opcodes that compute nothing: a fusion of these alone moves data.
_MOVES = frozenset(
    (
        *_FREE,
        "copy",
        "transpose",
        "reshape",
        "concatenate",
        "slice",
        "convert",
        "pad",
        "broadcast",
        "select",
        "compare",
        "iota",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One kernel, or one collective, and how often a step runs it.

    Attributes:
        name: what the kernel does, in the model's words where it touches a weight.
        kind: "gemm", "attention", "kv write", "pallas", "fusion", "copy", "collective", "other".
        shape: of the first result.
        read: bytes read in one run.
        written: bytes written in one run.
        flops: of matrix products, in one run.
        count: runs in a step.
        dtype: of a product's operands, as HLO writes it; empty for others.
        sizes: (batch, m, n, k) of a product; None for others.
        num_devices: that take part in a collective; 1 for others.
        copied: "weight" or "kv" where the kernel only copies one; else empty.
        pallas_name: what a Pallas kernel calls itself; empty for others.
    """

    name: str
    kind: str
    shape: str
    read: int
    written: int
    flops: int
    count: int = 1
    dtype: str = ""
    sizes: tuple[int, int, int, int] | None = None
    num_devices: int = 1
    copied: str = ""
    pallas_name: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that all runs of a step touch."""
        return (self.read + self.written) * self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLaunches:
    """All launches of a step, equal ones counted together, in the order of their first run.

    Attributes:
        launches: what a step runs.
        loops: where in the program the loops of unknown length stand; priced at no turn.
        conditionals: where the conditionals stand, with the branch that was priced.
    """

    launches: tuple[Launch, ...]
    loops: tuple[str, ...]
    conditionals: tuple[str, ...]


def step_launches(module: HloModule, arguments: StepArguments) -> StepLaunches:
    """What a step runs when all its rows draw greedily and nobody asks for more.

    A conditional of the program itself runs its dearer branch: the head and the sampler run
    whenever a row draws. Those inside it run their cheaper one: no row is sampled at random. Loops
    whose length depends on data (edits of logits, log-probabilities) make no turn.
    """
    walk = _Walk(module)
    origins = [(arguments.origin(i),) for i in range(len(module.entry.parameters))]
    launches = walk.launches(module.entry, origins, depth=0)
    return StepLaunches(
        launches=_together(launches),
        loops=tuple(walk.loops),
        conditionals=tuple(walk.conditionals),
    )


def _together(launches: Sequence[Launch]) -> tuple[Launch, ...]:
    counts: Counter[Launch] = Counter()
    for launch in launches:
        counts[replace(launch, count=1)] += launch.count
    return tuple(replace(launch, count=count) for launch, count in counts.items())


@dataclass
class _Walk:
    module: HloModule
    loops: list[str] = field(default_factory=list)
    conditionals: list[str] = field(default_factory=list)

    def launches(
        self, computation: Computation, parameters: Sequence[Origins], *, depth: int
    ) -> list[Launch]:
        found: list[Launch] = []
        origins: dict[str, Origins] = {}
        for item, origin in zip(computation.parameters, parameters, strict=False):
            origins[item.name] = origin
        for item in computation:
            if item.opcode != "parameter":
                origins[item.name] = origin_of(item, origins, computation)
            found += self._run(item, computation, origins, depth)
        return found

    def _run(
        self, item: Instruction, within: Computation, origins: dict[str, Origins], depth: int
    ) -> list[Launch]:
        operands = [origins.get(name, ()) for name in item.operands]
        if item.opcode in _FREE or item.opcode.endswith("-done"):
            return []
        if item.opcode == "while":
            body = self.module.computations[item.called["body"]]
            turns = item.trip_count
            if turns is None:
                self.loops.append(item.op_name or item.name)
                return []
            inside = self.launches(body, operands, depth=depth)
            return [replace(launch, count=launch.count * turns) for launch in inside]
        if item.opcode == "conditional":
            return self._conditional(item, operands, depth)
        if item.opcode in ("call", "async-start") and self._calls_a_program(item):
            name = item.called.get("to_apply") or item.called["calls"]
            return self.launches(self.module.computations[name], operands, depth=depth)
        if item.opcode == "fusion":
            fused = self.module.computations[item.called["calls"]]
            if any(inner.opcode == "custom-call" for inner in fused):
                return self._library_call(fused, operands)
        return [self._launch(item, within, operands)]

    def _library_call(self, fused: Computation, operands: Sequence[Origins]) -> list[Launch]:
        """A call with its slices: a fusion only in name, in which the slices are addresses."""
        origins: dict[str, Origins] = {}
        for item, origin in zip(fused.parameters, operands, strict=False):
            origins[item.name] = origin
        calls: list[Launch] = []
        for item in fused:
            if item.opcode != "parameter":
                origins[item.name] = origin_of(item, origins, fused)
            if item.opcode == "custom-call":
                inside = [origins.get(name, ()) for name in item.operands]
                calls.append(self._launch(item, fused, inside))
        return calls

    def _calls_a_program(self, item: Instruction) -> bool:
        return "to_apply" in item.called or "calls" in item.called

    def _conditional(
        self, item: Instruction, operands: Sequence[Origins], depth: int
    ) -> list[Launch]:
        branches: list[tuple[int, list[Launch]]] = []
        notes: list[tuple[list[str], list[str]]] = []
        for index, name in enumerate(item.branches):
            walk = _Walk(self.module)
            inside = walk.launches(
                self.module.computations[name], [operands[index + 1]], depth=depth + 1
            )
            branches.append((sum(launch.num_bytes for launch in inside), inside))
            notes.append((walk.loops, walk.conditionals))
        choose = max if depth == 0 else min
        chosen = choose(range(len(branches)), key=lambda index: branches[index][0])
        which = "dearer" if depth == 0 else "cheaper"
        self.conditionals.append(f"{item.op_name or item.name}: the {which} branch")
        self.loops += notes[chosen][0]
        self.conditionals += notes[chosen][1]
        return branches[chosen][1]

    def _launch(self, item: Instruction, within: Computation, origins: list[Origins]) -> Launch:
        known = within.by_name
        shapes = [known[name].shapes for name in item.operands]
        flat = [origin[0] if origin else "" for origin in origins]
        label = _label(item, flat)
        if item.opcode.startswith(_COLLECTIVES):
            return _collective(item, shapes, label)
        if item.target.startswith("__cublas"):
            return _product(item, shapes, label)
        if any(target in item.target for target in PALLAS_TARGETS):
            return _pallas(item, shapes, flat)
        if item.opcode != "fusion":
            traffic = plain_traffic(item, shapes)
            kind = "copy" if item.opcode in ("copy", "copy-start") else "other"
            return _kernel(item, kind, label, traffic, _copied(item, shapes, flat, traffic))
        computation = self.module.computations[item.called["calls"]]
        opcodes = {inner.opcode for inner in computation}
        traffic = fusion_traffic(computation)
        copied = _copied(item, shapes, flat, traffic, moves=opcodes <= _MOVES)
        if traffic.flops:
            sizes, dtype = _fused_sizes(computation, traffic.flops)
            launch = _kernel(item, "gemm", label, traffic, copied)
            return replace(launch, sizes=sizes, dtype=dtype)
        if "kv" in flat and opcodes & {"scatter", "dynamic-update-slice"}:
            return _kernel(item, "kv write", "kv write", traffic, copied)
        kind = "copy" if opcodes <= _MOVES else "fusion"
        return _kernel(item, kind, label, traffic, copied)


def _label(item: Instruction, origins: list[str]) -> str:
    """The weights a kernel reads, else the operation it was traced from."""
    weights = [origin.split(":", 1)[1] for origin in origins if origin.startswith("weight:")]
    if weights:
        names = dict.fromkeys(re.sub(r"^layers\.\d+\.", "", name) for name in weights)
        return "+".join(names)
    return item.op_name.rsplit("/", 1)[-1] or item.opcode


def _kernel(item: Instruction, kind: str, name: str, traffic: Traffic, copied: str) -> Launch:
    return Launch(
        name=name,
        kind=kind,
        shape=str(item.shapes[0]) if item.shapes else "",
        read=sum(traffic.reads),
        written=traffic.writes,
        flops=traffic.flops,
        copied=copied,
    )


def _copied(
    item: Instruction,
    shapes: list[tuple[Shape, ...]],
    origins: list[str],
    traffic: Traffic,
    *,
    moves: bool = True,
) -> str:
    """What a kernel copies: all of a weight matrix or pool, or a large part where it only moves."""
    if traffic.flops:
        return ""
    for shape, origin, read in zip(shapes, origins, traffic.reads, strict=False):
        is_matrix = len(shape) == 1 and sum(size > 1 for size in shape[0].sizes) >= 2
        if not is_matrix or not origin:
            continue
        enough = min(_LARGE, shape[0].num_bytes) if moves else shape[0].num_bytes
        if enough <= read <= traffic.writes:
            return origin.split(":")[0]
    return ""


def _collective(item: Instruction, shapes: list[tuple[Shape, ...]], label: str) -> Launch:
    sent = sum(shape.num_bytes for operand in shapes for shape in operand)
    result = item.shapes[-1].num_bytes if item.shapes else 0
    name = item.opcode.removesuffix("-start")
    payload = max(sent, result)
    return Launch(
        name=name,
        kind="collective",
        shape=str(shapes[0][0]) if shapes and shapes[0] else "",
        read=payload,
        written=payload,
        flops=0,
        num_devices=_group_size(item),
    )


def _group_size(item: Instruction) -> int:
    """Devices of one group, in any of the three ways that HLO writes groups."""
    found = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", item.attributes)
    if found:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found.group(2)))
    found = re.search(r"replica_groups=\[(\d+),(\d+)\]", item.attributes)
    if found:
        return int(found.group(2))
    found = re.search(r"replica_groups=\{\{([\d,]*)\}", item.attributes)
    return len(found.group(1).split(",")) if found else 1


def _product(item: Instruction, shapes: list[tuple[Shape, ...]], label: str) -> Launch:
    """A library call: the result's tuple ends in scratch space, which isn't traffic."""
    left, result = shapes[0][0], item.shapes[0]
    depth = math.prod(left.sizes[i] for i in item.sizes_attribute("lhs_contracting_dimensions"))
    batch = math.prod(left.sizes[i] for i in item.sizes_attribute("lhs_batch_dimensions"))
    rows = left.num_elements // (depth * batch)
    columns = result.num_elements // (rows * batch)
    reads = tuple(sum(shape.num_bytes for shape in operand) for operand in shapes)
    flops = 2 * batch * rows * columns * depth
    launch = _kernel(item, "gemm", label, Traffic(reads, result.num_bytes, flops), "")
    return replace(launch, sizes=(batch, rows, columns, depth), dtype=left.dtype)


def _fused_sizes(computation: Computation, flops: int) -> tuple[tuple[int, int, int, int], str]:
    dot = next(item for item in computation if item.opcode == "dot")
    left = computation.by_name[dot.operands[0]].shapes[0]
    depth = math.prod(left.sizes[i] for i in dot.sizes_attribute("lhs_contracting_dims"))
    batch = math.prod(left.sizes[i] for i in dot.sizes_attribute("lhs_batch_dims"))
    rows = left.num_elements // (depth * batch)
    return (batch, rows, flops // (2 * batch * rows * depth), depth), left.dtype


def _pallas(item: Instruction, shapes: list[tuple[Shape, ...]], origins: list[str]) -> Launch:
    """A kernel of ours; what it reads of the pools depends on the context and comes later."""
    name = _pallas_name(item)
    is_kv = "kv" in origins
    writes_kv = any(origins[operand] == "kv" for operand in changed_in_place(item).values())
    others = [
        sum(shape.num_bytes for shape in operand)
        for operand, origin in zip(shapes, origins, strict=True)
        if origin != "kv"
    ]
    # In place, it writes the new keys and values, which are among what it reads.
    written = sum(others) if writes_kv else item.num_bytes
    kind = "kv write" if writes_kv else "attention" if is_kv else "pallas"
    traffic = Traffic(tuple(others), written, 0)
    return replace(_kernel(item, kind, name, traffic, ""), pallas_name=name)


def _pallas_name(item: Instruction) -> str:
    """What Triton calls the kernel; Mosaic's name is in the path of the call alone."""
    found = re.search(r'\bname = "([^"]+)"', item.attributes)
    if found:
        return found.group(1)
    path = [part for part in item.op_name.split("/") if part not in _PALLAS_CALLS]
    return path[-1] if path else item.name


def copies(launches: Sequence[Launch], what: str) -> Iterator[Launch]:
    """The launches that copy a "weight" or a "kv" pool."""
    return (launch for launch in launches if launch.copied == what)
