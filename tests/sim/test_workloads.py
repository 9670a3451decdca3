"""Workloads: who sends what, when."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastgen_jax.errors import ConfigError
from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from fastgen_jax.sim.arrival import Arrival
from fastgen_jax.sim.costs.model import ConstantCost
from fastgen_jax.sim.simulator import Simulator
from fastgen_jax.sim.workloads.closed_loop import ClosedLoop
from fastgen_jax.sim.workloads.conversations import Conversations
from fastgen_jax.sim.workloads.lengths import NormalLengths, UniformLengths
from fastgen_jax.sim.workloads.mix import RequestMix
from fastgen_jax.sim.workloads.open_loop import OpenLoop
from fastgen_jax.sim.workloads.prompts import SharedPrefixPrompts, UniquePrompts
from fastgen_jax.sim.workloads.trace import read_trace, write_trace

SHORT = RequestMix(prompts=UniquePrompts(UniformLengths(4, 8)), outputs=UniformLengths(2, 4))


def gaps_of(loop: OpenLoop) -> np.ndarray:
    return np.diff([arrival.time for arrival in loop.start()])


@pytest.mark.parametrize("variation", [0.0, 0.5, 1.0, 3.0])
def test_open_loops_have_the_rate_and_the_bursts_asked_for(variation: float) -> None:
    gaps = gaps_of(OpenLoop(rate=4, num_requests=40_000, mix=SHORT, variation=variation))
    assert gaps.mean() == pytest.approx(0.25, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.05, abs=1e-9)


def test_requests_dont_depend_on_when_they_come() -> None:
    slow, fast = (OpenLoop(rate=rate, num_requests=20, mix=SHORT) for rate in (1, 100))
    assert [a.prompt_token_ids for a in slow.start()] == [a.prompt_token_ids for a in fast.start()]


def test_the_papers_lengths() -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([NormalLengths(mean=2600).draw(rng) for _ in range(5000)])
    assert lengths.mean() == pytest.approx(2600, rel=0.02)
    assert lengths.std() == pytest.approx(780, rel=0.05)
    limited = NormalLengths(mean=10, deviation=3, least=5, most=12)
    assert {limited.draw(rng) for _ in range(500)} == set(range(5, 13))


def test_closed_loops_send_the_same_requests_whatever_their_clients() -> None:
    sent: list[list[int]] = []
    for num_clients in (1, 7):
        loop = ClosedLoop(num_clients=num_clients, num_requests=30, mix=SHORT, start_spread=1)
        arrivals = list(loop.start())
        assert len(arrivals) == num_clients
        assert all(0 <= arrival.time <= 1 for arrival in arrivals)
        while (following := loop.after(arrivals[0], (), 5.0)) is not None:
            assert following.time == 5.0
            arrivals.append(following)
        sent.append([len(arrival.prompt_token_ids) for arrival in arrivals])
    assert sent[0] == sent[1]
    assert len(sent[0]) == 30


def test_shared_prefixes() -> None:
    prompts = SharedPrefixPrompts(num_prefixes=2, prefix_tokens=6, own=UniformLengths(3, 3))
    rng = np.random.default_rng(0)
    made = [prompts.draw(number, rng) for number in range(50)]
    assert all(len(prompt) == 9 for prompt in made)
    assert len({prompt[:6] for prompt in made}) == 2
    assert len({prompt[6:] for prompt in made}) == 50


def test_conversations_find_what_was_said() -> None:
    config = SchedulerConfig(
        token_budget=64,
        max_num_seqs=8,
        max_step_rows=8,
        max_model_len=256,
        block_size=4,
        num_blocks=400,
    )
    talk = Conversations(
        rate=0.01,
        num_conversations=5,
        opening=SHORT,
        turns=UniformLengths(3, 3),
        answers=UniformLengths(5, 5),
        think_seconds=3.0,
    )
    result = Simulator(config, ConstantCost()).run(talk)
    assert len(result.records) == 15
    for client in range(5):
        turns = sorted(
            (r for r in result.records if r.client == client), key=lambda r: r.arrival_time
        )
        for before, after in pairwise(turns):
            said = before.num_prompt_tokens + before.num_output_tokens
            assert after.num_prompt_tokens == said + 5
            assert after.num_cached_tokens >= said - 4
            assert after.arrival_time > before.finish_time


def test_a_trace_comes_back(tmp_path: Path) -> None:
    arrivals = (
        Arrival(time=0.5, prompt_token_ids=(1, 2), num_output_tokens=3),
        Arrival(
            time=1.5,
            prompt_token_ids=(3,),
            num_output_tokens=3,
            max_tokens=4,
            priority=2,
            targets=LatencyTargets(ttft=1.0, tpot=0.1),
            cache_salt="s",
            client=3,
        ),
    )
    write_trace(tmp_path / "trace.jsonl", arrivals)
    assert read_trace(tmp_path / "trace.jsonl").arrivals == arrivals


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("3", "line 2: is no object"),
        ("{", "line 2: "),
        ('{"time": 0, "num_prompt_tokens": 3}', "line 2: num_output_tokens is missing"),
        ('{"time": 0, "num_output_tokens": 3}', "line 2: needs either"),
        ('{"time": "0", "num_prompt_tokens": 3, "num_output_tokens": 3}', "line 2: time='0'"),
        ('{"time": 0, "num_prompt_tokens": 3, "num_output_tokens": 0}', "line 2: num_output"),
        ('{"time": 0, "num_prompt_tokens": 3, "num_output_tokens": 1, "top_p": 1}', "top_p: no"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    good = '{"time": 0, "num_prompt_tokens": 3, "num_output_tokens": 1}\n'
    (tmp_path / "trace.jsonl").write_text(good + line + "\n")
    with pytest.raises(ConfigError, match=problem):
        read_trace(tmp_path / "trace.jsonl")


def test_prompts_of_a_trace_share_nothing(tmp_path: Path) -> None:
    line = '{"time": 0, "num_prompt_tokens": 3, "num_output_tokens": 1}\n'
    (tmp_path / "trace.jsonl").write_text(line * 2)
    first, second = read_trace(tmp_path / "trace.jsonl").arrivals
    assert first.prompt_token_ids != second.prompt_token_ids
    with pytest.raises(ConfigError, match="trace="):
        read_trace(tmp_path / "missing.jsonl")


@pytest.mark.parametrize(
    "make",
    [
        lambda: NormalLengths(mean=0),
        lambda: UniformLengths(3, 2),
        lambda: OpenLoop(rate=0, num_requests=1, mix=SHORT),
        lambda: OpenLoop(rate=1, num_requests=1, mix=SHORT, variation=-1),
        lambda: ClosedLoop(num_clients=0, num_requests=1, mix=SHORT),
        lambda: SharedPrefixPrompts(num_prefixes=0, prefix_tokens=1, own=UniformLengths(1, 1)),
        lambda: Arrival(time=0, prompt_token_ids=(1,), num_output_tokens=3, max_tokens=2),
    ],
)
def test_impossible_workloads_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError):
        make()
