"""Where a step's time goes: the whole compiled step, and its parts compiled and timed alone.

Two steps are taken out of what the scheduler makes of 32 equal requests: a full-budget one from
the middle of the prompts, decodes riding along, and a decode step with every row taken. Both run on
the kernels that the engine would choose, without chaining. The remainder is what the parts don't
explain: unpacking, log-probabilities, and what a part gains or loses by running alone. Host time
runs beside the device, on the step before; it is shown against the step and isn't part of the sum.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import jax
import tyro

from benchmarks.matmul_limit import read_model_config
from benchmarks.measurement import write_measurement
from benchmarks.recorded_step import RecordedStep, record_steps
from benchmarks.step_parts import StepParts
from benchmarks.timing import time_in_turns
from benchmarks.workload import Mix, Workload, draw_workload
from fastgen_jax.batching import StepShape
from fastgen_jax.bench.machine import load_average
from fastgen_jax.bench.spread import Spread
from fastgen_jax.config import EngineConfig, ResolvedConfig, resolve_config, usable_cores
from fastgen_jax.kv.layout import blocks_for
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.decoder import Decoder
from fastgen_jax.models.weights.packing import choose_packing
from fastgen_jax.runtime.cache import cache_spec
from fastgen_jax.runtime.kernels import with_kernels
from fastgen_jax.runtime.step import StepSpec
from fastgen_jax.runtime.weights import (
    DenseSource,
    PackedSource,
    WeightSource,
    random_stacks,
    random_tensors,
)
from fastgen_jax.sampling import RowLimits
from fastgen_jax.scheduling.config import SchedulerConfig
from pallas_kernels import target_of
from pallas_kernels.linear import LinearNative, LinearReference
from pallas_kernels.native import native_obstacle, set_num_threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One step's times in seconds.

    Attributes:
        name: "decode" or "full budget".
        shape: of the compiled step.
        num_tokens: tokens in it, padding not counted.
        num_decode_tokens: of these, decodes.
        whole: the compiled step.
        parts: its parts, each alone.
        host_seconds: scheduling, packing and reading, median over all steps of the shape.
    """

    name: str
    shape: StepShape
    num_tokens: int
    num_decode_tokens: int
    whole: Spread
    parts: dict[str, Spread]
    host_seconds: float

    @property
    def remainder(self) -> float:
        """Seconds of the step that the parts don't explain; negative if they take longer alone."""
        return self.whole.median - sum(part.median for part in self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything that the profiled steps have in common."""

    model: ModelConfig
    config: EngineConfig
    resolved: ResolvedConfig
    limits: RowLimits
    workload: Workload

    @classmethod
    def of(cls, model: ModelConfig, config: EngineConfig, mix: Mix) -> Setup:
        """As the engine would resolve it on this platform."""
        resolved = resolve_config(
            config,
            platform=jax.default_backend(),
            model_max_len=model.max_position_embeddings,
            has_native=native_obstacle() is None,
        )
        limits = RowLimits(
            max_num_seqs=resolved.max_num_seqs,
            max_model_len=resolved.max_model_len,
            vocab_size=model.vocab_size,
            max_logprobs=config.max_logprobs,
            max_logit_bias=config.max_logit_bias,
            max_bad_words=config.max_bad_words,
        )
        workload = draw_workload(mix)
        return cls(model=model, config=config, resolved=resolved, limits=limits, workload=workload)

    @property
    def num_blocks(self) -> int:
        """Blocks that hold all requests at once, and the null block."""
        blocks = blocks_for(self.workload.max_request_tokens, self.resolved.block_size)
        return len(self.workload.requests) * blocks + 1

    def record(self) -> list[RecordedStep]:
        """The workload's steps."""
        resolved = self.resolved
        return record_steps(
            self.workload,
            shapes=[StepShape(*shape) for shape in resolved.step_shapes],
            limits=self.limits,
            scheduler=SchedulerConfig(
                token_budget=resolved.token_budget,
                max_num_seqs=resolved.max_num_seqs,
                max_step_rows=resolved.step_shapes[-1][1],
                max_model_len=resolved.max_model_len,
                block_size=resolved.block_size,
                num_blocks=self.num_blocks,
                enable_prefix_caching=False,
            ),
            max_blocks_per_seq=resolved.max_blocks_per_seq,
        )

    def decoder(self) -> Decoder:
        """The decoder with random weights, as the engine would hold them."""
        model, config, resolved = self.model, self.config, self.resolved
        if resolved.is_native:
            set_num_threads(usable_cores())
        if not resolved.is_native and config.quantization is None:
            source: WeightSource = DenseSource(
                model=model, dtype=resolved.dtype, tensors=random_tensors(model, config.seed)
            )
        else:
            packing = choose_packing(model, dtype=resolved.dtype, quantization=config.quantization)
            rounds_rows = resolved.activation_quantization == "int8"
            source = PackedSource(
                model=model,
                packing=packing,
                linear=(
                    LinearNative(rounds_rows=rounds_rows)
                    if resolved.is_native
                    else LinearReference(rounds_rows=rounds_rows)
                ),
                stacks=random_stacks(model, packing, config.seed),
            )
        return Decoder(model, source.load(lambda num_bytes: None))

    def parts(self, decoder: Decoder, step: RecordedStep) -> StepParts:
        """The step's parts, to compile, with the kernels that the engine would choose."""
        cache = cache_spec(
            self.model,
            num_blocks=self.num_blocks,
            block_size=self.resolved.block_size,
            dtype=self.resolved.dtype,
            unroll_layers=jax.default_backend() != "cpu",
        )
        spec = StepSpec(
            shape=step.shape,
            max_blocks_per_seq=self.resolved.max_blocks_per_seq,
            max_logprobs=self.limits.max_logprobs,
            cache=cache,
        )
        target = target_of(jax.local_devices()[0])
        named = self.resolved.implementation
        spec = with_kernels(spec, self.model, target, implementation=named)
        return StepParts(decoder=decoder, spec=spec, limits=self.limits, step=step)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProfile:
    """Profiles a decode step and a full-budget step, prints a table, and writes the numbers."""

    model: str = "smollm2-135m-instruct"
    """A built-in name, a directory, a .gguf file or a Hub id; only its shape is read."""
    dtype: str = "bfloat16"
    """"float32" or "bfloat16"."""
    implementation: str = "auto"
    """"auto", or "xla" to profile the step without native kernels."""
    quantization: Literal["int8", "int4"] | None = None
    """How weights are packed; None keeps them in dtype."""
    num_requests: int = 32
    """Requests running at once; the decode step needs as many as a step has rows."""
    context: int = 256
    """Tokens of every prompt."""
    outputs: int = 64
    """Tokens of every output; the decode step stands in the middle of the last ones."""
    max_model_len: int = 2048
    """Most tokens of a request."""
    repeats: int = 15
    """Timed calls of the step and of each part."""
    quick: bool = False
    """2 timed calls: does it work at all?"""
    out: Path = Path("benchmarks/results/step_profile.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Measure, print, write."""
        load_at_start = load_average()
        mix = Mix(
            num_requests=self.num_requests,
            prompt_mean=self.context,
            output_mean=self.outputs,
            relative_deviation=0.0,
        )
        config = EngineConfig(
            dtype=self.dtype,
            max_num_seqs=self.num_requests,
            max_model_len=self.max_model_len,
            implementation=self.implementation,
            quantization=self.quantization,
        )
        setup = Setup.of(read_model_config(self.model), config, mix)
        steps = setup.record()
        decoder = setup.decoder()
        profiles: list[Profile] = []
        for name, step in choose_steps(steps).items():
            host = [one.host_seconds for one in steps if one.shape == step.shape]
            parts = setup.parts(decoder, step)
            repeats = 2 if self.quick else self.repeats
            profiles.append(profile_step(name, parts, statistics.median(host), repeats))
            print(profile_table(profiles[-1]), end="\n\n", flush=True)
        names = ("dtype", "implementation", "quantization", "num_requests", "context", "outputs")
        names += ("max_model_len", "quick")
        write_measurement(
            self.out,
            settings={name: getattr(self, name) for name in names},
            load_at_start=load_at_start,
            numbers={
                "is_native": setup.resolved.is_native,
                "profiles": [{**asdict(one), "remainder": one.remainder} for one in profiles],
            },
        )


def choose_steps(steps: Sequence[RecordedStep]) -> dict[str, RecordedStep]:
    """The middle one of the steps that fill the budget, and of those that decode every row."""
    full_shape = max(step.shape for step in steps)
    full = [step for step in steps if step.num_tokens == full_shape.num_tokens]
    decodes = [
        step for step in steps if step.num_tokens == step.num_decode_tokens == full_shape.num_rows
    ]
    if not full or not decodes:
        raise SystemExit("no step fills the budget, or none decodes every row: give more requests")
    return {"decode": decodes[len(decodes) // 2], "full budget": full[len(full) // 2]}


def profile_step(name: str, parts: StepParts, host_seconds: float, repeats: int) -> Profile:
    """The step's times; everything compiles first, then step and parts take turns."""
    calls = {
        "whole": parts.whole(),
        "layers: products and norms": parts.layers(),
        "attention": parts.attention(),
        "KV write": parts.kv_write(),
        "head": parts.head(),
        "sampler": parts.sampler(),
    }
    times = time_in_turns(calls, repeats)
    return Profile(
        name=name,
        shape=parts.spec.shape,
        num_tokens=parts.step.num_tokens,
        num_decode_tokens=parts.step.num_decode_tokens,
        whole=times.pop("whole"),
        parts=times,
        host_seconds=host_seconds,
    )


def profile_table(profile: Profile) -> str:
    """Milliseconds and share of the step, a line per part."""
    whole = profile.whole.median
    rows = {name: part.median for name, part in profile.parts.items()}
    rows |= {"remainder": profile.remainder, "whole step": whole}
    tokens, num_rows = profile.shape
    lines = [f"{profile.name}: {tokens} x {num_rows}, {profile.num_decode_tokens} decodes"]
    lines[0] += f" among {profile.num_tokens} tokens"
    lines += [f"  {name:<28}{1e3 * t:9.2f} ms{t / whole:8.1%}" for name, t in rows.items()]
    host = profile.host_seconds
    lines.append(f"  {'host, beside the step':<28}{1e3 * host:9.2f} ms{host / whole:8.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(StepProfile, description=__doc__).main()
