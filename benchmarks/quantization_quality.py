"""What keeping weights in fewer bits costs in quality: perplexity of fixed texts, by the engine.

Every text in ``benchmarks/texts`` is a prompt of its own, and the engine's ``prompt_logprobs`` say
how likely it found each token after those before it. Perplexity is the exponential of the mean
negative log-probability; smaller is better, and the relative change to float32 is what counts.

The built-in model's file is in 4 bits already (Q4_1), in the groups that int4 uses too, so int4
would find them ready. Those figures that quantize anew are therefore taken on the same weights in
another order (``shuffled_model``), whose float32 perplexity is the same and is measured beside.

Each is measured with activations as they are and rounded to int8 (``activation_quantization``).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from benchmarks.measurement import write_measurement
from benchmarks.shuffled_model import write_shuffled
from fastgen_jax.bench.machine import load_average

if TYPE_CHECKING:
    from fastgen_jax.outputs import RequestOutput

TEXTS = Path(__file__).parent / "texts"
STEP_TOKENS, STEP_ROWS = 256, 4
AS_STORED, SHUFFLED = "as stored", "shuffled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to compute products; ``order`` says which of the two models it is tried on."""

    order: str
    dtype: str
    quantization: str | None = None
    activation_quantization: str = "none"

    @property
    def name(self) -> str:
        """As in the table."""
        return self.quantization or self.dtype


def _both(order: str, dtype: str, quantization: str) -> tuple[Variant, Variant]:
    exact = Variant(order=order, dtype=dtype, quantization=quantization)
    return exact, replace(exact, activation_quantization="int8")


