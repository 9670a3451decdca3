"""A model's steps compiled for GPUs that needn't be there, taken apart and priced.

``plan("llama-3.1-8b", gpu="h100", tp=8)`` returns a ``Plan``; ``fastgen plan`` prints one.
"""

from __future__ import annotations

from fastgen_jax.plan.deviceless import CompilationError
from fastgen_jax.plan.gpus import GPUS
from fastgen_jax.plan.planner import plan
from fastgen_jax.plan.report import Plan

__all__ = ["GPUS", "CompilationError", "Plan", "plan"]
