"""A step compiled for GPUs that aren't there, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastgen_jax.errors import ConfigError, FastGenError
from fastgen_jax.plan.request import CompileAnswer, CompileRequest
from fastgen_jax.plan.worker_files import ANSWER_FILE, PROGRAM_FILE

PLUGIN = "jax_cuda13_plugin"
COMPILER_FOLDER = "cuda-compiler"

# Without a GPU nothing can be timed, and XLA's own products would get an arbitrary tile. As calls
# of cuBLASLt they stay what they are on a GPU: one library kernel each.
_CHECK_FLAGS = ("--xla_gpu_enable_triton_gemm=false",)


class CompilationError(FastGenError, RuntimeError):
    """The compiler refused the step or ended its process; the message has its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledStep:
    """What a compilation left: the answer, and files in ``directory``."""

    answer: CompileAnswer
    directory: Path

    @property
    def program(self) -> str:
        """The optimized program's text."""
        return (self.directory / PROGRAM_FILE).read_text(encoding="utf-8")

    @property
    def thunks(self) -> str:
        """XLA's list of launches, with the graphs they are in; empty where XLA wrote none."""
        for ending in ("*thunk_sequence_after_thunk_passes.txt", "*thunk_sequence.txt"):
            for path in sorted(self.directory.glob(ending)):
                return path.read_text(encoding="utf-8")
        return ""


def find_compiler(prefix: Path = Path(sys.prefix)) -> Path:
    """The folder that holds the CUDA compiler's packages.

    They may be installed like any others, or by ``pip install --target`` into the folder
    ``COMPILER_FOLDER`` of the virtual environment ``prefix``. There only the compiling process sees
    them: where jax finds its CUDA plugin but no driver, every other process would print a traceback
    when it starts.

    Raises:
        ConfigError: they are in neither place.
    """
    spec = importlib.util.find_spec(PLUGIN)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parents[1]
    if (prefix / COMPILER_FOLDER / PLUGIN).is_dir():
        return prefix / COMPILER_FOLDER
    raise ConfigError(
        "compiling for a GPU needs XLA's CUDA compiler, which isn't installed "
        "(no GPU and no driver are needed)",
        field="compiler",
        value=PLUGIN,
        remedy='on Linux: pip install "fastgen-jax[plan]"',
    )


def compile_step(request: CompileRequest, compiler: Path, *, timeout: float = 1800) -> CompiledStep:
    """The step compiled in a process of its own, which gets its settings in its environment.

    Args:
        request: what to compile; its directory must exist.
        compiler: what ``find_compiler`` returned.
        timeout: seconds that the process may take.

    Raises:
        CompilationError: the compiler refused the step, aborted, or took too long.
    """
    directory = Path(request.directory)
    command = [sys.executable, "-m", "fastgen_jax.plan.worker"]
    environment = compiler_environment(os.environ, directory, compiler)
    try:
        done = subprocess.run(
            command,
            input=request.to_json(),
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CompilationError(
            f"compiling took more than {timeout:.0f} s", remedy="raise the timeout"
        ) from error
    answer = directory / ANSWER_FILE
    if done.returncode != 0 or not answer.is_file():
        raise CompilationError(_last_words(done.returncode, done.stderr))
    return CompiledStep(
        answer=CompileAnswer.from_json(answer.read_text(encoding="utf-8")), directory=directory
    )


def compiler_environment(
    environ: Mapping[str, str], directory: Path, compiler: Path
) -> dict[str, str]:
    """The environment of the compiling process; ours is left alone.

    XLA's and Mosaic's reports go to ``directory``. JAX runs on the CPU: the CUDA plugin is only
    asked to compile, and would complain of the missing driver.
    """
    flags = (*_CHECK_FLAGS, f"--xla_dump_to={directory}", "--xla_dump_emitter_re=ptx")
    kept = {
        name: value
        for name, value in environ.items()
        if name not in ("XLA_FLAGS", "JAX_PLATFORMS", "PYTHONPATH")
        and not name.startswith("MOSAIC_GPU_")
    }
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(flags),
        "MOSAIC_GPU_DUMP_TO": str(directory),
        "MOSAIC_GPU_DUMP_PTXAS": "1",
        "PYTHONPATH": os.pathsep.join([*(path for path in sys.path if path), str(compiler)]),
    }


def _last_words(status: int, stderr: str, lines: int = 12) -> str:
    ending = f"signal {-status}" if status < 0 else f"status {status}"
    noise = ("WARNING", "I0000", "W0000")
    words = [line for line in stderr.splitlines() if line.strip() and not line.startswith(noise)]
    return f"the compiling process ended with {ending}:\n" + "\n".join(words[-lines:])
