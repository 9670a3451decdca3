"""docs/images/timeline.svg: a seeded simulation, so that the picture can be made again.

    python scripts/timeline_doc.py --write

A test holds the committed picture to it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fastgen_jax.observe.step_history import StepHistory
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from fastgen_jax.sim.costs.table import LLAMA_2_13B_A100_MS, TableCost
from fastgen_jax.sim.simulator import Simulator
from fastgen_jax.sim.workloads.lengths import UniformLengths
from fastgen_jax.sim.workloads.mix import RequestMix
from fastgen_jax.sim.workloads.open_loop import OpenLoop
from fastgen_jax.sim.workloads.prompts import UniquePrompts

SEED = 6
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "timeline.svg"


def history() -> StepHistory:
    """Sixteen requests to a small pool of blocks, so that some wait and one is preempted."""
    config = SchedulerConfig(
        token_budget=256,
        max_num_seqs=6,
        max_step_rows=6,
        max_model_len=1024,
        block_size=16,
        num_blocks=80,
    )
    mix = RequestMix(prompts=UniquePrompts(UniformLengths(40, 500)), outputs=UniformLengths(10, 60))
    made = StepHistory()
    cost = TableCost.scaled(LLAMA_2_13B_A100_MS)
    workload = OpenLoop(rate=8, num_requests=16, mix=mix, seed=SEED)
    Simulator(config, cost, observers=[made], merge_decodes=False).run(workload)
    return made


def main() -> None:
    """Print what the picture's requests went through, or write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    made = history()
    if parser.parse_args().write:
        PICTURE.parent.mkdir(exist_ok=True)
        made.timeline().save(PICTURE)
        return
    for request_id in made.request_rows()["request_id"]:
        print(made.explain(str(request_id)), end="\n\n")


if __name__ == "__main__":
    main()
