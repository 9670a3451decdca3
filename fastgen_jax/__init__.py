"""Dynamic SplitFuse serving of language models in JAX."""

from fastgen_jax.sampling_params import SamplingParams

__all__ = ["SamplingParams"]
