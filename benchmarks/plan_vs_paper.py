"""The estimate of ``fastgen plan`` beside the one measured curve that is known for such a step.

The FastGen paper (Holmes et al., 2024, arXiv 2401.08671, section 3.1) shows the latency of one
forward pass over 64 to 2048 tokens, batch 1. It names neither model nor GPU; throughput times
latency over tokens gives 26 GFLOP a token at every point, which is Llama-2-13B, and its best
throughput 69 % of an A100's dense rate. The points were read off the figure, to about a
millisecond. The paper's time is that of another engine's pass, host work included.

Here the engine's own step of so many tokens is compiled for an A100 that isn't there, and priced
with the estimate's default assumptions. Layers are alike, so two and three of them are compiled,
and the difference is a layer; ``--full`` compiles all 40, to check that. Two of the assumptions
(``tensor`` and ``overlap``) were chosen with this curve in sight: the table shows that one pair
fits all points, not that they could have been foretold.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastgen_jax.config import Implementation
from fastgen_jax.models.shapes import SHAPES
from fastgen_jax.plan import Plan, plan
from fastgen_jax.plan.roofline import Efficiencies
from fastgen_jax.sim.costs.table import LLAMA_2_13B_A100_MS

PAPER_MS = LLAMA_2_13B_A100_MS
MODEL, GPU = "llama-2-13b", "a100"
WANTED = 0.25
RESULT = Path(__file__).parent / "results" / "plan_vs_paper.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One number of tokens; milliseconds. ``error`` is relative to the paper."""

    tokens: int
    paper_ms: float
    estimate_ms: float
    floor_ms: float
    by_kind_ms: dict[str, float]

    @property
    def error(self) -> float:
        """Of the estimate."""
        return self.estimate_ms / self.paper_ms - 1


def forward(tokens: int, num_layers: int, implementation: Implementation | None) -> Plan:
    """The plan of one prompt chunk alone in a step."""
    return plan(
        replace(SHAPES[MODEL], layers=SHAPES[MODEL].layers[:num_layers]),
        gpu=GPU,
        context=tokens,
        max_num_seqs=1,
        step_shapes=[(tokens, 1)],
        implementation=implementation,
    )


def kinds_ms(made: Plan) -> dict[str, float]:
    """Milliseconds by kind of kernel."""
    return {kind: 1e3 * s for kind, s in made.steps[0].estimate.seconds_by_kind}


def extended_ms(two: Plan, three: Plan, num_layers: int) -> dict[str, float]:
    """Milliseconds by kind with as many layers, each the difference of the third."""
    first, second = kinds_ms(two), kinds_ms(three)
    return {
        kind: first.get(kind, 0.0) + (num_layers - 2) * (ms - first.get(kind, 0.0))
        for kind, ms in second.items()
    }


def compare(tokens: int, implementation: Implementation | None) -> Point:
    """One point of the curve."""
    model = SHAPES[MODEL]
    two, three = (forward(tokens, layers, implementation) for layers in (2, 3))
    by_kind = extended_ms(two, three, model.num_layers)
    floors = [1e3 * made.steps[0].estimate.floor_seconds for made in (two, three)]
    return Point(
        tokens=tokens,
        paper_ms=PAPER_MS[tokens],
        estimate_ms=sum(by_kind.values()),
        floor_ms=floors[0] + (model.num_layers - 2) * (floors[1] - floors[0]),
        by_kind_ms=by_kind,
    )


def stored(path: Path) -> dict[int, dict[str, Any]]:
    """The points of an earlier run with the same assumptions, by tokens."""
    if not path.is_file():
        return {}
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["assumed"] != json.loads(json.dumps(asdict(Efficiencies()))):
        return {}
    return {point["tokens"]: point for point in result["points"]}


def main() -> None:
    """Compile, print the table, write the numbers after every point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=list(PAPER_MS))
    parser.add_argument(
        "--full", action="store_true", help="compile all layers, print, don't store"
    )
    parser.add_argument(
        "--implementation", help="of attention and page write; by default the GPU's best"
    )
    parser.add_argument("--keep", action="store_true", help="add to the points stored before")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    points = stored(arguments.out) if arguments.keep else {}
    print("tokens  paper ms  estimate ms   error  floor ms", flush=True)
    for tokens in arguments.tokens:
        if arguments.full:
            whole = kinds_ms(forward(tokens, SHAPES[MODEL].num_layers, arguments.implementation))
            print(f"{tokens:6d}  {PAPER_MS[tokens]:8.1f}  {sum(whole.values()):11.3f}", flush=True)
            continue
        point = compare(tokens, arguments.implementation)
        print(
            f"{tokens:6d}  {point.paper_ms:8.1f}  {point.estimate_ms:11.1f}  {point.error:+6.1%}"
            f"  {point.floor_ms:8.1f}",
            flush=True,
        )
        points[tokens] = asdict(point) | {"error": point.error}
        write(points, arguments.out)
    if arguments.full:
        return
    beyond = [tokens for tokens, point in points.items() if abs(point["error"]) > WANTED]
    print(f"{len(points)} points; beyond {WANTED:.0%}: {beyond or 'none'}")


def write(points: dict[int, dict[str, Any]], path: Path) -> None:
    """The points with what they were priced with."""
    result = {
        "model": MODEL,
        "gpu": GPU,
        "assumed": asdict(Efficiencies()),
        "points": [points[tokens] for tokens in sorted(points)],
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
