"""Attention over a paged cache for ragged batches: kernels with a plain XLA reference beside each.

Usable without ``fastgen_jax``; never imports it.
"""

from pallas_kernels.kv_write import write_kv
from pallas_kernels.ragged_paged_attention import (
    AttentionWork,
    RaggedBatch,
    ReferenceConfig,
    plan_work,
    ragged_paged_attention,
)

__all__ = [
    "AttentionWork",
    "RaggedBatch",
    "ReferenceConfig",
    "plan_work",
    "ragged_paged_attention",
    "write_kv",
]
