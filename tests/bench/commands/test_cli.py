"""``fastgen bench`` from the command line to tables, files and plots, with the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastgen_jax import cli
from fastgen_jax.bench.results import load_results
from tests.bench.live.conftest import FakeServer, event
from tests.bench.live.conftest import server as server  # the fixture
from tests.e2e.conftest import TINY_MODEL

Run = Callable[..., None]
SMALL = ("--prompt-tokens", "9", "--output-tokens", "4", "--requests", "6", "--warm-up", "2")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line with these words."""

    def main(*words: str | Path) -> None:
        monkeypatch.setattr("sys.argv", ["fastgen", "bench", *map(str, words)])
        cli.main()

    return main


@pytest.fixture
def tiny(tmp_path: Path, compilation_cache: Path) -> tuple[str | Path, ...]:
    """Options that run the tiny model; compiled programs are shared by all tests of a run."""
    path = tmp_path / "engine.toml"
    path.write_text(
        'dtype = "float32"\nstep_shapes = [[4, 4], [16, 4]]\nblock_size = 8\n'
        f'num_kv_blocks = 64\nmax_model_len = 256\ncompilation_cache_dir = "{compilation_cache}"\n'
    )
    return "--model", TINY_MODEL, "--config", path


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("throughput", (), ("input tokens/s", "padding of the steps, %")),
        ("latency", ("--batch-size", "2"), ("first token p50, ms", "between tokens p99, ms")),
        ("load", ("--clients", "3", "--ttft", "5"), ("3 clients", "effective at 4", "goodput")),
        ("load", ("--rate", "100"), ("100/s", "sent late p99")),
    ],
)
def test_a_command_prints_a_table(
    run: Run,
    tiny: tuple[str | Path, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: str,
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    path = tmp_path / "out.json"
    run(command, *tiny, *SMALL, *options, "--json", path)
    printed = capsys.readouterr()
    for word in words:
        assert word in printed.out
    assert printed.err == ""
    (point,) = load_results(path).points
    assert len(point.exchanges) == 6
    assert point.summary.num_failed == 0
    for exchange in point.exchanges:
        assert exchange.record.num_output_tokens == exchange.num_asked_tokens
        assert sum(exchange.message_sizes) == exchange.num_asked_tokens
        assert exchange.counting == "ids"
    assert point.engine is not None
    prompts = sum(exchange.record.num_prompt_tokens for exchange in point.exchanges)
    assert point.engine["num_step_tokens"] - point.engine["num_decode_tokens"] == prompts
    assert point.engine["num_hit_tokens"] == 0, "warm-up and points share no prompts"


def test_a_sweep_of_policies_is_written_and_drawn(
    run: Run, tiny: tuple[str | Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep.json"
    points = ("--sweep-clients", "1", "2", "--policies", "fcfs", "prefill_first")
    run("sweep", *tiny, *SMALL, *points, "--json", path)
    out = capsys.readouterr().out
    assert "fcfs" in out
    assert "prefill_first" in out
    results = load_results(path)
    assert [point.parameters for point in results.points] == [
        {"clients": clients, "policy": policy}
        for policy in ("fcfs", "prefill_first")
        for clients in (1, 2)
    ]
    assert results.num_warm_up_requests == 2
    assert "compilation_cache_dir" not in json.dumps(results.target)

    run("plot", path, path, "--labels", "mine", "theirs", "--out", tmp_path / "both")
    assert ">theirs, fcfs<" in (tmp_path / "both" / "throughput_latency.svg").read_text()


def test_an_interrupt_loses_no_point(
    run: Run, tiny: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastgen_jax.bench.live.generator import LoadGenerator

    path, real, runs = tmp_path / "sweep.json", LoadGenerator.run, []

    async def interrupted(self: LoadGenerator) -> object:
        runs.append(self)
        if len(runs) == 3:  # the warm-up, the first point, and then
            raise KeyboardInterrupt
        return await real(self)

    monkeypatch.setattr(LoadGenerator, "run", interrupted)
    with pytest.raises(SystemExit) as caught:
        run("sweep", *tiny, *SMALL, "--sweep-clients", "1", "2", "--json", path)
    assert caught.value.code == 130
    assert [point.parameters for point in load_results(path).points] == [{"clients": 1}]


def test_steps_are_timed_at_the_tokens_that_were_asked_for(
    run: Run, tiny: tuple[str | Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "forward.json"
    sizes = ("--tokens", "1", "5", "16", "--batch-sizes", "1", "2", "--repeats", "3")
    run("forward", *tiny, *sizes, "--json", path, "--plot", tmp_path / "plots")
    assert "GFLOP/s" in capsys.readouterr().out
    steps = load_results(path).steps
    cells = [(1, 1), (5, 1), (16, 1), (5, 2), (16, 2)]
    assert [(step.num_tokens, step.num_rows) for step in steps] == cells
    for step in steps:
        assert len(step.seconds) == 3
        assert min(step.seconds) > 0
        assert sum(tokens for tokens, _ in step.shapes) >= step.num_tokens
    assert (tmp_path / "plots" / "forward.svg").is_file()


def test_exact_shapes_have_no_padding(run: Run, tmp_path: Path, compilation_cache: Path) -> None:
    config, path = tmp_path / "engine.toml", tmp_path / "forward.json"
    config.write_text(
        'dtype = "float32"\nblock_size = 8\nnum_kv_blocks = 64\nmax_model_len = 256\n'
        f'compilation_cache_dir = "{compilation_cache}"\n'
    )
    model = ("--model", TINY_MODEL, "--config", config)
    sizes = ("--tokens", "3", "--repeats", "1", "--exact-shapes")
    run("forward", *model, *sizes, "--json", path)
    assert [step.shapes for step in load_results(path).steps] == [((3, 1),)]


def test_a_server_gets_the_same_load(
    run: Run, server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "server.json"
    run("load", "--url", server.url, *SMALL, "--clients", "2", "--api-key", "k3y", "--json", path)
    assert "2 clients" in capsys.readouterr().out
    (point,) = load_results(path).points
    assert point.engine is None
    assert {exchange.counting for exchange in point.exchanges} == {"usage"}
    assert len(server.script.bodies) == 6 + 2, "the warm-up's requests aren't in the file"
    assert all(100 <= one < 32000 for body in server.script.bodies for one in body["prompt"])
    assert "k3y" not in path.read_text()


def test_rounds_take_turns(
    run: Run, server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "server.json"
    points = ("--sweep-rates", "60", "90", "--rounds", "2")
    run("sweep", "--url", server.url, *SMALL, *points, "--json", path)
    assert "medians over the rounds" in capsys.readouterr().out
    found = [(point.round, point.parameters["rate"]) for point in load_results(path).points]
    assert found == [(0, 60.0), (0, 90.0), (1, 60.0), (1, 90.0)]
    prompts = {tuple(body["prompt"]) for body in server.script.bodies}
    assert len(prompts) == len(server.script.bodies), "no point repeats another's prompts"


def test_failed_and_short_answers_are_counted_and_said(
    run: Run, server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "server.json"
    server.script.lines = [event("one", "stop"), "data: [DONE]"]
    run("load", "--url", server.url, *SMALL, "--json", path)
    assert "6 of 6 answers ended early: the server doesn't" in capsys.readouterr().err
    server.script.status = 503
    run("load", "--url", server.url, *SMALL, "--warm-up", "0", "--json", path)
    assert "6 of 6 requests failed: HTTP 503" in capsys.readouterr().err
    (point,) = load_results(path).points
    assert point.summary.num_failed == len(point.exchanges) == 6


def test_late_sending_is_said(
    run: Run, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run("load", "--url", server.url, *SMALL, "--rate", "50", "--late-limit", "-1")
    assert "couldn't keep up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("load", "--url", "http://127.0.0.1:9"), "no answer from http://127.0.0.1:9/v1/models"),
        (("load", "--url", "localhost:9"), "url='localhost:9': is no address"),
        (("load", "--url", "http://a", "--token-budget", "9"), "mean nothing to a server"),
        (("load", "--api-key", "k3y"), "api_key='…': is for a server; give --url"),
        (("load", "--url", "http://a", "--prompts", "text"), "prompts='text': and a tokenizer"),
        (("load", "--url", "http://a", "--extra-body", "[]"), "is no JSON object"),
        (("load", "--url", "http://a", "--extra-body", "{"), "extra_body='{': "),
        (("load", "--rounds", "0"), "rounds=0: must be at least 1"),
        (("load", "--json", "nowhere/at/all.json"), "there is no such directory"),
        (("load", "--workload", "nowhere.toml"), "workload='nowhere.toml'"),
        (("sweep", "--rate", "2"), "has a rate, and none are given to sweep"),
        (("sweep", "--sweep-clients", "1", "--sweep-rates", "1"), "sweep one of the two"),
        (("sweep", "--sweep-clients", "0"), "must be above 0"),
        (("sweep", "--url", "http://a", "--policies", "fcfs"), "can't be swept from here"),
        (("latency", "--batch-size", "0"), "batch_size=0: must be above 0"),
        (("forward", "--exact-shapes"), "needs the numbers of tokens"),
        (("forward", "--repeats", "0"), "repeats=0"),
        (("plot",), "files=(): is empty"),
        (("plot", "nowhere.json"), "results='nowhere.json'"),
    ],
)
def test_what_cannot_be_is_an_error_with_the_remedy(
    run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*words)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("fastgen: ")
    assert message in printed


def test_a_failing_warm_up_stops_before_anything_is_measured(
    run: Run, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script.status = 500
    with pytest.raises(SystemExit):
        run("load", "--url", server.url, *SMALL)
    assert "a warm-up request failed: HTTP 500" in capsys.readouterr().err
    assert len(server.script.bodies) <= 2


@pytest.mark.parametrize("command", ["throughput", "latency", "load", "sweep", "forward", "plot"])
def test_every_option_has_a_help_text(
    run: Run, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    from dataclasses import fields

    from fastgen_jax.bench.commands import forward, loads, options, plot

    with pytest.raises(SystemExit):
        run(command, "--help")
    printed = capsys.readouterr().out
    shared = (options.TargetOptions, options.WorkloadOptions, options.RunOptions)
    own = {
        "throughput": (loads.Throughput,), "latency": (loads.Latency,), "load": (loads.Load,),
        "sweep": (loads.Sweep,), "forward": (forward.Forward,), "plot": (plot.Plot,),
    }[command]  # fmt: skip
    groups = own if command in ("forward", "plot") else (*own, *shared, options.OutputOptions)
    for group in groups:
        for field in fields(group):
            if field.name in ("target", "engine", "load", "runs", "output", "files"):
                continue
            at = printed.index("--" + field.name.replace("_", "-"))
            text = "".join(ch for ch in printed[at : at + 300] if ch not in "│─")
            assert any(len(word) > 2 and word.islower() for word in text.split()[2:]), field.name
