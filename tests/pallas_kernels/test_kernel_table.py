"""The kernel table: its arithmetic, its reading of machine code, and a few kernels compiled."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kernel_compile import Compiled, Job, compile_jobs
from benchmarks.kernel_evidence import KernelRow
from benchmarks.kernel_limits import in_flight, needed_in_flight, occupancy, turn
from benchmarks.kernel_sass import Loop, count_opcodes, product_loops, read_code
from benchmarks.kernel_table import ResultFile, faults, list_jobs, table_rows
from fastgen_jax.errors import ConfigError
from fastgen_jax.plan.deviceless import find_compiler
from fastgen_jax.plan.gpus import A100, H100


class TestLimits:
    """Occupancy and bytes in flight."""

    @pytest.mark.parametrize(
        ("registers", "shared", "threads", "grid", "expected"),
        [
            (128, 0, 512, 10_000, (1, 16, "registers")),
            (168, 0, 128, 10_000, (3, 12, "registers")),
            (255, 0, 128, 10_000, (2, 8, "registers")),
            (32, 100 * 1024, 128, 10_000, (2, 8, "shared memory")),
            (32, 0, 1024, 10_000, (2, 64, "registers")),
            (16, 0, 1024, 10_000, (2, 64, "threads")),
            (8, 0, 32, 10_000, (32, 32, "blocks")),
            (16, 0, 128, 132, (1, 4, "grid")),
            (16, 0, 128, 133, (2, 8, "grid")),
            (32, 228 * 1024, 128, 10_000, (0, 0, "shared memory")),
        ],
    )
    def test_occupancy(
        self, registers: int, shared: int, threads: int, grid: int, expected: tuple[Any, ...]
    ) -> None:
        held = occupancy(
            H100, registers=registers, shared=shared, threads=threads, grid_blocks=grid
        )
        assert (held.blocks, held.warps, held.limit) == expected

    def test_what_the_memory_needs_in_flight(self) -> None:
        assert needed_in_flight(H100, 800e-9) == pytest.approx(20_303, abs=1)
        assert needed_in_flight(A100, 800e-9) == pytest.approx(15_104, abs=1)

    def test_the_stage_in_use_is_not_in_flight(self) -> None:
        assert in_flight(stages=3, stage_bytes=1000, streams=2, blocks=4) == 16_000
        assert in_flight(stages=1, stage_bytes=1000, streams=2, blocks=4) == 0

    def test_a_turn_beside_the_memory(self) -> None:
        # 32 KiB at 3.35e12 / 132 bytes a second are 1.291 µs, 2363 cycles at 1.83 GHz.
        seen = turn(
            H100,
            block_bytes=32_768,
            issue=800,
            instructions=450,
            multiply_adds=2 * 64 * 64 * 128 // 4,
            warps=4,
            workers=2,
        )
        assert seen.memory == pytest.approx(2363, abs=1)
        assert seen.products == 512
        assert seen.latency_share == pytest.approx((800 + 512) / (2 * 2363), rel=1e-3)
        assert seen.slot_share == pytest.approx(450 / 2363, rel=1e-3)
        eight = turn(
            H100, block_bytes=32_768, issue=1, instructions=450, multiply_adds=0, warps=8, workers=1
        )
        assert eight.slot_share == pytest.approx(2 * seen.slot_share)


def encoded(*lines: tuple[str, int] | str) -> str:
    """Machine code as nvdisasm prints it: labels, and instructions with their stalls."""
    text, address = [], 0
    for line in lines:
        if isinstance(line, str):
            text.append(f"{line}:")
            continue
        code, stall = line
        word = 0x000FC00000000000 | stall << 41
        text.append(f"        /*{address:04x}*/   {code} ;   /* 0x0000000000007918 */")
        text.append(f"                                      /* 0x{word:016x} */")
        address += 16
    return "\n".join(text)


INNER = (
    ".L_x_1",
    ("HMMA.16816.F32.BF16 R4, R8, R12, R4", 10),
    ("@!P0 BRA `(.L_x_2)", 5),
    ("PRMT R3, R3, 0x7610, R3", 15),  # only for a block that isn't full
    ".L_x_2",
    ("LDGSTS.E.BYPASS.128 [R5], [R6.64]", 2),
    ("@P1 BRA `(.L_x_1)", 6),
)


class TestMachineCode:
    """Reading loops."""

    def test_a_turn_takes_the_cheapest_way(self) -> None:
        code = read_code(encoded(("MOV R1, R2", 1), *INNER, ("EXIT", 5)))
        assert product_loops(code) == (
            Loop(multiply_adds=16 * 8 * 16, instructions=4, cycles=10 + 5 + 2 + 6, copies=1),
        )

    def test_a_jump_back_from_rare_code_makes_no_loop(self) -> None:
        rare = (".L_x_9", ("SYNCS R1", 1), ("@P0 BRA `(.L_x_2)", 1), ("BRA `(.L_x_9)", 5))
        code = read_code(encoded(*INNER, ("EXIT", 5), *rare))
        assert len(product_loops(code)) == 1

    def test_an_outer_loop_is_left_out(self) -> None:
        code = read_code(encoded(".L_x_0", ("MOV R1, R2", 1), *INNER, ("@P2 BRA `(.L_x_0)", 5)))
        assert [loop.instructions for loop in product_loops(code)] == [4]

    def test_a_loop_without_products_is_left_out(self) -> None:
        code = read_code(encoded(".L_x_1", ("FADD R1, R2, R3", 1), ("@P1 BRA `(.L_x_1)", 5)))
        assert product_loops(code) == ()

    def test_mosaics_own_dump(self) -> None:
        text = "\n".join(
            [
                "\t.target\tsm_90a",
                ".L_x_217:",
                "   -:-:1:Y:15        /*00a0*/                   HGMMA.64x128x16.F32.BF16 R24, R4 ",
                "   1:-:-:-:02        /*00b0*/               @P1 BRA `(.L_x_217) ",
            ]
        )
        code = read_code(text)
        assert [item.stall for item in code] == [15, 2]
        assert product_loops(code)[0].multiply_adds == 64 * 128 * 16 // 4

    def test_opcodes_are_counted_by_their_name(self) -> None:
        code = read_code(encoded(*INNER))
        assert count_opcodes(code, ("HMMA", "HGMMA", "LDGSTS")) == {"HMMA": 1, "LDGSTS": 1}


JOB = Job(gpu="h100", operation="ragged_paged_attention", spec="some model, 256 decodes")
GOOD = KernelRow(
    job=JOB,
    compiled=Compiled(implementation="HopperConfig", config={}, seconds=1.0),
    kernel="ragged_paged_attention_sm90",
    registers=128,
    spilled=0,
    static_shared=0,
    dynamic_shared=232_448,
    shared_limit=232_448,
    blocks_per_sm=1,
    instructions={"HGMMA": 24, "UTMALDG": 34, "UTMASTG": 8},
    in_flight=65_536,
    needed_in_flight=20_303.0,
)


class TestFaults:
    """What the table calls wrong."""

    def test_a_good_row_has_none(self) -> None:
        assert faults(GOOD) == []

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"spilled": 8}, "spills 8 bytes"),
            ({"static_shared": 1}, "takes 232449 bytes of shared memory"),
            ({"blocks_per_sm": 0}, "no thread block fits"),
            ({"instructions": {"HGMMA": 24, "UTMASTG": 8}}, "has no UTMALDG instruction"),
            ({"in_flight": 20_302}, "has 20302 bytes in flight, needs 20303"),
            ({"compiled": Compiled(implementation="", config={}, seconds=0, error="LLVM")}, "LLVM"),
        ],
    )
    def test_each_is_named(self, change: dict[str, Any], words: str) -> None:
        [fault] = faults(replace(GOOD, **change))
        assert words in fault


# A compiling process that ends, hangs or refuses at specs of such names.
STUB = """
import json, os, sys, time
spec = json.loads(sys.stdin.read())["spec"]
if spec == "ends":
    print("LLVM ERROR: Cannot select", file=sys.stderr, flush=True)
    os.abort()
