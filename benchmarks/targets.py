"""What this project holds its speed on a CPU to, and what the results say of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.report_tables import Content, table

OWN, LLAMA = "fastgen_jax", "llama.cpp"
MOST_ROWS = 32  # of the decode steps that the target speaks of


class MissingResultError(Exception):
    """A results file, or a part of it, isn't there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A number to be at least, or at most, so much.

    Attributes:
        name: what is measured.
        bound: "at least" or "at most".
        limit: the number.
        unit: of the number, with a space before it where it needs one.
        measure: the number as the results have it; MissingResultError where they don't.
    """

    name: str
    bound: Literal["at least", "at most"]
    limit: float
    unit: str
    measure: Callable[[Results], float]

    def is_met(self, value: float) -> bool:
        """Whether a measured value is within the bound."""
        return value >= self.limit if self.bound == "at least" else value <= self.limit

    def row(self, results: Results) -> list[str]:
        """The target, the measured number, and whether it is met."""
        limit = f"{self.bound} {self.limit:g}{self.unit}"
        try:
            value = self.measure(results)
        except MissingResultError:
            return [self.name, limit, "not measured", ""]
        return [self.name, limit, f"{value:.2f}{self.unit}", "yes" if self.is_met(value) else "no"]


@dataclass(frozen=True, slots=True)
class Results:
    """The results files of a directory."""

    directory: Path

    def file(self, name: str) -> Content:
        """A results file's content; a trial run counts as missing."""
        path = self.directory / f"{name}.json"
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if content is None or content.get("settings", {}).get("quick"):
            raise MissingResultError(name)
        return content


def targets_table(directory: Path) -> str:
    """All targets as a markdown table."""
    results = Results(directory)
    rows = [target.row(results) for target in TARGETS]
    return table(["", "target", "measured", "met"], rows) + "\n"


def _faster_than_servers(results: Results) -> float:
    llama, vllm = results.file("offline_throughput"), results.file("offline_throughput_vllm")
    ratios = [_median(llama, "times_faster", LLAMA), _median(vllm, "times_faster", "vllm")]
    if llama["llama_batched_bench"]:
        ratios.append(_median(llama, "llama_batched_bench", "times_faster"))
    return min(ratios)


def _faster_than_transformers(results: Results) -> float:
    content = results.file("offline_throughput_transformers")
    return _median(content, "times_faster", "transformers")


def _faster_decode(packing: str) -> Callable[[Results], float]:
    def measure(results: Results) -> float:
        content = results.file("single_stream")
        ratios = [_median(content, "ratios", f"{LLAMA} {packing}", "decode")]
        if f"{LLAMA} {packing}" in content["llama_bench"]:
            ratios.append(_median(content, "llama_bench", f"{LLAMA} {packing}", "decode_ratio"))
        return min(ratios)

    return measure


def _bandwidth_share(results: Results) -> float:
    return _at(results.file("single_stream"), "streams", f"{OWN} BF16", "bandwidth_share")


def _sooner(results: Results) -> float:
    llama, vllm = results.file("single_stream"), results.file("single_stream_vllm")
    return min(
        _median(llama, "ratios", f"{LLAMA} BF16", "first_token"),
        _median(vllm, "ratios", "vllm BF16", "first_token"),
    )


def _times_floor(results: Results) -> float:
    cells: Iterable[Content] = results.file("decode_steps")["cells"]
    return max(one["times_floor"] for one in cells if one["rows"] <= MOST_ROWS)


def _first_token(kinds: tuple[str, ...]) -> Callable[[Results], float]:
    """The best of several ways to start."""

    def measure(results: Results) -> float:
        content = results.file("start_up")
        return min(_median(content, "first_token_seconds", kind) for kind in kinds)

    return measure


def _import(results: Results) -> float:
    return _at(results.file("start_up"), "import_seconds", "fastgen_jax")


def _host_time(results: Results) -> float:
    milliseconds: Mapping[str, Any] = results.file("host_time")["milliseconds"]
    queued = [one for name, one in milliseconds.items() if name == "10000 queued"]
    if not queued:
        raise MissingResultError("10000 queued")
    return queued[0]["step"]["median"]


def _gap(results: Results) -> float:
    content = results.file("step_gap")
    return 100 * max(content["gap_share_of_step"], content["gap_share_of_traced_time"])


def _less_prefill(results: Results) -> float:
    return _median(results.file("prefix_cache"), "times_less")


def _other_tokens(results: Results) -> float:
    return float(sum(results.file("prefix_cache")["num_requests_with_other_tokens"]))


def _median(content: Content, *names: str) -> float:
    return _at(content, *names, "median")


def _at(content: Content, *names: str) -> float:
    found: Any = content
    for name in names:
        if name not in found:
            raise MissingResultError(name)
        found = found[name]
    return found


TARGETS = (
    Target(
        name="throughput over the better of llama.cpp and vLLM",
        bound="at least",
        limit=1.6,
        unit="×",
        measure=_faster_than_servers,
    ),
    Target(
        name="throughput over transformers",
        bound="at least",
        limit=8.0,
        unit="×",
        measure=_faster_than_transformers,
    ),
    *(
        Target(
            name=f"decode of one stream over llama.cpp, {packing}",
            bound="at least",
            limit=limit,
            unit="×",
            measure=_faster_decode(packing),
        )
        for packing, limit in (("BF16", 1.0), ("Q4_1", 1.5), ("Q8_0", 1.5))
    ),
    Target(
        name="share of the memory's read rate in that, BF16",
        bound="at least",
        limit=0.85,
        unit="",
        measure=_bandwidth_share,
    ),
    Target(
        name="first token of 512 sooner than the better of llama.cpp and vLLM",
        bound="at least",
        limit=1.3,
        unit="×",
        measure=_sooner,
    ),
    Target(
        name=f"longest decode step over its floor, 1 to {MOST_ROWS} rows",
        bound="at most",
        limit=1.4,
        unit="×",
        measure=_times_floor,
    ),
    Target(
        name="cold start to the first token, the faster way",
        bound="at most",
        limit=10.0,
        unit=" s",
        measure=_first_token(("cold", "cold, in background")),
    ),
    Target(
        name="warm start to the first token",
        bound="at most",
        limit=4.0,
        unit=" s",
        measure=_first_token(("warm",)),
    ),
    Target(name="`import fastgen_jax`", bound="at most", limit=1.5, unit=" s", measure=_import),
    Target(
        name="host time of a step, 256 running and 10,000 queued",
        bound="at most",
        limit=0.5,
        unit=" ms",
        measure=_host_time,
    ),
    Target(name="gap between device steps", bound="at most", limit=3.0, unit=" %", measure=_gap),
    Target(
        name="prefill with the prefix cached",
        bound="at least",
        limit=5.0,
        unit="× less",
        measure=_less_prefill,
    ),
    Target(
        name="requests whose tokens the prefix cache changed",
        bound="at most",
        limit=0.0,
        unit="",
        measure=_other_tokens,
    ),
)
