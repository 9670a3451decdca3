"""What XLA has to be told for a step to run well."""

from __future__ import annotations

# - The whole step is to be one CUDA graph, so conditionals, loops and collectives may be in it too.
# - Products that share an operand stay apart: merged, they have their weights copied side by side
#   in every step.
_GPU_OPTIONS = {
    "xla_gpu_enable_command_buffer": (
        "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,"
        "COLLECTIVES,CONDITIONAL,WHILE"
    ),
    "xla_gpu_dot_merger_threshold_mb": "0",
}

# Many small pieces of code cost more to compile than two large ones, and several programs are
# compiled at once anyway.
_CPU_OPTIONS = {"xla_cpu_parallel_codegen_split_count": "2"}


def compiler_options(platform: str) -> dict[str, str]:
    """Options for ``jax.stages.Lowered.compile`` on a platform ("cpu", "gpu", …)."""
    if platform in ("gpu", "cuda"):
        return dict(_GPU_OPTIONS)
    return dict(_CPU_OPTIONS) if platform == "cpu" else {}
