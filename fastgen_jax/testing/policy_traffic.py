"""Random traffic through a fake engine, from a seed: what a policy is tried on."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from fastgen_jax.completion import Completion
from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.scheduling.plan import Decision, StepPlan
from fastgen_jax.scheduling.policy import Policy, runs_whole_prompts
from fastgen_jax.testing.fake_engine import FakeEngine, fake_engine
from fastgen_jax.testing.fake_tokens import hashed_tokens

_VOCABULARY = range(3)  # few, so that prompts share beginnings by chance


@dataclass(slots=True, kw_only=True)
class PolicyRun:
    """What became of some traffic.

    Attributes:
        completions: of every request that was sent, in order.
        aborted: those that the client gave up.
        decisions: of every plan.
        problems: promises that a plan broke.
        is_finished: False when requests were left after very many steps.
    """

    completions: list[Completion] = field(default_factory=list)
    aborted: list[Completion] = field(default_factory=list)
    decisions: list[tuple[Decision, ...]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    is_finished: bool = False


def run_traffic(policy: Policy, seed: int) -> PolicyRun:
    """Up to thirty requests that come over time, on an engine of random small sizes."""
    rng = random.Random(seed)
    run = PolicyRun()
    now = 0.0
    engine = _engine(policy, rng, run, clock=lambda: now)
    left = rng.randint(1, 30)
    for _ in range(5000):
        if not left and not engine.has_work:
            run.is_finished = True
            break
        for _ in range(min(left, rng.choice((0, 0, 1, 1, 3)))):
            left -= 1
            run.completions += _submit(engine, policy, rng)
        unfinished = [one for one in run.completions if not one.request.is_finished]
        if unfinished and rng.random() < 0.02:
            run.aborted.append(rng.choice(unfinished))
            engine.abort(run.aborted[-1].request)
        engine.step()
        now += rng.choice((0.01, 0.1))
    return run


def expected_tokens(completion: Completion) -> list[int]:
    """What the request must get, whoever runs beside it and however often it is preempted."""
    draw = hashed_tokens(_VOCABULARY)
    token_ids = list(completion.request.prompt_token_ids)
    for _ in range(completion.request.max_output_tokens):
        token_ids.append(draw(token_ids))
    return token_ids[completion.request.num_prompt_tokens :]


def _engine(policy: Policy, rng: random.Random, run: PolicyRun, clock: object) -> FakeEngine:
    max_num_seqs = rng.randint(1, 6)
    token_budget = rng.randint(max(6, max_num_seqs), 24)

    def on_plan(plan: StepPlan) -> None:
        run.decisions.append(plan.decisions)
        if plan.num_tokens > token_budget:
            run.problems.append(f"{plan.num_tokens} tokens in a step of {token_budget}")
        if len(plan.rows) > max_num_seqs:
            run.problems.append(f"{len(plan.rows)} rows in a step of {max_num_seqs}")
        seen = [decision.request_id for decision in plan.decisions]
        if len(set(seen)) != len(seen):
            run.problems.append("two decisions about one request in one step")

    return fake_engine(
        policy=policy,
        token_budget=token_budget,
        max_num_seqs=max_num_seqs,
        max_model_len=64,
        block_size=rng.randint(1, 4),
        num_blocks=rng.randint(18, 40),
        chunk_multiple=rng.choice((1, 1, 2, 4)),
        max_chained_steps=rng.choice((1, 1, 3)),
        enable_prefix_caching=rng.random() < 0.5,
        next_token=hashed_tokens(_VOCABULARY),
        eos_token_ids=(),
        clock=clock,  # type: ignore[arg-type]
        on_plan=on_plan,
    )


def _submit(engine: FakeEngine, policy: Policy, rng: random.Random) -> list[Completion]:
    """A request that the pool can hold, and that a policy of whole prompts can run."""
    config = engine.scheduler.config
    longest = min(16, config.usable_tokens - 1)
    if runs_whole_prompts(policy):
        longest = min(longest, config.token_budget)
    prompt = [rng.choice(_VOCABULARY) for _ in range(rng.randint(1, longest))]
    targets = LatencyTargets(
        ttft=rng.choice((None, 0.2, 5.0)), tpot=rng.choice((None, None, 0.02, 0.3))
    )
    return engine.submit(
        prompt,
        SamplingParams(max_tokens=rng.randint(1, 20)),
        priority=rng.randint(0, 2),
        targets=targets,
    )
