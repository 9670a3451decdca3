"""Causal attention of decode rows and prompt chunks of one step over a paged cache."""

from pallas_kernels.ragged_paged_attention.api import ragged_paged_attention
from pallas_kernels.ragged_paged_attention.batch import RaggedBatch
from pallas_kernels.ragged_paged_attention.config import (
    AttentionConfig,
    AttentionNative,
    HopperConfig,
    ReferenceConfig,
    SplitRule,
    TritonConfig,
)
from pallas_kernels.ragged_paged_attention.options import AttentionOptions
from pallas_kernels.ragged_paged_attention.select import select_config
from pallas_kernels.ragged_paged_attention.shape import AttentionShape
from pallas_kernels.ragged_paged_attention.work import AttentionWork, plan_work

__all__ = [
    "AttentionConfig",
    "AttentionNative",
    "AttentionOptions",
    "AttentionShape",
    "AttentionWork",
    "HopperConfig",
    "RaggedBatch",
    "ReferenceConfig",
    "SplitRule",
    "TritonConfig",
    "plan_work",
    "ragged_paged_attention",
    "select_config",
]
