from __future__ import annotations

from pathlib import Path

from benchmarks.engine_commands import EngineSizes, llama_cpp_command, own_command, vllm_command

SIZES = EngineSizes(max_model_len=640, max_num_seqs=3)


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_every_engine_gets_the_same_sizes():
    model = Path("model")
    commands = [
        own_command("model", SIZES, dtype="bfloat16"),
        vllm_command(Path("python"), model, SIZES, dtype="bfloat16", token_budget=512, eager=False),
        llama_cpp_command(
            Path("server"), model, SIZES, ubatch=512, flash_attention="auto", kv_unified=True
        ),
    ]
    for command in commands:
        assert option(command, "--model") == "model"
        assert option(command, "--max-model-len") == "640"
        assert option(command, "--max-num-seqs") == "3"


def test_settings_left_out_are_left_to_the_engine():
    plain = own_command("model", SIZES, dtype="float32")
    for name in ("--token-budget", "--quantization", "--num-kv-blocks", "--prefix-caching"):
        assert name not in plain
    full = own_command(
        "model",
        SIZES,
        dtype="float32",
        token_budget=128,
        quantization="gguf",
        num_kv_blocks=7,
        prefix_caching=True,
    )
    assert option(full, "--token-budget") == "128"
    assert option(full, "--quantization") == "gguf"
    assert option(full, "--num-kv-blocks") == "7"
    assert "--prefix-caching" in full
