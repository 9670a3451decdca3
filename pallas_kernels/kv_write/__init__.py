"""Rotary embedding of a step's keys, and the write of keys and values into their pages."""

from pallas_kernels.kv_write.api import write_kv
from pallas_kernels.kv_write.config import (
    KvWriteConfig,
    KvWriteMosaic,
    KvWriteNative,
    KvWriteReference,
    KvWriteTriton,
)
from pallas_kernels.kv_write.reference import scatter_into_pages
from pallas_kernels.kv_write.select import select_write_config
from pallas_kernels.kv_write.shape import KvWriteShape

__all__ = [
    "KvWriteConfig",
    "KvWriteMosaic",
    "KvWriteNative",
    "KvWriteReference",
    "KvWriteShape",
    "KvWriteTriton",
    "scatter_into_pages",
    "select_write_config",
    "write_kv",
]
