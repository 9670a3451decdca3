"""The arithmetic of docs/performance.md: what a decode step costs on a machine at the least."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.decode_floor import DecodeCost
from benchmarks.report_tables import table
from benchmarks.weight_bytes import dense_weight_bytes
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.shapes import SHAPES
from fastgen_jax.plan.gpus import GPUS

BF16_BYTES = 2
MODELS: Mapping[str, ModelConfig] = {
    "SmolLM2-135M": SHAPES["smollm2-135m"],
    "Llama-3.1-8B": SHAPES["llama-3.1-8b"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A roofline: bytes per second of the memory, FLOPs per second of the products."""

    name: str
    bandwidth: float
    flops: float

    @property
    def ridge(self) -> float:
        """FLOPs per byte from which products take longer than memory."""
        return self.flops / self.bandwidth

    def rows_at_ridge(self, cost: DecodeCost) -> float:
        """Rows whose products take as long as reading the weights, without any context."""
        return self.ridge * cost.weight_bytes / cost.flops_per_row


def machines(results: Path) -> list[Machine]:
    """The machine that decode_steps ran on, if it has, and GPUs by their data sheets."""
    known = [Machine(name=gpu.title, bandwidth=gpu.bandwidth, flops=gpu.bf16_flops) for gpu in GPUS]
    path = results / "decode_steps.json"
    if not path.exists():
        return known
    content = json.loads(path.read_text(encoding="utf-8"))
    name = f"{content['machine']['cpu']}, {content['machine']['num_threads']} threads, as measured"
    measured = Machine(name=name, bandwidth=content["read_rate"], flops=content["flop_rate"])
    return [measured, *known]


def cost_of(model: ModelConfig) -> DecodeCost:
    """Bytes and FLOPs with everything in bfloat16."""
    weight_bytes = dense_weight_bytes(model, BF16_BYTES)
    return DecodeCost.of(model, weight_bytes=weight_bytes, kv_itemsize=BF16_BYTES)


def roofline(results: Path) -> str:
    """Two markdown tables: the models' bytes and FLOPs, and what they come to on each machine."""
    costs = {name: cost_of(model) for name, model in MODELS.items()}
    return f"{_models_table(costs)}\n\n{_machines_table(costs, machines(results))}\n"


def _models_table(costs: Mapping[str, DecodeCost]) -> str:
    rows = [
        [
            name,
            f"{cost.weight_bytes / 1e6:,.1f}",
            f"{cost.flops_per_row / 1e6:,.1f}",
            f"{cost.kv_bytes_per_token:,}",
            f"{cost.flops_per_context_token:,}",
            f"{cost.weight_bytes / cost.kv_bytes_per_token:,.0f}",
        ]
        for name, cost in costs.items()
    ]
    head = ["bfloat16", "weights read a step, MB", "products, MFLOP a token"]
    head += [
        "KV, bytes a token",
        "attention, FLOP a query and key",
        "tokens with KV as large",
    ]
    return table(head, rows)


def _machines_table(costs: Mapping[str, DecodeCost], known: Sequence[Machine]) -> str:
    rows: list[list[str]] = []
    for machine in known:
        for name, cost in costs.items():
            one = cost.floor(
                rows=1, context=0, read_rate=machine.bandwidth, flop_rate=machine.flops
            )
            rows.append(
                [
                    f"{machine.name}: {name}",
                    f"{machine.bandwidth / 1e9:,.0f}",
                    f"{machine.flops / 1e9:,.0f}",
                    f"{machine.ridge:.0f}",
                    f"{machine.rows_at_ridge(cost):.0f}",
                    f"{1e3 * one.seconds:.2f}",
                    f"{1 / one.seconds:,.0f}",
                ]
            )
    head = ["machine", "GB/s", "GFLOP/s", "ridge, FLOP/byte", "rows at the ridge"]
    head += ["1 row, ms at least", "1 stream, tokens/s at most"]
    return table(head, rows)
