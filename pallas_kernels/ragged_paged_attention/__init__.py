"""Causal attention of decode rows and prompt chunks of one step over a paged cache."""

from pallas_kernels.ragged_paged_attention.api import ragged_paged_attention
from pallas_kernels.ragged_paged_attention.batch import RaggedBatch
from pallas_kernels.ragged_paged_attention.config import ReferenceConfig
from pallas_kernels.ragged_paged_attention.work import AttentionWork, plan_work

__all__ = [
    "AttentionWork",
    "RaggedBatch",
    "ReferenceConfig",
    "plan_work",
    "ragged_paged_attention",
]