if spec == "hangs":
    time.sleep(60)
error = "ValueError: no" if spec == "refuses" else None
print(json.dumps({"implementation": spec, "config": {}, "seconds": 1.0, "error": error}))
"""


class TestProcesses:
    """What becomes of a compiler that doesn't come through."""

    def test_it_costs_its_own_row_alone(self, tmp_path: Path) -> None:
        names = ["first", "ends", "refuses", "hangs", "last"]
        jobs = [replace(JOB, spec=name) for name in names]
        command = (sys.executable, "-S", "-c", STUB)  # -S: it starts at once
        made = list(compile_jobs(jobs, tmp_path, timeout=5, command=command))
        assert [job.spec for job, _, _ in made] == names
        errors = [compiled.error for _, compiled, _ in made]
        assert errors[0] is errors[4] is None
        assert "ended with -6" in (errors[1] or "")
        assert "LLVM ERROR: Cannot select" in (errors[1] or "")
        assert errors[2] == "ValueError: no"
        assert errors[3] == "took more than 5 s"


class TestResults:
    """Jobs and their file."""

    def test_an_unknown_spec_is_refused_with_the_names(self) -> None:
        with pytest.raises(ConfigError, match="Llama-2-70B TP4, 256 decodes"):
            list_jobs(["h100"], ["kv_write"], ["no such"])

    def test_rows_of_other_jobs_stay(self, tmp_path: Path) -> None:
        path = tmp_path / "table.json"
        other = replace(GOOD, job=replace(JOB, gpu="a100"), registers=1)
        ResultFile(path, ["a100"]).add(other)
        file = ResultFile(path, ["h100"])
        file.add(GOOD)
        file.add(replace(GOOD, registers=99))
        data = json.loads(path.read_text())
        assert [row["registers"] for row in data["rows"]] == [1, 99]
        assert set(data["compiled_for"]) == {"a100", "h100"}
        assert data["run_on_a_gpu"] is False

    def test_rows_of_another_compiler_go(self, tmp_path: Path) -> None:
        path = tmp_path / "table.json"
        ResultFile(path, ["a100"]).add(replace(GOOD, job=replace(JOB, gpu="a100")))
        old = json.loads(path.read_text())
        path.write_text(json.dumps(old | {"versions": {"jax": "0.0"}}))
        ResultFile(path, ["h100"]).add(GOOD)
        assert len(json.loads(path.read_text())["rows"]) == 1

    def test_the_committed_table_has_nothing_wrong_but_what_it_says(self) -> None:
        path = Path(__file__).parents[2] / "benchmarks/results/kernel_table.json"
        for row in json.loads(path.read_text())["rows"]:
            assert row["spilled"] in (0, None), row["job"]
            assert bool(row["compiled"]["error"]) <= bool(row["faults"]), row["job"]


