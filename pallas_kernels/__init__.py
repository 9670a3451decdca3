"""Attention over a paged cache and products with packed weights, each with a plain XLA reference.

Usable without ``fastgen_jax``; never imports it.
"""

from pallas_kernels.kv_write import (
    KvWriteConfig,
    KvWriteMosaic,
    KvWriteNative,
    KvWriteReference,
    KvWriteShape,
    KvWriteTriton,
    select_write_config,
    write_kv,
)
from pallas_kernels.layer_pages import LayerPages
from pallas_kernels.linear import (
    LinearConfig,
    LinearNative,
    LinearReference,
    LinearXla,
    PackedMatrix,
    RmsNorm,
    linear,
    select_linear_config,
)
from pallas_kernels.ragged_paged_attention import (
    AttentionConfig,
    AttentionNative,
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
    "AttentionNative",
    "AttentionOptions",
    "AttentionShape",
    "AttentionWork",
    "HopperConfig",
    "Implementation",
    "KvWriteConfig",
    "KvWriteMosaic",
    "KvWriteNative",
    "KvWriteReference",
    "KvWriteShape",
    "KvWriteTriton",
    "LayerPages",
    "LinearConfig",
    "LinearNative",
    "LinearReference",
    "LinearXla",
    "PackedMatrix",
    "RaggedBatch",
    "ReferenceConfig",
    "RmsNorm",
    "SplitRule",
    "Target",
    "TritonConfig",
    "linear",
    "plan_work",
    "ragged_paged_attention",
    "select_config",
    "select_linear_config",
    "select_write_config",
    "target_of",
    "write_kv",
]
