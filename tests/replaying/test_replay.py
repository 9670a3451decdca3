"""Logs of fake engines, replayed with their own tokens: whole, changed, cut off and damaged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import event as note
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastgen_jax import EngineConfig, SamplingParams, replay
from fastgen_jax.errors import ConfigError, ReplayError
from fastgen_jax.replaying.difference import Difference
from fastgen_jax.scheduling.policy import POLICIES, Deadlines, Fcfs
from fastgen_jax.scheduling.views import RequestView
from fastgen_jax.testing import Faults, fake_engine, hashed_tokens
from tests.replaying.logs import TOKENIZER, Change, changed, first_difference, simulate
from tests.replaying.traffic import run

# --- Whole logs ----------------------------------------------------------------------------


@given(policy=st.sampled_from(sorted(POLICIES)), seed=st.integers(0, 2**32), nan=st.booleans())
@example(policy="deadlines", seed=3, nan=False)
@settings(max_examples=30)
def test_whatever_the_traffic_and_the_policy_nothing_differs(
    policy: str, seed: int, nan: bool
) -> None:
    faults = Faults(has_nan=lambda history: sum(history) % 61 == 0) if nan else None
    with TemporaryDirectory() as directory:
        path = Path(directory, "log.jsonl")
        found = run(path, seed, policy=policy, faults=faults)
        report = simulate(path)
    assert report.difference is None, str(report)
    assert (report.failure, report.is_cut) == (None, False)
    assert report.num_requests == len(found.completions)
    assert report.num_preemptions == found.metrics.scheduler.num_preemptions
    assert report.num_steps == found.metrics.scheduler.num_steps
    kept = sum(completion.request.num_output_tokens for completion in found.completions)
    assert report.num_tokens >= kept  # a draw that failed counts too
    if report.num_preemptions:
        note("preempted")


def test_every_line_is_replayed(log: Path) -> None:
    report = simulate(log)
    assert report.difference is None
    assert report.num_events == len(log.read_text().splitlines()) - 1
    assert "No difference" in str(report)
    assert report.is_simulated


def test_a_log_that_is_written_differently_says_the_same(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "spaced.jsonl"
    lines = (json.dumps(json.loads(line), indent=None) for line in log.read_text().splitlines())
    path.write_text("\r\n".join(lines))
    assert simulate(path).difference is None


def test_a_replay_can_stop_after_a_step(log: Path) -> None:
    report = simulate(log, until_step=30)
    assert report.difference is None
    assert report.num_steps == 31


# --- Changed logs --------------------------------------------------------------------------


def test_a_changed_token_is_found_by_what_follows_from_it(log: Path) -> None:
    def change(event: dict[str, Any]) -> None:
        place = next(i for i, token in enumerate(event["tokens"]) if token is not None)
        event["tokens"][place] = (event["tokens"][place] + 1) % 5

    path, line = changed(log, "tokens", change)
    found = first_difference(path)
    assert found.line > line
    assert found.request_id is not None


def test_a_changed_number_of_tokens_is_named(log: Path) -> None:
    def change(event: dict[str, Any]) -> None:
        event["tokens"][-1] += 1

    path, line = changed(log, "plan", change)
    event = json.loads(path.read_text().splitlines()[line - 1])
    count, request_id = event["tokens"][-1], event["requests"][-1]
    assert first_difference(path) == Difference(
        line=line,
        step=event["step"],
        request_id=request_id,
        field="tokens",
        logged=count,
        found=count - 1,
        what=f"request {request_id} got {count - 1} tokens of the step, the log says {count}",
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("starts", lambda event: event["starts"].__setitem__(0, 99)),
        ("requests", lambda event: event["requests"].__setitem__(0, "77")),
        ("samples", lambda event: event.__setitem__("samples", [False])),
        ("chain_length", lambda event: event.__setitem__("chain_length", 9)),
        ("free_blocks", lambda event: event.__setitem__("free_blocks", -1)),
        ("waits", lambda event: event.__setitem__("waits", [["77", "no_row"]])),
        ("preempted", lambda event: event.__setitem__("preempted", [["77", "78"]])),
        ("step", lambda event: event.__setitem__("step", 4)),
        ("extra", lambda event: event.__setitem__("extra", 4)),
    ],
)
def test_every_field_of_a_plan_counts(log: Path, name: str, change: Change) -> None:
    path, line = changed(log, "plan", change)
    found = first_difference(path)
    assert (found.line, found.field) == (line, name)
    assert found.logged != found.found


@pytest.mark.parametrize(
    "name", ["reason", "stop_reason", "num_tokens", "digest", "num_preemptions"]
)
def test_every_field_of_an_end_counts(log: Path, name: str) -> None:
    path, line = changed(log, "end", lambda event: event.__setitem__(name, "another"))
    found = first_difference(path)
    assert (found.line, found.field, found.logged) == (line, name, "another")
    assert found.request_id == json.loads(path.read_text().splitlines()[line - 1])["request"]


def test_another_order_of_arrival_is_named(log: Path, tmp_path: Path) -> None:
    lines = log.read_text().splitlines()
    places = [i for i, line in enumerate(lines) if '"submit"' in line]
    first, second = places[20], places[21]
    lines[first], lines[second] = lines[second], lines[first]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(lines) + "\n")
    found = first_difference(path)
    assert (found.line, found.field) == (first + 1, "request")
    assert (found.logged, found.found) == ("21", "20")


def test_an_arrival_at_another_time_is_seen_by_a_policy_that_looks_at_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    run(path, 12, policy="deadlines", num_requests=40)
    path, line = changed(path, "submit", lambda event: event.update(arrival=-90.0), number=20)
    assert first_difference(path).line > line


def test_a_changed_prompt_shows_in_a_decision(log: Path) -> None:
    path, line = changed(log, "submit", lambda event: event["prompt"].extend([1, 1]))
    assert first_difference(path).line > line


def test_a_request_that_can_no_longer_be_submitted_is_named(log: Path) -> None:
    path, line = changed(log, "submit", lambda event: event.update(prompt=[1] * 60))
    found = first_difference(path)
    assert found.line == line
    assert "refused" in str(found)


@pytest.mark.parametrize("kind", ["plan", "tokens", "end", "submit", "abort"])
def test_a_line_that_is_missing_shows(log: Path, tmp_path: Path, kind: str) -> None:
    lines = log.read_text().splitlines()
    places = [i for i, line in enumerate(lines) if json.loads(line)["event"] == kind]
    del lines[places[len(places) // 3]]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(lines) + "\n")
    assert simulate(path).difference is not None


@pytest.mark.parametrize("kind", ["plan", "tokens", "end", "submit", "abort"])
def test_a_line_too_many_shows(log: Path, tmp_path: Path, kind: str) -> None:
    lines = log.read_text().splitlines()
    place = [i for i, line in enumerate(lines) if json.loads(line)["event"] == kind][10]
    lines.insert(place, lines[place])
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(lines) + "\n")
    found = first_difference(path)
    assert place + 1 <= found.line <= place + 10


def test_changed_shapes_are_found_before_the_first_step(log: Path) -> None:
    path, line = changed(log, "shapes", lambda event: event.update(shapes=[[1, 1]]), number=0)
    found = first_difference(path)
    assert (found.line, found.field, found.step) == (line, "shapes", None)


# --- Policies ------------------------------------------------------------------------------


class NewestFirst:
    """The other way round."""

    def __init__(self, sign: int = -1) -> None:
        self.sign = sign

    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        return sorted(candidates, key=lambda request: self.sign * request.arrival_index)

    def choose_victim(self, running: Sequence[RequestView]) -> RequestView:
        return running[0]


def test_a_change_of_policy_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    engine = fake_engine(replay_log=path, tokenizer=None, eos_token_ids=())
    for policy, budget in (("prefill_first", None), (Fcfs(), 8), ("shortest_remaining", 12)):
        engine.use_policy(policy, token_budget=budget)
        for length in (3, 8, 5):
            engine.submit([length] * length, SamplingParams(max_tokens=length))
        engine.run()
        # The next change waits for the step that this one has in flight.
        (late,) = engine.submit([1], SamplingParams(max_tokens=4))
        engine.step()
        engine.abort(late.request)
    engine.close()
    report = simulate(path)
    assert report.difference is None, str(report)
    assert report.num_requests == 12
    steps = [
        line["step"]
        for line in map(json.loads, path.read_text().splitlines()[1:])
        if line["event"] == "plan"
    ]
    assert steps == list(range(len(steps))), "plans are counted on"

    other, line = changed(path, "policy", lambda event: event.update(token_budget=5), number=1)
    difference = first_difference(other)
    assert difference.line > line
    assert difference.field == "tokens", str(difference)


def test_a_policy_of_ones_own_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    run(path, 2, policy=NewestFirst(), num_requests=40)
    assert simulate(path).difference is None
    assert simulate(path, policy="fcfs").difference is not None


def test_one_with_arguments_must_be_given(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    run(path, 2, policy=NewestFirst(sign=1), num_requests=40)
    with pytest.raises(ReplayError, match=r"policy=.*fastgen_jax\.replay\(path, policy=...\)"):
        simulate(path)
    assert simulate(path, policy=NewestFirst(sign=1)).difference is None


def test_deadlines_with_arguments_are_replayed_with_them(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    run(path, 12, policy=Deadlines(min_prompt_tokens=1), num_requests=60)
    assert simulate(path, policy=Deadlines(min_prompt_tokens=1)).difference is None
    assert simulate(path, policy=Fcfs()).difference is not None


# --- What a replay needs -------------------------------------------------------------------


def test_stop_strings_need_the_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    engine = fake_engine(replay_log=path)
    engine.submit([1, 2], SamplingParams(max_tokens=3))
    engine.submit([1, 2], SamplingParams(max_tokens=3, stop="a"))
    engine.run()
    engine.close()
    assert replay(path, simulate=True, tokenizer=TOKENIZER).difference is None
    with pytest.raises(ReplayError, match="request 1 has stop strings"):
        replay(path, simulate=True)
    with pytest.raises(ReplayError, match="there is no such model"):
        replay(path, simulate=True, model="no-such-model")


def test_without_stop_strings_nobody_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    engine = fake_engine(replay_log=path, next_token=hashed_tokens(range(200)))
    engine.submit([1, 2], SamplingParams(max_tokens=30))
    engine.run()
    engine.close()
    assert replay(path, simulate=True).difference is None


def test_a_fake_engines_log_has_no_model(log: Path) -> None:
    with pytest.raises(ReplayError, match="--simulate"):
        replay(log)


def test_progress_goes_to_standard_error(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(log, show_progress=True).difference is None
    out, err = capsys.readouterr()
    assert out == ""
    assert "Replaying: 100%" in err
    assert "step " in err


def test_a_log_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    fake_engine(replay_log=path).close()
    before = path.read_text()
    fake_engine(replay_log=path, seed=1).close()
    assert Path(f"{path}.old").read_text() == before
    assert path.read_text() != before


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="replay_log"):
        fake_engine(replay_log=tmp_path / "nowhere" / "log.jsonl")
    assert EngineConfig(replay_log="log.jsonl").replay_log == "log.jsonl"
