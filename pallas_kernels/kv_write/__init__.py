"""Write a step's keys and values into their pages."""

from pallas_kernels.kv_write.reference import write_kv

__all__ = ["write_kv"]