# The first of each order is what the others of that order are compared with.
VARIANTS = (
    Variant(order=AS_STORED, dtype="float32"),
    Variant(order=AS_STORED, dtype="bfloat16"),
    *_both(AS_STORED, "float32", "gguf"),
    *_both(AS_STORED, "bfloat16", "gguf"),
    Variant(order=SHUFFLED, dtype="float32"),
    *_both(SHUFFLED, "float32", "int8"),
    *_both(SHUFFLED, "float32", "int4"),
    *_both(SHUFFLED, "bfloat16", "int8"),
    *_both(SHUFFLED, "bfloat16", "int4"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A variant's result.

    Attributes:
        perplexity: of all texts together.
        by_text: of each one.
        relative_change: of the perplexity, to the first variant of the same order.
        weight_bytes: what the weights take in memory.
    """

    order: str
    dtype: str
    quantization: str | None
    activation_quantization: str
    perplexity: float
    by_text: Mapping[str, float]
    relative_change: float
    weight_bytes: int


def perplexity(logprobs: Sequence[float]) -> float:
    """The exponential of the mean negative log-probability; ValueError for none."""
    if not logprobs:
        raise ValueError("no tokens to judge")
    return math.exp(-math.fsum(logprobs) / len(logprobs))


def prompt_logprobs(output: RequestOutput) -> list[float]:
    """The log-probability of each of a prompt's tokens but the first."""
    assert output.prompt_logprobs is not None
    pairs = zip(output.prompt_token_ids, output.prompt_logprobs, strict=True)
    return [entry[token].logprob for token, entry in pairs if entry is not None]


def measure(
    model: str | Path,
    prompts: Mapping[str, Sequence[int]],
    *,
    dtype: str,
    quantization: str | None,
    activation_quantization: str = "none",
) -> tuple[dict[str, list[float]], int]:
    """Log-probabilities of each prompt's tokens, and the bytes of the weights."""
    # Imported here: the engine is only needed where something is measured.
    from fastgen_jax.llm import LLM
    from fastgen_jax.sampling_params import SamplingParams

    longest = max(len(prompt) for prompt in prompts.values())
    settings: dict[str, Any] = {
        "dtype": dtype,
        "quantization": quantization,
        "activation_quantization": activation_quantization,
    }
    with LLM(
        model,
        **settings,
        max_model_len=longest + 1,
        step_shapes=((STEP_TOKENS, STEP_ROWS),),  # one program to compile; time isn't measured
        enable_prefix_caching=False,
        show_progress=False,
    ) as llm:
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        outputs = llm.generate([list(prompt) for prompt in prompts.values()], params)
        weight_bytes = llm.startup.memory_plan.weights
    found = {name: prompt_logprobs(output) for name, output in zip(prompts, outputs, strict=True)}
    return found, weight_bytes


def tokenized(source: Path, texts: Mapping[str, str]) -> dict[str, list[int]]:
    """The texts in the tokens of a GGUF file's tokenizer."""
    from fastgen_jax.models.weights.checkpoint import open_checkpoint
    from fastgen_jax.text import tokenizer_from_gguf

    with open_checkpoint(source) as checkpoint:
        assert checkpoint.tokenizer_fields is not None
        tokenizer = tokenizer_from_gguf(checkpoint.tokenizer_fields)
    assert tokenizer is not None
    return {name: list(tokenizer.encode(text)) for name, text in texts.items()}


def read_texts() -> dict[str, str]:
    """The texts by name."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(TEXTS.glob("*.txt"))}


def table(results: Sequence[Quality]) -> str:
    """The results as lines of text."""
    head = f"{'weights':10} {'order':10} {'dtype':9} {'rounded':8}"
    lines = [f"{head} {'perplexity':>10} {'change':>9} {'MB':>6}"]
    for result in results:
        name = result.quantization or result.dtype
        lines.append(
            f"{name:10} {result.order:10} {result.dtype:9} {result.activation_quantization:8} "
            f"{result.perplexity:10.4f} {result.relative_change:+9.3%} "
            f"{result.weight_bytes / 1e6:6.0f}"
        )
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationQuality:
    """Measures every variant, prints a table, writes every number."""

    model: str = "smollm2-135m-instruct"
    """A built-in name or a .gguf file."""
    quick: bool = False
    """Only the start of one text; tries the script out."""
    out: Path = Path("benchmarks/results/quantization_quality.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Run."""
        from fastgen_jax.models.sources import resolve_model

        load_at_start = load_average()
        source = resolve_model(self.model, progress=False)
        prompts = tokenized(source, read_texts())
        if self.quick:
            name, prompt = next(iter(prompts.items()))
            prompts = {name: prompt[:64]}
        with tempfile.TemporaryDirectory() as scratch:
            write_shuffled(source, Path(scratch))
            results = self._measure_all({AS_STORED: source, SHUFFLED: Path(scratch)}, prompts)
        print(table(results))
        write_measurement(
            self.out,
            settings={
                "model": self.model if Path(self.model).suffix == "" else Path(self.model).name,
                "tokens": {name: len(prompt) for name, prompt in prompts.items()},
            },
            load_at_start=load_at_start,
            numbers={"variants": [asdict(result) for result in results]},
        )

    def _measure_all(
        self, models: Mapping[str, Path], prompts: Mapping[str, Sequence[int]]
    ) -> list[Quality]:
        results: list[Quality] = []
        baselines: dict[str, float] = {}
        for variant in VARIANTS:
            found, weight_bytes = measure(
                models[variant.order],
                prompts,
                dtype=variant.dtype,
                quantization=variant.quantization,
                activation_quantization=variant.activation_quantization,
            )
            value = perplexity([logprob for text in found.values() for logprob in text])
            baseline = baselines.setdefault(variant.order, value)
            results.append(
                Quality(
                    order=variant.order,
                    dtype=variant.dtype,
                    quantization=variant.quantization,
                    activation_quantization=variant.activation_quantization,
                    perplexity=value,
                    by_text={name: perplexity(logprobs) for name, logprobs in found.items()},
                    relative_change=value / baseline - 1,
                    weight_bytes=weight_bytes,
                )
            )
            rounding = f"activations {variant.activation_quantization}"
            print(
                f"{variant.order}, {variant.dtype}, {variant.name}, {rounding}: {value:.4f}",
                flush=True,
            )
        return results


if __name__ == "__main__":
    tyro.cli(QuantizationQuality, description=__doc__).main()
