"""What the compiling process is asked and what it answers: plain data that travels as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from fastgen_jax.config import Implementation
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.config_data import config_from_data, config_to_data


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileRequest:
    """One step of a model to compile for GPUs that needn't be there.

    Attributes:
        gpu: name of the GPU, as in ``plan.gpus``.
        tensor_parallel_size: GPUs that share each expert; without experts, the model.
        expert_parallel_size: groups of so many GPUs, over which experts are dealt out.
        dtype: of weights, activations and cache.
        num_tokens: T of the step.
        num_rows: R of the step.
        num_blocks: of the cache on each GPU; changes no kernel.
        max_model_len: most tokens of a request; the width of block tables and histories.
        max_logprobs, max_logit_bias, max_bad_words: as in ``EngineConfig``.
        implementation: of attention and page write; None takes the GPU's best.
        directory: where the program's text and the compiler's reports are put.
    """

    model: ModelConfig
    gpu: str
    tensor_parallel_size: int
    expert_parallel_size: int
    dtype: str
    num_tokens: int
    num_rows: int
    max_num_seqs: int
    max_model_len: int
    block_size: int
    num_blocks: int
    max_logprobs: int
    max_logit_bias: int
    max_bad_words: int
    implementation: Implementation | None
    directory: str

    def to_json(self) -> str:
        """The request as one line of JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps(values | {"model": config_to_data(self.model)})

    @property
    def num_devices(self) -> int:
        """GPUs that share the model."""
        return self.tensor_parallel_size * self.expert_parallel_size

    @classmethod
    def from_json(cls, text: str) -> CompileRequest:
        """The request that ``to_json`` wrote."""
        values = json.loads(text)
        return cls(model=config_from_data(values.pop("model")), **values)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileAnswer:
    """What only the compiling process knows; bytes are those of one GPU.

    Attributes:
        weight_names: of the program's first parameters, in order.
        num_pages: parameters after them that hold pages.
        kernels: those of ours that were chosen, with their sizes.
        weight_bytes, page_bytes, row_state_bytes: of the arguments.
        argument_bytes, output_bytes, alias_bytes, temp_bytes: the compiler's memory analysis.
        trace_seconds, compile_seconds: of this compilation, on this machine.
    """

    weight_names: tuple[str, ...]
    num_pages: int
    kernels: str
    weight_bytes: int
    page_bytes: int
    row_state_bytes: int
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temp_bytes: int
    trace_seconds: float
    compile_seconds: float

    def to_json(self) -> str:
        """The answer as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> CompileAnswer:
        """The answer that ``to_json`` wrote."""
        values = json.loads(text)
        return cls(**values | {"weight_names": tuple(values["weight_names"])})
