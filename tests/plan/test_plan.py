"""A plan made without a compiler: bad input before any compilation, loads, memory and output."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fastgen_jax.config import EngineConfig, resolve_config
from fastgen_jax.errors import ConfigError, UnsupportedModelError
from fastgen_jax.models.shapes import SHAPES
from fastgen_jax.plan import deviceless, planner
from fastgen_jax.plan.chart import plot_plan
from fastgen_jax.plan.command import run_plan
from fastgen_jax.plan.deviceless import CompilationError, CompiledStep
from fastgen_jax.plan.graphs import read_graphs
from fastgen_jax.plan.memory import GpuMemory, weight_bytes
from fastgen_jax.plan.models import find_shape
from fastgen_jax.plan.planner import plan, step_load
from fastgen_jax.plan.registers import KernelRegisters, kernel_registers, read_report
from fastgen_jax.plan.report import Plan
from fastgen_jax.plan.request import CompileAnswer, CompileRequest
from fastgen_jax.plan.table import print_plan

PROGRAMS = Path(__file__).parent / "programs"
TINY = replace(
    SHAPES["llama-2-7b"],
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    layers=SHAPES["llama-2-7b"].layers[:1],
    num_heads=2,
    num_kv_heads=2,
)
ANSWER = CompileAnswer(
    weight_names=("embed", "layers.0.up", "layers.0.down"),
    num_pages=1,
    kernels="none",
    weight_bytes=1000,
    page_bytes=2000,
    row_state_bytes=300,
    argument_bytes=4000,
    output_bytes=2400,
    alias_bytes=2300,
    temp_bytes=5000,
    trace_seconds=1.0,
    compile_seconds=2.0,
)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if anything is compiled."""

    def refuse(*_: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(planner, "compile_step", refuse)


@pytest.fixture
def compiled_before(monkeypatch: pytest.MonkeyPatch) -> list[CompileRequest]:
    """Answers every compilation with the program in programs/; returns what was asked for."""
    requests: list[CompileRequest] = []

    def compile_step(request: CompileRequest, compiler: Path) -> CompiledStep:
        requests.append(CompileRequest.from_json(request.to_json()))
        directory = Path(request.directory)
        program = (PROGRAMS / "small_step.hlo").read_text(encoding="utf-8")
        (directory / "program.hlo").write_text(program, encoding="utf-8")
        return CompiledStep(answer=ANSWER, directory=directory)

    monkeypatch.setattr(planner, "compile_step", compile_step)
    monkeypatch.setattr(planner, "find_compiler", lambda: Path("nowhere"))
    return requests


@pytest.fixture
def made(compiled_before: list[CompileRequest]) -> Plan:
    return plan(TINY, tp=2, context=1024, max_num_seqs=8, token_budget=64)


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpu": "tpu"}, r"gpu='tpu'.*use one of h100"),
        ({"model": "llama-9"}, r"model='llama-9'.*llama-3\.1-8b"),
        ({"model": ""}, "model=''"),
        ({"tp": 0}, "tp=0"),
        ({"ep": 0}, "ep=0"),
        ({"ep": 2}, "expert_parallel_size=2: the model has no experts"),
        ({"model": "mixtral-8x7b", "ep": 3}, r"expert_parallel_size=3.*use 1, 2, 4, 8"),
        ({"tp": 3}, r"tensor_parallel_size=3: .*use one of 1, 2, 4, 8"),
        ({"dtype": "int7"}, "dtype='int7'.*bfloat16"),
        ({"implementation": "flash"}, "implementation='flash'.*mosaic_gpu"),
        ({"implementation": "mosaic_gpu", "gpu": "a100"}, r"implementation='mosaic_gpu'.*9\.0"),
        ({"implementation": "triton", "dtype": "float32"}, r"implementation='triton'.*bfloat16"),
        ({"context": 0}, "context=0.*131072"),
        ({"context": 200_000}, "context=200000.*131072"),
        ({"max_num_seqs": 0}, "max_num_seqs=0"),
        ({"model": "llama-3.1-70b"}, r"tp=1: .* 141\.\d GB of 85\.5 GB .*use tp=2"),
        ({"model": "llama-2-70b", "gpu": "a100-40gb", "tp": 2}, r"doesn't fit 2 x.*use tp=4"),
        ({"context": 131_072, "dtype": "float32", "gpu": "a100-40gb"}, r"131072 tokens needs"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**{"model": "llama-3.1-8b"} | arguments)


def test_a_missing_compiler_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(deviceless, "PLUGIN", "no_such_plugin")
    with pytest.raises(ConfigError, match=r'pip install "fastgen-jax\[plan\]"'):
        deviceless.find_compiler(tmp_path)
    folder = tmp_path / deviceless.COMPILER_FOLDER
    (folder / "no_such_plugin").mkdir(parents=True)
    assert deviceless.find_compiler(tmp_path) == folder


def test_an_aborting_compiler_is_reported_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\necho 'LLVM ERROR: Cannot select' >&2\nkill -ABRT $$\n")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    request = CompileRequest(
        model=TINY,
        gpu="h100",
        tensor_parallel_size=1,
        expert_parallel_size=1,
        dtype="bfloat16",
        num_tokens=8,
        num_rows=8,
        max_num_seqs=8,
        max_model_len=64,
        block_size=32,
        num_blocks=4,
        max_logprobs=1,
        max_logit_bias=1,
        max_bad_words=1,
        implementation=None,
        directory=str(tmp_path),
    )
    with pytest.raises(CompilationError, match=r"signal 6:\nLLVM ERROR: Cannot select"):
        deviceless.compile_step(request, tmp_path)


