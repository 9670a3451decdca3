"""The command that starts each engine's process, for the same model and sizes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSizes:
    """What every engine of a comparison gets alike.

    Attributes:
        max_model_len: most tokens of a request.
        max_num_seqs: most requests running at once.
    """

    max_model_len: int
    max_num_seqs: int

    def arguments(self) -> list[str]:
        """As command-line arguments, the same for all engines' scripts."""
        lengths = ["--max-model-len", str(self.max_model_len)]
        return [*lengths, "--max-num-seqs", str(self.max_num_seqs)]


def own_command(
    model: str,
    sizes: EngineSizes,
    *,
    dtype: str,
    token_budget: int | None = None,
    quantization: str | None = None,
    num_kv_blocks: int | None = None,
    prefix_caching: bool = False,
) -> list[str]:
    """This engine; None leaves a setting at its default."""
    command = [sys.executable, "-m", "benchmarks.own_engine", "--model", model, "--dtype", dtype]
    command += sizes.arguments()
    if token_budget is not None:
        command += ["--token-budget", str(token_budget)]
    if quantization is not None:
        command += ["--quantization", quantization]
    if num_kv_blocks is not None:
        command += ["--num-kv-blocks", str(num_kv_blocks)]
    return [*command, "--prefix-caching"] if prefix_caching else command


def vllm_command(
    python: Path, model: Path, sizes: EngineSizes, *, dtype: str, token_budget: int, eager: bool
) -> list[str]:
    """vLLM by the interpreter that has it."""
    command = [str(python), str(PEERS / "vllm_peer.py"), "--model", str(model), "--dtype", dtype]
    command += [*sizes.arguments(), "--token-budget", str(token_budget)]
    return [*command, "--eager"] if eager else command


def transformers_command(python: Path, model: Path, *, dtype: str) -> list[str]:
    """transformers by the interpreter that has it; it knows no sizes."""
    script = str(PEERS / "transformers_peer.py")
    return [str(python), script, "--model", str(model), "--dtype", dtype]


def llama_cpp_command(
    server: Path,
    model: Path,
    sizes: EngineSizes,
    *,
    ubatch: int,
    flash_attention: str,
    kv_unified: bool,
) -> list[str]:
    """llama.cpp's server; the file decides the precision."""
    script = str(PEERS / "llama_cpp_peer.py")
    command = [sys.executable, script, "--server", str(server), "--model", str(model)]
    command += [*sizes.arguments(), "--ubatch", str(ubatch), "--flash-attention", flash_attention]
    return [*command, "--kv-unified"] if kv_unified else command
