"""Is the engine as good as transformers in bfloat16? Perplexity of fixed texts by both.

The same tokens, and the same weights: the engine reads a built-in model's GGUF file, transformers
a Hugging Face directory that ``scripts/references/make_model_references.py`` and
``make_gemma_references.py`` write of it with ``--export``. In float32 the two are equal to a few
digits; bfloat16 rounds at places that each chooses for itself, which is what is compared here.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.measurement import write_measurement
from benchmarks.quantization_quality import measure, perplexity, read_texts, tokenized
from fastgen_jax.bench.machine import load_average

PEER = Path(__file__).parent / "peers" / "transformers_perplexity.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One model's perplexities.

    Attributes:
        model: built-in name.
        dtype: of weights and activations on both sides.
        engine, transformers: perplexity of all texts together.
        relative_difference: of the engine's to transformers'.
        largest_difference: of one token's log-probability.
        mean_difference: the mean of those differences' sizes.
    """

    model: str
    dtype: str
    engine: float
    transformers: float
    relative_difference: float
    largest_difference: float
    mean_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPerplexity:
    """Measures both sides, prints a line for each model and type, writes every number."""

    hf_python: Path
    """A Python that has torch and transformers."""
    smollm2: Path
    """A Hugging Face directory with the weights of smollm2-135m-instruct."""
    gemma3: Path
    """The same of gemma3-270m."""
    quick: bool = False
    """Only the start of one text; tries the script out."""
    out: Path = Path("benchmarks/results/peer_perplexity.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Run."""
        load_at_start = load_average()
        results: list[Comparison] = []
        versions: set[str] = set()
        for name, directory in (
            ("smollm2-135m-instruct", self.smollm2),
            ("gemma3-270m", self.gemma3),
        ):
            for dtype in ("float32", "bfloat16"):
                result, version = self._compare(name, directory, dtype)
                results.append(result)
                versions.add(version)
                print(line(result), flush=True)
        write_measurement(
            self.out,
            settings={"quick": self.quick, "transformers": sorted(versions)},
            load_at_start=load_at_start,
            numbers={"models": [asdict(result) for result in results]},
        )

    def _compare(self, name: str, directory: Path, dtype: str) -> tuple[Comparison, str]:
        from fastgen_jax.models.sources import resolve_model

        source = resolve_model(name, progress=False)
        prompts = tokenized(source, read_texts())
        if self.quick:
            first, prompt = next(iter(prompts.items()))
            prompts = {first: prompt[:64]}
        ours, _ = measure(source, prompts, dtype=dtype, quantization=None)
        theirs = asked(self.hf_python, directory, dtype, prompts)
        found = compare(name, dtype, ours, theirs["logprobs"])
        return found, theirs["version"]


def compare(
    model: str,
    dtype: str,
    ours: Mapping[str, Sequence[float]],
    theirs: Mapping[str, Sequence[float]],
) -> Comparison:
    """What the log-probabilities of both sides amount to."""
    pairs = [
        pair for name, values in ours.items() for pair in zip(values, theirs[name], strict=True)
    ]
    engine, transformers = (perplexity(values) for values in zip(*pairs, strict=True))
    sizes = [abs(a - b) for a, b in pairs]
    return Comparison(
        model=model,
        dtype=dtype,
        engine=engine,
        transformers=transformers,
        relative_difference=engine / transformers - 1,
        largest_difference=max(sizes),
        mean_difference=sum(sizes) / len(sizes),
    )


def asked(
    python: Path, directory: Path, dtype: str, prompts: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """What transformers finds, in a process of its own."""
    question = {"model": str(directory), "dtype": dtype, "prompts": dict(prompts)}
    answer = subprocess.run(
        [str(python), str(PEER)], input=json.dumps(question), capture_output=True, text=True
    )
    if answer.returncode:
        raise RuntimeError(f"{python} failed:\n{answer.stderr}")
    return json.loads(answer.stdout)


def line(result: Comparison) -> str:
    """One result for people."""
    return (
        f"{result.model:22} {result.dtype:9} engine {result.engine:8.4f}, "
        f"transformers {result.transformers:8.4f}: {result.relative_difference:+.4%}"
    )


if __name__ == "__main__":
    tyro.cli(PeerPerplexity, description=__doc__).main()
