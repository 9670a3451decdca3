// All bindings to XLA as one unit: its headers take longer to compile than everything else.
#include "kv_write/cpu_ffi.cc"
#include "linear/cpu_ffi.cc"
#include "native/zeros_ffi.cc"
#include "ragged_paged_attention/cpu_ffi.cc"
