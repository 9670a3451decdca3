"""Dynamic SplitFuse serving of language models in JAX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastgen_jax.config import EngineConfig
from fastgen_jax.errors import FastGenError
from fastgen_jax.outputs import CompletionOutput, Delta, Logprob, RequestMetrics, RequestOutput
from fastgen_jax.request import FinishReason
from fastgen_jax.sampling_params import SamplingParams

if TYPE_CHECKING:
    from fastgen_jax.async_llm import AsyncLLM
    from fastgen_jax.llm import LLM, follow
    from fastgen_jax.observe.explain import Explanation
    from fastgen_jax.observe.observer import Observer
    from fastgen_jax.observe.step_history import StepHistory
    from fastgen_jax.observe.timeline import Timeline
    from fastgen_jax.parallel.hosts import join_hosts
    from fastgen_jax.pipeline import Pipeline, Response, pipeline
    from fastgen_jax.replaying.replay import replay
    from fastgen_jax.replaying.report import ReplayReport

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "Delta",
    "EngineConfig",
    "Explanation",
    "FastGenError",
    "FinishReason",
    "Logprob",
    "Observer",
    "Pipeline",
    "ReplayReport",
    "RequestMetrics",
    "RequestOutput",
    "Response",
    "SamplingParams",
    "StepHistory",
    "Timeline",
    "__version__",
    "follow",
    "join_hosts",
    "pipeline",
    "replay",
]

# Models need jax, without which scheduling and simulation must import; nobody else needs the rest.
_LAZY = {
    "LLM": "llm",
    "AsyncLLM": "async_llm",
    "Explanation": "observe.explain",
    "Observer": "observe.observer",
    "Pipeline": "pipeline",
    "Response": "pipeline",
    "StepHistory": "observe.step_history",
    "Timeline": "observe.timeline",
    "follow": "llm",
    "join_hosts": "parallel.hosts",
    "pipeline": "pipeline",
    "ReplayReport": "replaying.report",
    "replay": "replaying.replay",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"fastgen_jax.{_LAZY[name]}")
    return getattr(module, name)