CHOSEN = [
    Job(gpu="h100", operation="ragged_paged_attention", spec="Llama-3.1-8B, 256 decodes"),
    Job(gpu="h100", operation="ragged_paged_attention", spec="Llama-3.1-8B, fp8 pages, 768 tokens"),
    Job(gpu="a100", operation="ragged_paged_attention", spec="Llama-3.1-8B, 256 decodes"),
    Job(gpu="a100", operation="ragged_paged_attention", spec="SmolLM2-135M, 768 tokens"),
]


@pytest.fixture(scope="module")
def rows() -> dict[Job, KernelRow]:
    """The rows of ``CHOSEN``; skips where the CUDA compiler isn't installed."""
    try:
        compiler = find_compiler()
    except ConfigError as error:
        pytest.skip(f"needs the CUDA compiler's packages: {error.remedy}")
    with ThreadPoolExecutor(2) as pool:  # one compilation keeps little more than a core busy
        made = pool.map(lambda job: list(table_rows([job], compiler)), CHOSEN)
        return {row.job: row for rows in made for row in rows}


@pytest.mark.aot
@pytest.mark.parametrize("job", CHOSEN, ids=lambda job: f"{job.gpu}, {job.operation}, {job.spec}")
class TestCompiled:
    """A few kernels compiled for GPUs that aren't there."""

    def test_nothing_is_wrong(self, rows: dict[Job, KernelRow], job: Job) -> None:
        row = rows[job]
        assert faults(row) == []
        assert row.spilled == 0
        assert (row.registers or 0) > 0

    def test_instructions_are_those_of_the_architecture(
        self, rows: dict[Job, KernelRow], job: Job
    ) -> None:
        found = rows[job].instructions or {}
        if job.gpu == "h100":
            assert found["HGMMA"] > 0
            assert found["UTMALDG"] > 0
        else:
            assert found["HMMA"] > 0
            assert found["LDGSTS"] > 0

    def test_shared_memory_is_what_the_heuristic_reckons(
        self, rows: dict[Job, KernelRow], job: Job
    ) -> None:
        row = rows[job]
        taken = (row.static_shared or 0) + (row.dynamic_shared or 0)
        assert taken <= (row.shared_limit or 0)
        if row.planned_shared is not None:
            assert row.planned_shared - 4096 <= taken <= row.planned_shared

    def test_enough_bytes_are_in_flight(self, rows: dict[Job, KernelRow], job: Job) -> None:
        row = rows[job]
        assert row.in_flight is not None
        assert row.needed_in_flight is not None
        assert row.in_flight >= row.needed_in_flight
