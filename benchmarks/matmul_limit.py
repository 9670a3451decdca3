"""What the machine's matrix products alone allow: a ceiling for any engine built on XLA.

A step of T tokens and R rows can't be faster than its products: seven a layer on T tokens, and the
head on R rows. This times just these, all layers with weights of their own, so that the weights
come from memory as they do in a real step, and turns the times into tokens per second:

- as run: the steps that a run really launched, each at its shape's time. What the run lacks to it
  is everything that isn't a product: attention, cache, norms, sampler, host.
- ideal packing: every prompt token at the rate of a full step, every decode at the rate of a
  decode step with all rows taken. No padding, no half-empty step; what the run's own limit lacks
  to it is the price of the mix and of the ladder of shapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from benchmarks.timing import time_in_turns
from benchmarks.workload import Mix, Workload, draw_workload
from fastgen_jax.batching import StepShape
from fastgen_jax.bench.machine import load_average, machine_facts
from fastgen_jax.bench.spread import Spread
from fastgen_jax.config import EngineConfig, resolve_config
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.sources import resolve_model
from fastgen_jax.models.tensors import ATTENTION_MATRICES, MLP_MATRICES, tensor_shapes
from fastgen_jax.models.weights.checkpoint import open_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class MatmulTimes:
    """Seconds that one step's products take: those of all layers, and the head's."""

    shape: StepShape
    layers: Spread
    head: Spread

    @property
    def seconds(self) -> float:
        """Medians of both together."""
        return self.layers.median + self.head.median


class Products:
    """The model's products with random weights, compiled per shape; nothing else of the model."""

    def __init__(self, model: ModelConfig, weights: Mapping[str, Array]) -> None:
        self._model = model
        self._weights = weights

    def time(self, shape: StepShape, repeats: int) -> MatmulTimes:
        """The shape's times; compiles two programs first."""
        times = time_in_turns(self.calls(shape), repeats)
        return MatmulTimes(shape=shape, layers=times["layers"], head=times["head"])

    def calls(self, shape: StepShape) -> dict[str, Callable[[], object]]:
        """Calls to time by name, "layers" and "head", which return when the products are there."""
        weights = self._weights
        matrices = [
            [weights[f"layers.{layer}.{name}"] for name in (*ATTENTION_MATRICES, *MLP_MATRICES)]
            for layer in range(self._model.num_layers)
        ]
        head = weights.get("head", weights["embed"])
        dtype = weights["embed"].dtype
        x = random_array((shape.num_tokens, self._model.hidden_size), dtype, seed=1)
        hidden = x[: shape.num_rows]
        run_layers = jax.jit(_layer_products).lower(matrices, x).compile()
        run_head = jax.jit(_head_product).lower(head, hidden).compile()
        return {
            "layers": lambda: jax.block_until_ready(run_layers(matrices, x)),
            "head": lambda: jax.block_until_ready(run_head(head, hidden)),
        }


def limit_as_run(
    num_tokens: int, steps: Mapping[StepShape, int], seconds: Mapping[StepShape, float]
) -> float:
    """Tokens per second if the launched steps took no longer than their products.

    Args:
        num_tokens: prompt and generated tokens of the run; padding isn't counted as work done.
        steps: how many steps of each shape the run launched.
        seconds: of one step's products, per shape.
    """
    return num_tokens / sum(count * seconds[shape] for shape, count in steps.items())


def limit_ideally_packed(
    *,
    num_prompt_tokens: int,
    num_output_tokens: int,
    num_requests: int,
    seconds: Mapping[StepShape, float],
) -> float:
    """Tokens per second if prompts filled whole steps, and decodes took all rows of theirs.

    A request's first output token comes with the end of its prompt, so it needs no decode.
    """
    full, decode = max(seconds), decode_shape(tuple(seconds))
    num_decodes = num_output_tokens - num_requests
    prefill_seconds = num_prompt_tokens * seconds[full] / full.num_tokens
    decode_seconds = num_decodes * seconds[decode] / decode.num_rows
    return (num_prompt_tokens + num_output_tokens) / (prefill_seconds + decode_seconds)


def decode_shape(shapes: Sequence[StepShape]) -> StepShape:
    """The smallest shape that decodes as many rows as any can."""
    max_rows = max(shape.num_rows for shape in shapes)
    return min(shape for shape in shapes if shape.num_rows == max_rows)


def read_model_config(model: str) -> ModelConfig:
    """The shape of a model by any name that ``LLM`` takes; no weight is read."""
    with open_checkpoint(resolve_model(model)) as checkpoint:
        return checkpoint.config


