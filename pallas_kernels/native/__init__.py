"""The native CPU kernels as one library: built where there is a C++ compiler, found, loaded."""

from pallas_kernels.native.build import processor_features, source_digest
from pallas_kernels.native.library import (
    NativeLibrary,
    native_library,
    native_obstacle,
    set_num_threads,
)
from pallas_kernels.native.zeros import native_zeros

__all__ = [
    "NativeLibrary",
    "native_library",
    "native_obstacle",
    "native_zeros",
    "processor_features",
    "set_num_threads",
    "source_digest",
]