def test_only_the_compiling_process_gets_the_settings(tmp_path: Path) -> None:
    ours = {"XLA_FLAGS": "--mine", "HOME": "there", "MOSAIC_GPU_DUMP_TO": "x"}
    environment = deviceless.compiler_environment(ours, tmp_path, tmp_path / "compiler")
    assert environment["HOME"] == "there"
    assert "--mine" not in environment["XLA_FLAGS"]
    assert f"--xla_dump_to={tmp_path}" in environment["XLA_FLAGS"]
    assert environment["MOSAIC_GPU_DUMP_TO"] == str(tmp_path)
    assert environment["JAX_PLATFORMS"] == "cpu"
    assert environment["PYTHONPATH"].endswith("compiler")
    assert ours == {"XLA_FLAGS": "--mine", "HOME": "there", "MOSAIC_GPU_DUMP_TO": "x"}


def test_shapes_come_from_files_too(tmp_path: Path) -> None:
    tiny = Path(__file__).parents[1] / "references/tiny_llama"
    assert find_shape(tiny) == find_shape(tiny / "config.json")
    (tmp_path / "config.json").write_text('{"architectures": ["Unheard"]}')
    with pytest.raises(UnsupportedModelError, match="Unheard"):
        find_shape(tmp_path)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-2-7b", 6.738),
        ("llama-2-13b", 13.016),
        ("llama-2-70b", 68.977),
        ("llama-3.1-8b", 8.030),
        ("llama-3.1-70b", 70.554),
        ("mistral-7b", 7.248),
        ("mixtral-8x7b", 46.703),
        ("qwen3-30b-a3b", 30.532),
        ("smollm2-135m", 0.1345),
    ],
)
def test_built_in_shapes_have_the_published_sizes(name: str, billions: float) -> None:
    assert SHAPES[name].num_parameters / 1e9 == pytest.approx(billions, rel=5e-4)
    assert weight_bytes(SHAPES[name], dtype="bfloat16", devices=1) == (
        2 * SHAPES[name].num_parameters
    )


def test_a_step_carries_what_the_cache_holds() -> None:
    config = resolve_config(
        EngineConfig(token_budget=768, max_num_seqs=256, max_model_len=1000),
        platform="gpu",
        model_max_len=4096,
    )
    memory = GpuMemory(
        total=0, reserved=0, weights=0, row_state=0, step=0, kv_cache=0, kv_tokens=50_500,
        bytes_per_token=1,
    )  # fmt: skip
    decode = step_load((256, 256), config, memory)
    assert (decode.num_decodes, decode.chunk) == (50, 0)
    full = step_load((768, 256), config, memory)
    assert (full.num_decodes, full.chunk) == (49, 719)
    roomy = step_load((768, 256), config, replace(memory, kv_tokens=10**7))
    assert (roomy.num_decodes, roomy.chunk) == (255, 513)


def test_a_plan_asks_for_both_steps_and_adds_up(
    made: Plan, compiled_before: list[CompileRequest]
) -> None:
    asked = sorted((request.num_tokens, request.num_rows) for request in compiled_before)
    assert asked == [(8, 8), (64, 8)]
    assert all(request.model == TINY for request in compiled_before)
    assert made.memory.step == ANSWER.temp_bytes + 100  # and the fresh results
    for step in made.steps:
        estimate = step.estimate
        for parts in (estimate.seconds_by_kind, estimate.seconds_by_bound):
            assert sum(seconds for _, seconds in parts) == pytest.approx(estimate.seconds)
        assert estimate.costs[0].seconds == max(cost.seconds for cost in estimate.costs)
        assert step.compiled.weight_copies == 1
        assert step.compiled.collectives[0][0] in ("all-to-all", "all-reduce")
        assert not step.compiled.has_attention_kernel
    assert [step.name for step in made.steps] == ["decode", "full budget"]


