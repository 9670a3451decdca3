"""What is known of a GPU from its data sheet, by name; nothing here was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastgen_jax.errors import ConfigError

# XLA's numbers for element types, in its target description.
_F16, _F32, _F64, _BF16, _S8, _F8E5M2, _F8E4M3 = 10, 11, 12, 16, 2, 19, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU's limits and rates, from NVIDIA's data sheets and tuning guides.

    Attributes:
        name: what users call it.
        title: what its driver calls it.
        compute_capability: (major, minor).
        num_sms: streaming multiprocessors.
        boost_clock: of the cores, Hz.
        tensor_clock: at which ``num_sms * tensor_ops`` gives the data sheet's dense rate, Hz.
        tensor_ops: dense bfloat16 multiply-adds of one tensor core in a clock; four to an SM.
        has_fp8: whether the tensor cores take fp8, at twice the bfloat16 rate.
        memory: bytes that the driver shows.
        bandwidth: of the memory, bytes per second.
        l2: bytes.
        shared_per_sm: bytes.
        shared_per_block: most bytes that one block can ask for.
        nvlink: bytes per second and direction, all links of one GPU together.
    """

    name: str
    title: str
    compute_capability: tuple[int, int]
    num_sms: int
    boost_clock: float
    tensor_clock: float
    tensor_ops: int
    has_fp8: bool
    memory: int
    bandwidth: float
    l2: int
    shared_per_sm: int
    shared_per_block: int
    nvlink: float

    @property
    def bf16_flops(self) -> float:
        """Dense bfloat16 FLOP/s of the tensor cores."""
        return 2.0 * 4 * self.num_sms * self.tensor_ops * self.tensor_clock

    @property
    def ptx_arch(self) -> str:
        """What ptxas calls the architecture, with its own features where it has some."""
        major, minor = self.compute_capability
        return f"sm_{major}{minor}" + ("a" if major >= 9 else "")

    @property
    def fp32_lanes(self) -> int:
        """float32 units of one SM."""
        return 64 if self.compute_capability == (8, 0) else 128

    def tensor_flops(self, dtype: str) -> float:
        """Dense FLOP/s of a matrix product with operands of an HLO dtype such as "bf16".

        float32 products take the tensor cores' tf32 only if asked, so they run on the plain cores.
        """
        if dtype in ("bf16", "f16"):
            return self.bf16_flops
        if dtype.startswith("f8") and self.has_fp8:
            return 2 * self.bf16_flops
        return 2.0 * self.fp32_lanes * self.num_sms * self.boost_clock


H100 = Gpu(
    name="h100",
    title="NVIDIA H100 80GB HBM3",
    compute_capability=(9, 0),
    num_sms=132,
    boost_clock=1.98e9,
    tensor_clock=1.83e9,
    tensor_ops=512,
    has_fp8=True,
    memory=81_559 * 2**20,
    bandwidth=3.35e12,
    l2=50 * 2**20,
    shared_per_sm=228 * 2**10,
    shared_per_block=227 * 2**10,
    nvlink=450e9,
)
A100 = Gpu(
    name="a100",
    title="NVIDIA A100-SXM4-80GB",
    compute_capability=(8, 0),
    num_sms=108,
    boost_clock=1.41e9,
    tensor_clock=1.41e9,
    tensor_ops=256,
    has_fp8=False,
    memory=81_920 * 2**20,
    bandwidth=2.039e12,
    l2=40 * 2**20,
    shared_per_sm=164 * 2**10,
    shared_per_block=163 * 2**10,
    nvlink=300e9,
)
GPUS: tuple[Gpu, ...] = (
    H100,
    replace(H100, name="h200", title="NVIDIA H200", memory=143_771 * 2**20, bandwidth=4.8e12),
    A100,
    replace(
        A100,
        name="a100-40gb",
        title="NVIDIA A100-SXM4-40GB",
        memory=40_960 * 2**20,
        bandwidth=1.555e12,
    ),
)


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, in any case; ConfigError lists the known ones."""
    for gpu in GPUS:
        if gpu.name == name.lower():
            return gpu
    raise ConfigError(
        "no such GPU is known",
        field="gpu",
        value=name,
        remedy="use one of " + ", ".join(gpu.name for gpu in GPUS),
    )


def target_config(gpu: Gpu) -> str:
    """The GPU as XLA's target description, a text proto: what it compiles for without a device.

    Without the driver's and the runtime's versions XLA runs no CUDA graph pass, and without the
    matrix units its cost model prices products at the plain cores' rate.
    """
    major, minor = gpu.compute_capability
    accelerated = " feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 2**10,
        "shared_memory_per_core": gpu.shared_per_sm,
        "threads_per_core_limit": 2048,
        "core_count": gpu.num_sms,
        "fpus_per_core": gpu.fp32_lanes,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": int(gpu.bandwidth),
        "l2_cache_size": gpu.l2,
        "clock_rate_ghz": gpu.boost_clock / 1e9,
        "device_memory_size": gpu.memory,
        "shared_memory_per_block_optin": gpu.shared_per_block,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
        "runtime_version": '"13.0.0"',
        "driver_version": '"13.0.0"',
        "compile_time_toolkit_version": '"13.0.0"',
        "dnn_version": '"9.12.0"',
    }
    lanes = gpu.fp32_lanes
    scalar = {_F32: (lanes, 1), _F16: (lanes, 2), _BF16: (lanes, 2), _F64: (lanes // 2, 1)}
    matrix = {_BF16: 1.0, _F16: 1.0, _F32: 0.5, _S8: 2.0}
    if gpu.has_fp8:
        matrix |= {_F8E4M3: 2.0, _F8E5M2: 2.0}
    tensor = {key: (4, int(gpu.tensor_ops * factor)) for key, factor in matrix.items()}
    lines = [f"  {name}: {value}" for name, value in fields.items()]
    lines.append(f"  cuda_compute_capability {{ major: {major} minor: {minor}{accelerated} }}")
    lines += _rates("scalar_unit_description", scalar, gpu.boost_clock)
    lines += _rates("matrix_unit_description", tensor, gpu.tensor_clock)
    body = "\n".join(lines)
    return (
        f"gpu_device_info {{\n{body}\n}}\n"
        'platform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 12 patch: 0 }\n"
        f'device_description_str: "{gpu.title}"\n'
    )


def _rates(name: str, rates: dict[int, tuple[int, int]], clock: float) -> list[str]:
    ghz = clock / 1e9
    return [
        f"  {name} {{",
        *(
            f"    rate_infos {{ key: {key} value {{ clock_rate_ghz: {ghz} "
            f"units_per_core: {units} ops_per_clock: {ops} }} }}"
            for key, (units, ops) in rates.items()
        ),
        "  }",
    ]
