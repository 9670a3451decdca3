// Rotary embedding of a step's keys, and the write of keys and values into their pages.
#pragma once

#include <cstdint>

#include "native/dtype.h"

namespace fastgen {

// Axes: T tokens, N pages, K kv heads, S slots, D numbers.
struct KvWriteArgs {
  void* k_pages;  // [N, K, S, D], changed in place
  void* v_pages;
  DType kv_dtype;
  int64_t num_kv_heads;
  int64_t page_size;
  int64_t head_dim;

  const void* k;  // [T, K, D]
  const void* v;
  DType dtype;  // float32 or bfloat16
  int64_t num_tokens;  // those to write

  const int32_t* page_ids;  // [T]
  int64_t first_page;       // added to every page id
  const int32_t* slots;     // [T]
  const float* cos;         // [T, rotary_half] or null
  const float* sin;
  int64_t rotary_half;
  const float* k_scales;  // [K] or null; 8-bit pages only
  const float* v_scales;
};

void write_kv(const KvWriteArgs& args);

}  // namespace fastgen