def test_json_holds_the_plan_and_says_what_is_estimated(made: Plan) -> None:
    data = json.loads(made.to_json())
    assert data["memory"]["kv_tokens"] == made.memory.kv_tokens
    first = data["steps"][0]
    assert first["estimate"]["is_estimate"] is True
    assert first["estimate"]["bytes_over_least"] > 0
    assert first["compiled"]["temp_bytes"] == ANSWER.temp_bytes
    assert data["assumed"]["memory"] == made.assumed.memory


def test_the_table_shows_facts_apart_from_the_estimate(made: Plan) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    print_plan(made, console)
    text = console.export_text()
    for words in ("Compiled steps (facts)", "Estimate per step (nothing was run)", "KV cache"):
        assert words in text


def test_a_chart_is_written_or_the_missing_package_named(made: Plan, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plot='.*\.txt'.*\.svg"):
        plot_plan(made, tmp_path / "plan.txt")
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(ConfigError, match=r"matplotlib.*fastgen-jax\[plan\]"):
            plot_plan(made, tmp_path / "plan.svg")
    else:
        plot_plan(made, tmp_path / "plan.svg")
        assert (tmp_path / "plan.svg").stat().st_size > 1000


def test_the_command_writes_json(
    compiled_before: list[CompileRequest],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(target: str | None) -> None:
        run_plan(
            "smollm2-135m",
            gpu="h100",
            tp=3,
            ep=1,
            context=None,
            dtype="bfloat16",
            max_num_seqs=8,
            token_budget=8,
            json=target,
            plot=None,
        )

    run("-")
    assert json.loads(capsys.readouterr().out)["model"] == "smollm2-135m"
    run(str(tmp_path / "plan.json"))
    assert json.loads((tmp_path / "plan.json").read_text())["context"] == 8192
    with pytest.raises(ConfigError, match="json="):
        run(str(tmp_path / "missing" / "plan.json"))


def test_the_command_line_ends_with_a_sentence() -> None:
    command = [sys.executable, "-m", "fastgen_jax.cli", "plan", "--model", "x", "--gpu", "h100"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("fastgen: model='x': ")
    assert "Traceback" not in done.stderr


def test_other_commands_load_nothing_of_the_plan() -> None:
    program = (
        "import sys, fastgen_jax, fastgen_jax.cli\n"
        "sys.exit(any(name.startswith('fastgen_jax.plan') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_launches_inside_and_outside_graphs_are_counted() -> None:
    thunks = """000: kCommandBuffer [source | next=003]
    001: kCustomKernel   [source | sink] loop_fusion
    002: kCublasLtMatmul [source | sink]
003: kWhile         [prev=000 | sink]
condition:
    004: kCustomKernel [source | sink] compare
  body:
    000: kCommandBuffer [source | sink]
        005: kCustomKernel [source | sink] body_fusion
006: kAllReduceStart [prev | sink]
"""
    graphs = read_graphs(thunks)
    assert graphs.num_graphs == 2
    assert graphs.num_inside == 3
    assert dict(graphs.outside) == {"kWhile": 1, "kCustomKernel": 1, "kAllReduceStart": 1}
    assert graphs.num_outside == 3


def test_reports_of_a_compilation_are_gathered(tmp_path: Path) -> None:
    report = (
        "ptxas info    : Compiling entry function 'attend_mosaic_gpu_kernel' for 'sm_90a'\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 96 registers, used 2 barriers\n"
    )
    (tmp_path / "attend_0.ptxas").write_text(report)
    (tmp_path / "attend_0.ptx").write_text(".visible .entry attend_mosaic_gpu_kernel()")
    (tmp_path / "attend_0.resources.txt").write_text("Resources(smem_scratch_bytes=16384, x=1)")
    (tmp_path / "module.ptx").write_text(".visible .entry loop_fusion()")  # not ours
    assert kernel_registers(tmp_path, {"attend"}, "sm_90a", tmp_path) == (
        KernelRegisters(name="attend_mosaic_gpu_kernel", registers=96, spilled=0, shared=16384),
    )


def test_registers_and_spills_are_read() -> None:
    report = """ptxas info    : Compiling entry function 'attend' for 'sm_90a'
ptxas info    : Function properties for attend
    0 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 168 registers, used 2 barriers
ptxas info    : Compiling entry function 'merge' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
"""
    assert read_report(report) == (
        KernelRegisters(name="attend", registers=168, spilled=16),
        KernelRegisters(name="merge", registers=40, spilled=0),
    )
