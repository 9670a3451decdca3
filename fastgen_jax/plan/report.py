"""What ``plan`` finds out, as plain data; all bytes and FLOPs are those of one GPU."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from fastgen_jax.plan.graphs import Graphs
from fastgen_jax.plan.load import StepLoad, Work
from fastgen_jax.plan.memory import GpuMemory
from fastgen_jax.plan.registers import KernelRegisters
from fastgen_jax.plan.roofline import Cost, Efficiencies


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledFacts:
    """What the compiler said about one step; nothing here is estimated.

    Attributes:
        chosen: the kernels of ours that were chosen, with their sizes.
        has_attention_kernel: False where the step attends in loops of plain XLA.
        argument_bytes, temp_bytes: from the compiler's memory analysis.
        aliased_bytes: arguments updated in place; all of pages and row state, or they are copied.
        donated_bytes: what ought to be updated in place.
        needed_temp_bytes: what the logits and the widest activations take at least.
        num_kernels: kernels and collectives that a greedy step runs.
        graphs: the CUDA graphs that they are in.
        weight_copies, kv_copies: kernels that only copy a weight or a pool; should be 0.
        collectives: (name, how many, bytes of all).
        kernels: our own kernels' registers and spills.
        loops, conditionals: what the estimate had to decide on; see ``step_launches``.
        trace_seconds, compile_seconds: on this machine.
    """

    chosen: str
    has_attention_kernel: bool
    argument_bytes: int
    temp_bytes: int
    aliased_bytes: int
    donated_bytes: int
    needed_temp_bytes: int
    num_kernels: int
    graphs: Graphs
    weight_copies: int
    kv_copies: int
    collectives: tuple[tuple[str, int, int], ...]
    kernels: tuple[KernelRegisters, ...]
    loops: tuple[str, ...]
    conditionals: tuple[str, ...]
    trace_seconds: float
    compile_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How long one step may take; an estimate, not a measurement.

    Attributes:
        load: the requests that the step is imagined to carry.
        seconds: sum over the kernels.
        least: what any engine must move and multiply for this load.
        floor_seconds: of ``least`` at the data sheet's rates.
        num_bytes: that the compiled step moves.
        flops: that the compiled step multiplies, padding included.
        padding_flops: the part of them that is spent on tokens and rows that aren't there.
        costs: every launch with its time, the longest first.
        seconds_by_kind: (kind, seconds), the longest first.
        seconds_by_bound: (what binds, seconds), the longest first.
    """

    load: StepLoad
    seconds: float
    least: Work
    floor_seconds: float
    num_bytes: int
    flops: int
    padding_flops: int
    costs: tuple[Cost, ...]
    seconds_by_kind: tuple[tuple[str, float], ...]
    seconds_by_bound: tuple[tuple[str, float], ...]

    @property
    def bytes_over_least(self) -> float:
        """Bytes moved, relative to the least."""
        return self.num_bytes / self.least.num_bytes

    @property
    def flops_over_least(self) -> float:
        """FLOPs for tokens that are no padding, relative to the least."""
        return (self.flops - self.padding_flops) / self.least.flops

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the load over the estimated time."""
        return self.load.num_tokens / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlanned:
    """One compiled step shape."""

    name: str
    num_tokens: int
    num_rows: int
    compiled: CompiledFacts
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A model on GPUs that needn't be there: memory, compiled facts and an estimate."""

    model: str
    num_parameters: int
    gpu: str
    tensor_parallel_size: int
    expert_parallel_size: int
    dtype: str
    context: int
    memory: GpuMemory
    steps: tuple[StepPlanned, ...]
    assumed: Efficiencies

    @property
    def gpus(self) -> str:
        """How many of which GPUs share the model, and how, in words."""
        tensor, expert = self.tensor_parallel_size, self.expert_parallel_size
        shared = f" (TP {tensor}, EP {expert})" if expert > 1 else ""
        return f"{tensor * expert} x {self.gpu}{shared}"

    def to_json(self) -> str:
        """All of it as JSON, with the ratios that the table shows."""
        data = asdict(self)
        for step, planned in zip(data["steps"], self.steps, strict=True):
            estimate = planned.estimate
            step["estimate"] |= {
                "is_estimate": True,
                "bytes_over_least": estimate.bytes_over_least,
                "flops_over_least": estimate.flops_over_least,
                "tokens_per_second": estimate.tokens_per_second,
            }
        return json.dumps(data, indent=1)
