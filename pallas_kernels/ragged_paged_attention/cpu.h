// Causal attention of a step's queries over paged keys and values.
#pragma once

#include <cstdint>

#include "native/dtype.h"

namespace fastgen {

// Axes as in work.py: T tokens, R rows, P pages of a row, N pages, K kv heads, S slots, D numbers.
struct AttentionArgs {
  const void* q;  // [T, H, D]
  void* out;      // [T, H, D] of q_dtype; tokens of no row aren't touched
  DType q_dtype;  // float32 or bfloat16
  int64_t num_heads;
  int64_t head_dim;  // a multiple of 8

  const void* k_pages;  // [N, K, S, D]
  const void* v_pages;
  DType kv_dtype;
  int64_t num_kv_heads;  // divides num_heads
  int64_t page_size;

  const int32_t* query_start;   // [R]
  const int32_t* query_len;     // [R]
  const int32_t* kv_len;        // [R]
  const int32_t* block_tables;  // [R, P]
  int64_t pages_per_row;
  int64_t num_rows;    // those in use
  int64_t first_page;  // added to every page id

  const float* sinks;     // [H] or null
  const float* k_scales;  // [K] or null
  const float* v_scales;  // [K] or null
  const float* cos;       // [T, rotary_half] or null: the queries come rotated
  const float* sin;
  int64_t rotary_half;

  float scale;
  int64_t window;  // 0: none
  float softcap;   // 0: none
};

void attention(const AttentionArgs& args);

}  // namespace fastgen
