"""Where a step's time goes: the whole compiled step, and its parts compiled and timed alone.

Two steps are taken out of what the scheduler makes of 32 equal requests: a full-budget one from
the middle of the prompts, decodes riding along, and a decode step with every row taken. The
remainder is what the parts don't explain: embedding, unpacking, switches between the layers'
weights, and what a part gains or loses by running alone. Host time runs beside the device, on the
step before; it is shown against the step and isn't part of the sum.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import tyro
from jaxtyping import Array

from benchmarks.machine import load_average, machine_facts
from benchmarks.matmul_limit import Products, random_weights, read_model_config
from benchmarks.recorded_step import RecordedStep, record_steps
from benchmarks.step_parts import StepParts
from benchmarks.timing import Spread, time_in_turns
from benchmarks.workload import Mix, Workload, draw_workload
from fastgen_jax.batching import StepShape
from fastgen_jax.config import EngineConfig, ResolvedConfig, resolve_config
from fastgen_jax.kv.layout import blocks_for
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.runtime.cache import cache_spec
from fastgen_jax.runtime.step import StepSpec
from fastgen_jax.sampling import RowLimits
from fastgen_jax.scheduling.config import SchedulerConfig


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
        backbone: the decoder without attention and cache: a check on matmuls + elementwise.
        host_seconds: scheduling, packing and reading, median over all steps of the shape.
    """

    name: str
    shape: StepShape
    num_tokens: int
    num_decode_tokens: int
    whole: Spread
    parts: dict[str, Spread]
    backbone: Spread
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

    def parts(self, weights: Mapping[str, Array], step: RecordedStep) -> StepParts:
        """The step's parts, to compile."""
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
        return StepParts(
            model=self.model, weights=weights, spec=spec, limits=self.limits, step=step
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProfile:
    """Profiles a decode step and a full-budget step, prints a table, and writes the numbers."""

    model: str = "smollm2-135m-instruct"
    """A built-in name, a directory, a .gguf file or a Hub id; only its shape is read."""
    dtype: str = "bfloat16"
    """"float32" or "bfloat16"."""
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
            dtype=self.dtype, max_num_seqs=self.num_requests, max_model_len=self.max_model_len
        )
        setup = Setup.of(read_model_config(self.model), config, mix)
        steps = setup.record()
        weights = random_weights(setup.model, self.dtype)
        profiles: list[Profile] = []
        for name, step in choose_steps(steps).items():
            host = [one.host_seconds for one in steps if one.shape == step.shape]
            parts = setup.parts(weights, step)
            repeats = 2 if self.quick else self.repeats
            profiles.append(profile_step(name, parts, statistics.median(host), repeats))
            print(profile_table(profiles[-1]), end="\n\n", flush=True)
        content = {
            "machine": asdict(machine_facts()),
            "load_average": {"start": load_at_start, "end": load_average()},
            "settings": {
                name: getattr(self, name)
                for name in ("dtype", "num_requests", "context", "outputs", "max_model_len")
            },
            "profiles": [{**asdict(one), "remainder": one.remainder} for one in profiles],
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


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
    products = Products(parts.model, parts.weights).calls(parts.spec.shape)
    calls = {
        "whole": parts.whole(),
        "backbone": parts.backbone(),
        "matmuls": products["layers"],
        "head": products["head"],
        "attention": parts.attention(),
        "KV write": parts.kv_write(),
        "elementwise": parts.elementwise(),
        "sampler": parts.sampler(),
    }
    times = time_in_turns(calls, repeats)
    return Profile(
        name=name,
        shape=parts.spec.shape,
        num_tokens=parts.step.num_tokens,
        num_decode_tokens=parts.step.num_decode_tokens,
        whole=times.pop("whole"),
        backbone=times.pop("backbone"),
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
    lines += [f"  {name:<22}{1e3 * t:9.2f} ms{t / whole:8.1%}" for name, t in rows.items()]
    beside = {
        "backbone (check)": profile.backbone.median,
        "host, beside the step": profile.host_seconds,
    }
    lines += [f"  {name:<22}{1e3 * t:9.2f} ms{t / whole:8.1%}" for name, t in beside.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(StepProfile, description=__doc__).main()
