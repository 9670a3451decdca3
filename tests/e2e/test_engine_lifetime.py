"""Compilations, memory, failures: what must hold over the life of an engine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastgen_jax import LLM, FinishReason, SamplingParams
from fastgen_jax.batching import StepShape
from fastgen_jax.errors import CheckpointError, EngineClosedError, RecompileError
from fastgen_jax.runtime.compile import count_compilations
from tests.e2e.conftest import TINY_MODEL, ReferencePrompt

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


def random_params(rng: np.random.Generator) -> SamplingParams:
    """Parameters that together switch on every part of the sampler."""
    return SamplingParams(
        n=1,
        temperature=float(rng.choice([0.0, 0.7, 1.3])),
        top_k=int(rng.choice([0, 1, 20])),
        top_p=float(rng.choice([1.0, 0.8])),
        min_p=float(rng.choice([0.0, 0.1])),
        repetition_penalty=float(rng.choice([1.0, 1.2])),
        presence_penalty=float(rng.choice([0.0, 0.5])),
        frequency_penalty=float(rng.choice([0.0, 0.5])),
        logit_bias={5: 3.0} if rng.random() < 0.2 else None,
        allowed_token_ids=list(range(100)) if rng.random() < 0.2 else None,
        min_tokens=int(rng.integers(0, 3)),
        seed=int(rng.integers(100)) if rng.random() < 0.5 else None,
        logprobs=int(rng.integers(0, 5)) if rng.random() < 0.3 else None,
        prompt_logprobs=int(rng.integers(0, 5)) if rng.random() < 0.2 else None,
        stop_token_ids=[7] if rng.random() < 0.2 else None,
        max_tokens=int(rng.integers(3, 9)),
    )


def test_200_random_mixes_compile_nothing(tiny_llm: LLM) -> None:
    rng = np.random.default_rng(0)
    with count_compilations() as compiled:
        prompts = [rng.integers(0, 256, rng.integers(1, 60)).tolist() for _ in range(200)]
        outputs = tiny_llm.generate(prompts, [random_params(rng) for _ in prompts])
    assert compiled.count == 0
    assert len(outputs) == 200
    assert all(1 <= len(output.outputs[0].token_ids) <= 8 for output in outputs)


def test_counting_compilations_notices_one() -> None:
    with count_compilations() as compiled:
        jax.jit(lambda x: x * 3 + 1)(jnp.zeros(17)).block_until_ready()
    assert compiled.count > 0


def test_another_shape_is_an_error_that_names_it(tiny_llm: LLM) -> None:
    executor = tiny_llm._engine._executor  # the guard has no public door: nothing should need it
    with pytest.raises(RecompileError, match=r"packed_inputs.*int32\[\d+\], given int32\[3\]"):
        executor.launch(StepShape(4, 4), np.zeros(3, np.int32))
    size = tiny_llm._engine._packer._layouts[StepShape(4, 4)].size
    with pytest.raises(RecompileError, match=r"packed_inputs.*int32.*given float32"):
        executor.launch(StepShape(4, 4), np.zeros(size, np.float32))


def test_a_second_process_compiles_nothing(tiny_llm: LLM, tiny_settings: dict[str, object]) -> None:
    program = f"""
from fastgen_jax import LLM, SamplingParams
from fastgen_jax.runtime.compile import count_compilations
with count_compilations() as compiled:
    with LLM({str(TINY_MODEL)!r}, **{tiny_settings!r}) as llm:
        tokens = llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=4))
report = llm.compile_report
print(compiled.count, report.num_cached, len(report.records))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "4", "4"]


def test_closing_frees_every_buffer_and_building_again_works(
    tiny_settings: dict[str, object], tiny_prompts: list[ReferencePrompt]
) -> None:
    prompt = tiny_prompts[0]
    held: list[int] = []
    for _ in range(5):
        with LLM(TINY_MODEL, **tiny_settings) as llm:
            output = llm.generate(prompt.prompt_token_ids, GREEDY)[0].outputs[0]
            assert list(output.token_ids) == prompt.token_ids
        held.append(sum(array.nbytes for array in jax.live_arrays()))
        with pytest.raises(EngineClosedError):
            llm.generate(prompt.prompt_token_ids, GREEDY)
        llm.close()
    assert len(set(held)) == 1, f"device memory grows: {held}"


def test_the_pool_is_updated_in_place(tiny_llm: LLM) -> None:
    executor = tiny_llm._engine._executor
    before = [page.unsafe_buffer_pointer() for page in executor._pages]
    tiny_llm.generate([1, 2, 3], GREEDY)
    assert [page.unsafe_buffer_pointer() for page in executor._pages] == before


