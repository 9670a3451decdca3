"""Random traffic through a fake engine that writes a log of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fastgen_jax.batching import StepShape
from fastgen_jax.completion import Completion
from fastgen_jax.errors import EngineClosedError, InvalidRequestError
from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.metrics import EngineMetrics
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.scheduling.policy import Policy
from fastgen_jax.testing import FakeEngine, Faults, fake_engine, hashed_tokens

EOS = 9
VOCABULARY = range(10)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a logged run was like."""

    completions: list[Completion]
    metrics: EngineMetrics


def run(
    path: Path,
    seed: int,
    *,
    policy: str | Policy = "fcfs",
    num_requests: int | None = None,
    faults: Faults | None = None,
    is_closed: bool = True,
) -> Traffic:
    """Requests of all kinds at random times, on an engine of random small sizes.

    Some are aborted, some steps interrupted while they wait, and shapes come and go.
    """
    rng = random.Random(seed)
    engine = _engine(path, rng, policy, faults)
    completions: list[Completion] = []
    left = rng.randint(1, 25) if num_requests is None else num_requests
    with suppress(EngineClosedError):  # a fault that was asked for
        for _ in range(20_000):
            if not left and not engine.has_work:
                break
            for _ in range(min(left, rng.choice((0, 0, 1, 1, 3)))):
                left -= 1
                completions += _submit(engine, rng)
            alive = [one for one in completions if not one.request.is_finished]
            if alive and rng.random() < 0.05:
                engine.abort(rng.choice(alive).request)
            if rng.random() < 0.03:
                _change_shapes(engine, _shapes(engine), rng)
            if rng.random() < 0.05:
                _interrupt(engine)
            engine.step()
        else:
            raise AssertionError("requests starve")
    if is_closed:
        engine.close()
    return Traffic(completions, engine.metrics())


def _engine(
    path: Path, rng: random.Random, policy: str | Policy, faults: Faults | None
) -> FakeEngine:
    max_num_seqs = rng.randint(1, 6)
    budget = rng.randint(max(8, max_num_seqs), 24)
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += rng.choice((0.001, 0.01, 0.1))
        return now

    return fake_engine(
        policy=policy,
        token_budget=budget,
        max_num_seqs=max_num_seqs,
        max_model_len=48,
        block_size=rng.randint(1, 4),
        num_blocks=rng.randint(20, 40),
        chunk_multiple=rng.choice((1, 1, 2, 4)),
        max_chained_steps=rng.choice((1, 1, 3, 5)),
        enable_prefix_caching=rng.random() < 0.7,
        next_token=hashed_tokens(VOCABULARY),
        eos_token_ids=(EOS,),
        seed=rng.randint(0, 3),
        faults=faults,
        clock=clock,
        replay_log=path,
    )


def _shapes(engine: FakeEngine) -> list[StepShape]:
    """Those that the engine was made with."""
    config = engine.scheduler.config
    rows = min(config.max_num_seqs, config.token_budget)
    return sorted({StepShape(rows, rows), StepShape(config.token_budget, rows)})


def _submit(engine: FakeEngine, rng: random.Random) -> list[Completion]:
    """A request, unless the engine refuses it."""
    most = rng.randint(1, 20)
    params = SamplingParams(
        max_tokens=rng.choice((None, most, most, most)),
        min_tokens=rng.choice((0, 0, 1)),
        n=rng.choice((1, 1, 1, 2, 3)),
        temperature=rng.choice((0.5, 1.0)),
        seed=rng.choice((None, 7)),
        ignore_eos=rng.random() < 0.5,
        stop_token_ids=rng.choice((None, None, [5])),
        stop=rng.choice((None, None, "\x03\x04", ["\x01\x02", "\x07\x07"])),
        logprobs=rng.choice((None, None, 0, 2)),
        prompt_logprobs=rng.choice((None, None, 1)),
        logit_bias=rng.choice((None, {3: 1.5, 4: -2.0})),
        bad_words=rng.choice((None, None, ["\x02"])),
    )
    prompt = [rng.choice(VOCABULARY) for _ in range(rng.randint(1, 16))]
    if rng.random() < 0.3:
        prompt = [1, 2, 3, 4, 5, 6, 7, 8, *prompt[:8]]
    try:
        return engine.submit(
            prompt,
            params,
            priority=rng.randint(0, 2),
            cache_salt=rng.choice((None, None, "red")),
            targets=LatencyTargets(
                ttft=rng.choice((None, 0.2, 5.0)), tpot=rng.choice((None, None, 0.02, 0.3))
            ),
        )
    except InvalidRequestError:
        return []


def _change_shapes(engine: FakeEngine, shapes: list[StepShape], rng: random.Random) -> None:
    """Without the small shape from now on, or with it: as if it had just been compiled."""
    *small, most = shapes
    if not small:
        return
    if rng.random() < 0.5:
        engine.use_shapes([most])
    else:
        engine.add_shape(small[0])


def _interrupt(engine: FakeEngine) -> None:
    """One step during whose wait somebody presses Ctrl-C, if it comes to wait."""
    with interrupted_waits(engine), suppress(KeyboardInterrupt):
        engine.step()


@contextmanager
def interrupted_waits(engine: FakeEngine) -> Iterator[None]:
    """While results are waited for, Ctrl-C is pressed."""
    run_until = engine.executor.run_until

    def interrupt(step: object) -> None:
        raise KeyboardInterrupt

    engine.executor.run_until = interrupt  # type: ignore[method-assign]
    try:
        yield
    finally:
        engine.executor.run_until = run_until