def _layer_products(
    matrices: Sequence[Sequence[Array]], x: Float[Array, "T E"]
) -> tuple[Array, list[tuple[Array, ...]]]:
    """Each product feeds another or is a result, so that XLA can leave none out."""
    results: list[tuple[Array, ...]] = []
    for layer in matrices:
        q, k, v, o, gate, up, down = layer
        attended = (x @ q) @ o
        results.append((x @ k, x @ v, attended @ up))
        x = (attended @ gate) @ down
    return x, results


def _head_product(head: Float[Array, "V E"], hidden: Float[Array, "R E"]) -> Float[Array, "R V"]:
    return jnp.einsum("re,ve->rv", hidden, head, preferred_element_type=jnp.float32)


def random_weights(model: ModelConfig, dtype: str) -> dict[str, Array]:
    """Weights of the model's shapes, each matrix with numbers of its own."""
    return {
        name: random_array(shape, jnp.dtype(dtype), seed=index)
        for index, (name, shape) in enumerate(tensor_shapes(model).items())
    }


def random_array(shape: tuple[int, ...], dtype: jnp.dtype, *, seed: int) -> Array:
    """Numbers that a chain of products neither blows up nor lets fade to slow denormals."""
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return jnp.asarray(values * shape[0] ** -0.5 if len(shape) > 1 else values, dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatmulLimit:
    """Times the products of every step shape, and prints the tokens per second they allow."""

    model: str = "smollm2-135m-instruct"
    """A built-in name, a directory, a .gguf file or a Hub id; only its shape is read."""
    dtype: str = "bfloat16"
    """"float32" or "bfloat16"."""
    run: Path | None = None
    """A results file of offline_throughput: its steps, mix and dtype are used."""
    repeats: int = 9
    """Timed calls per shape."""
    out: Path = Path("benchmarks/results/matmul_limit.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Measure, print, write."""
        load_at_start = load_average()
        run = None if self.run is None else json.loads(self.run.read_text(encoding="utf-8"))
        dtype = self.dtype if run is None else run["settings"]["dtype"]
        model = read_model_config(self.model)
        steps = {} if run is None else xla_steps(run["startup"]["fastgen_jax"], run)
        shapes = tuple(steps) or xla_ladder(model, dtype)
        workload = draw_workload(Mix() if run is None else Mix(**run["mix"]))
        products = Products(model, random_weights(model, dtype))
        times = [products.time(shape, self.repeats) for shape in shapes]
        print(times_table(times))
        limits = limits_of(times, steps, workload)
        for name, value in limits.items():
            print(f"{name:<16}{value:9.1f} tokens/s")
        content = {
            "machine": asdict(machine_facts()),
            "load_average": [load_at_start, load_average()],
            "dtype": dtype,
            "times": [asdict(one) for one in times],
            "limits": limits,
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def xla_ladder(model: ModelConfig, dtype: str) -> tuple[StepShape, ...]:
    """The shapes of the steps that the engine would run on XLA's products."""
    resolved = resolve_config(
        EngineConfig(dtype=dtype),
        platform=jax.default_backend(),
        model_max_len=model.max_position_embeddings,
    )
    return tuple(StepShape(*shape) for shape in resolved.step_shapes)


def xla_steps(engine: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[StepShape, int]:
    """How many steps of each shape an engine ran on XLA's products; none with native kernels.

    Native kernels skip what pads a step, so its shape doesn't say what XLA would have to compute.
    """
    if engine.get("native", False):
        return {}
    return {StepShape(*item["shape"]): item["count"] for item in answer["steps_by_shape"]}


def limits_of(
    times: Sequence[MatmulTimes], steps: Mapping[StepShape, int], workload: Workload
) -> dict[str, float]:
    """Both limits in tokens per second; "as_run" is left out where no steps are known."""
    seconds = {one.shape: one.seconds for one in times}
    prompt, output = workload.num_prompt_tokens, workload.num_output_tokens
    limits = {
        "ideally_packed": limit_ideally_packed(
            num_prompt_tokens=prompt,
            num_output_tokens=output,
            num_requests=len(workload.requests),
            seconds=seconds,
        )
    }
    if steps:
        limits["as_run"] = limit_as_run(prompt + output, steps, seconds)
    return limits


def times_table(times: Sequence[MatmulTimes]) -> str:
    """A line per shape: milliseconds of the layers' products and the head's."""
    lines = [f"{'shape':>10}{'layers ms':>12}{'head ms':>10}{'tokens/s':>11}"]
    for one in times:
        tokens, rows = one.shape
        lines.append(
            f"{f'{tokens} x {rows}':>10}{1e3 * one.layers.median:12.1f}"
            f"{1e3 * one.head.median:10.1f}{tokens / one.seconds:11.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(MatmulLimit, description=__doc__).main()
