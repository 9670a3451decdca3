"""Causal attention of decode rows and prompt chunks of one step over a paged cache."""

from pallas_kernels.ragged_paged_attention.api import ragged_paged_attention
from pallas_kernels.ragged_paged_attention.batch import RaggedBatch

__all__ = ["RaggedBatch", "ragged_paged_attention"]
