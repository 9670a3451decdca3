"""From a plan to one packed integer vector, and from one packed result vector back."""

from fastgen_jax.batching.inputs import InputLayout, ResultLayout, StepShape
from fastgen_jax.batching.pack import StepPacker
from fastgen_jax.batching.results import StepResults

__all__ = ["InputLayout", "ResultLayout", "StepPacker", "StepResults", "StepShape"]
