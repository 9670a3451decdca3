"""A model converted to a snapshot answers as the model does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastgen_jax import LLM, SamplingParams
from fastgen_jax.conversion import convert
from fastgen_jax.errors import ConfigError

FAMILIES = Path(__file__).parents[1] / "references" / "families"
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


@pytest.fixture
def settings(compilation_cache: Path) -> dict[str, object]:
    return {
        "step_shapes": ((16, 4),),
        "block_size": 8,
        "num_kv_blocks": 80,
        "max_model_len": 121,
        "compilation_cache_dir": str(compilation_cache),
        "show_progress": False,
    }


@pytest.mark.parametrize("implementation", ["auto", pytest.param("xla", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", ["qwen2", "gemma3", "mixtral"])
def test_tokens_of_a_snapshot_are_those_of_transformers(
    case: str, implementation: str, tmp_path: Path, settings: dict[str, object]
) -> None:
    directory = tmp_path / "snapshot"
    convert(FAMILIES / case, directory, show_progress=False)
    prompts = json.loads((FAMILIES / case / "greedy.json").read_text())["prompts"]
    with LLM(directory, dtype="float32", implementation=implementation, **settings) as llm:
        outputs = llm.generate([prompt["prompt_token_ids"] for prompt in prompts], GREEDY)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    assert tokens == [prompt["token_ids"] for prompt in prompts]


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_the_real_model_and_its_snapshot_say_the_same(
    quantization: str | None, smollm2_gguf: Path, tmp_path: Path, compilation_cache: Path
) -> None:
    directory = tmp_path / "snapshot"
    converted = convert(smollm2_gguf, directory, show_progress=False)
    assert converted.dtype == "float32"
    answers = []
    for model in (smollm2_gguf, directory):
        with LLM(
            model,
            quantization=quantization,
            # Which implementation is faster may be found differently the second time, and one that
            # rounds rows may then round another way.
            activation_quantization="none",
            step_shapes=((8, 4), (64, 4)),
            max_model_len=128,
            compilation_cache_dir=str(compilation_cache),
            show_progress=False,
        ) as llm:
            prompt = llm.chat_prompt(
                [{"role": "user", "content": "What is the capital of France?"}]
            )
            (output,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=16))
            answers.append((prompt, output.outputs[0].token_ids, output.outputs[0].text))
    assert answers[0] == answers[1]
    assert "Paris" in answers[0][2]


def test_another_format_than_asked_for_is_refused(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    convert(FAMILIES / "qwen2", tmp_path / "snapshot", show_progress=False)
    with pytest.raises(ConfigError, match=r"load_format='gguf': .* holds orbax"):
        LLM(tmp_path / "snapshot", load_format="gguf", **settings)
    with pytest.raises(ConfigError, match=r"load_format='orbax': .* holds safetensors"):
        LLM(FAMILIES / "qwen2", load_format="orbax", **settings)


def test_an_unknown_type_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dtype='float16'.*float32 or bfloat16"):
        convert(FAMILIES / "qwen2", tmp_path / "snapshot", dtype="float16")
    assert not list(tmp_path.iterdir())