def test_nan_fails_one_request_and_spares_the_others(
    tiny_settings: dict[str, object], tiny_prompts: list[ReferencePrompt]
) -> None:
    poison = 13
    sound = [p for p in tiny_prompts if poison not in [*p.prompt_token_ids, *p.token_ids]]
    assert sound, "a reference without the poisoned token is needed"
    with LLM(TINY_MODEL, **tiny_settings) as llm:
        executor = llm._engine._executor
        vocab, width = llm.model_config.vocab_size, llm.model_config.hidden_size
        dense, packed = (vocab, width), (1, -(-vocab // 16), width, 16)
        # Two matrices have such a shape: the embedding, and the head, whose row 13 would poison
        # everyone; the embedding comes first in the model's order of names.
        shapes = [leaf.shape for leaf in executor._leaves]
        place = next(i for i, shape in enumerate(shapes) if shape in (dense, packed))
        row = poison if shapes[place] == dense else (0, poison // 16, slice(None), poison % 16)
        leaves = list(executor._leaves)
        leaves[place] = leaves[place].at[row].set(jnp.nan)
        executor._leaves = tuple(leaves)
        prompts = [[1, poison, 2], sound[0].prompt_token_ids, [3, poison]]
        for _ in range(3):  # again, so that failed requests' blocks are reused
            outputs = [output.outputs[0] for output in llm.generate(prompts, GREEDY)]
            assert [o.finish_reason for o in outputs] == [
                FinishReason.ERROR,
                FinishReason.LENGTH,
                FinishReason.ERROR,
            ]
            assert "NaN" in (outputs[0].error or "")
            assert list(outputs[1].token_ids) == sound[0].token_ids


def test_a_failing_step_fails_its_requests_loudly(tiny_settings: dict[str, object]) -> None:
    with LLM(TINY_MODEL, **tiny_settings) as llm:
        stream = llm.stream([1, 2, 3], GREEDY)
        next(stream)
        llm._engine._executor._steps.clear()
        with pytest.raises(EngineClosedError, match="ended all requests"):
            list(stream)
        with pytest.raises(EngineClosedError, match="stopped"):
            llm.generate([1, 2, 3], GREEDY)


def test_memory_plan_covers_what_is_held(tiny_settings: dict[str, object]) -> None:
    before = sum(array.nbytes for array in jax.live_arrays())
    with LLM(TINY_MODEL, **tiny_settings) as llm:
        plan = llm.startup.memory_plan
        held = sum(array.nbytes for array in jax.live_arrays()) - before
        assert held == plan.weights + plan.row_state + plan.kv_cache
        assert plan.step > 0
        assert plan.fits
        assert "KV cache" in str(plan)


def test_random_weights_and_formats(tiny_settings: dict[str, object]) -> None:
    from fastgen_jax.errors import ConfigError

    with LLM(TINY_MODEL, **{**tiny_settings, "load_format": "dummy"}) as llm:
        assert len(llm.generate([1, 2], GREEDY)[0].outputs[0].token_ids) == 24
    with pytest.raises(ConfigError, match=r"load_format='gguf'.*holds safetensors"):
        LLM(Path(TINY_MODEL), **{**tiny_settings, "load_format": "gguf"})


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_random_weights_need_no_more_than_a_description(
    quantization: str | None, tiny_settings: dict[str, object], tmp_path: Path
) -> None:
    shutil.copy(TINY_MODEL / "config.json", tmp_path)
    settings = {**tiny_settings, "load_format": "dummy", "quantization": quantization}
    with LLM(tmp_path, **settings) as llm:
        assert llm.tokenizer is None
        assert len(llm.generate([1, 2], GREEDY)[0].outputs[0].token_ids) == 24
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        LLM(tmp_path, **tiny_settings)


def test_background_compilation_serves_at_once_and_ends_with_every_shape(
    tiny_settings: dict[str, object], tiny_prompts: list[ReferencePrompt], tmp_path: Path
) -> None:
    settings = {**tiny_settings, "compile_in_background": True}
    settings["compilation_cache_dir"] = str(tmp_path)
    prompt = tiny_prompts[2]
    with LLM(TINY_MODEL, **settings) as llm:
        first = llm.generate(prompt.prompt_token_ids, GREEDY)[0].outputs[0]
        early = set(llm.metrics.steps_by_shape)
        assert len(llm.compile_report.records) == 4
        again = llm.generate(prompt.prompt_token_ids[:-1], GREEDY)[0].outputs[0]
        late = set(llm.metrics.steps_by_shape) - early
        assert llm._engine._packer.shapes == (StepShape(4, 4), StepShape(16, 4))
    assert list(first.token_ids) == prompt.token_ids
    assert len(again.token_ids) == 24
    assert StepShape(4, 4) in early
    assert early | late == {StepShape(4, 4), StepShape(16, 4)}


def test_a_program_out_of_jaxs_own_cache_is_not_stored_again(tmp_path: Path) -> None:
    """Serialized twice it would load and then fail when called; so it is compiled once more."""
    from fastgen_jax.runtime.compile import Program, compile_programs
    from fastgen_jax.runtime.program_cache import ProgramCache

    argument = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    program = Program(
        name="product",
        function=lambda x: jnp.sin(x @ x).sum() + 1,
        description=None,
        arguments={"x": argument},
    )
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        values = []
        for name in ("a", "b", "b"):  # compiled; out of jax's cache; the same again
            jax.clear_caches()  # as in another process
            cache = ProgramCache(tmp_path / name)
            programs, _ = compile_programs([program], cache)
            values.append(float(programs["product"](jnp.ones((32, 32)))))
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
    assert len(set(values)) == 1
    assert list((tmp_path / "a").iterdir())
    assert not list((tmp_path / "b").iterdir())
