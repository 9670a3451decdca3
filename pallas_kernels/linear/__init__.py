"""Products with packed weights, exact or quantized: several layers of a matrix in one array."""

from pallas_kernels.linear.api import linear
from pallas_kernels.linear.config import LinearConfig, LinearNative, LinearReference, LinearXla
from pallas_kernels.linear.format import FORMATS, FormatName, WeightFormat
from pallas_kernels.linear.norm import RmsNorm
from pallas_kernels.linear.pack import allocate, pack, pack_blocks, pack_values
from pallas_kernels.linear.packed import PackedMatrix
from pallas_kernels.linear.rounding import rounded_rows
from pallas_kernels.linear.select import select_linear_config
from pallas_kernels.linear.unpack import take_columns, unpack, unpack_layer

__all__ = [
    "FORMATS",
    "FormatName",
    "LinearConfig",
    "LinearNative",
    "LinearReference",
    "LinearXla",
    "PackedMatrix",
    "RmsNorm",
    "WeightFormat",
    "allocate",
    "linear",
    "pack",
    "pack_blocks",
    "pack_values",
    "rounded_rows",
    "select_linear_config",
    "take_columns",
    "unpack",
    "unpack_layer",
]
