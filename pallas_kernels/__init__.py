"""Attention over a paged cache for ragged batches: kernels with a plain XLA reference beside each.

Usable without ``fastgen_jax``; never imports it.
"""

from pallas_kernels.kv_write import (
    KvWriteConfig,
    KvWriteMosaic,
    KvWriteReference,
    KvWriteShape,
    KvWriteTriton,
    select_write_config,
    write_kv,
)
from pallas_kernels.ragged_paged_attention import (
    AttentionConfig,
    AttentionOptions,
    AttentionShape,
    AttentionWork,
    HopperConfig,
    RaggedBatch,
    ReferenceConfig,
    SplitRule,
    TritonConfig,
    plan_work,
    ragged_paged_attention,
    select_config,
)
from pallas_kernels.target import A100, CPU, H100, Implementation, Target, target_of

__all__ = [
    "A100",
    "CPU",
    "H100",
    "AttentionConfig",
    "AttentionOptions",
    "AttentionShape",
    "AttentionWork",
    "HopperConfig",
    "Implementation",
    "KvWriteConfig",
    "KvWriteMosaic",
    "KvWriteReference",
    "KvWriteShape",
    "KvWriteTriton",
    "RaggedBatch",
    "ReferenceConfig",
    "SplitRule",
    "Target",
    "TritonConfig",
    "plan_work",
    "ragged_paged_attention",
    "select_config",
    "select_write_config",
    "target_of",
    "write_kv",
]
