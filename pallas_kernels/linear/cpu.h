// Products of a few to many rows with one layer's packed weights.
#pragma once

#include <cstdint>

#include "native/dtype.h"

namespace fastgen {

// How a matrix is stored; linear/format.py describes each.
enum class WeightFormat : int32_t { kFloat32, kBfloat16, kInt8, kQ8_0, kQ4_0, kQ4_1 };

// Output features of a panel: the unit in which weights are packed.
inline constexpr int64_t kPanel = 16;

// One layer's matrix.
struct Matrix {
  WeightFormat format;
  const void* codes;
  const void* scales;  // null where the format has none
  const void* mins;
  int64_t in_features;
  int64_t out_features;
};

inline constexpr int kMaxMatrices = 3;

struct LinearArgs {
  const void* x;  // [rows, in_features]
  DType x_dtype;
  int64_t num_rows;  // those in use
  int64_t in_features;

  const void* norm_weight;  // [in_features] or null; the rows are normalized with it first
  DType norm_dtype;
  float norm_epsilon;

  const void* residual;  // [rows, out_features] of x_dtype or null; added to the one product
  bool gated;            // one result: silu(x @ first) * (x @ second)

  Matrix matrices[kMaxMatrices];
  int num_matrices;
  bool rounds_rows;  // to int8 with a scale for each 16 features, before products with codes
  void* outs[kMaxMatrices];  // [rows, out_features] each
  DType out_dtype;
};

void linear(const LinearArgs& args);

// Whether a call has products of rounded rows; those are computed by the function below.
bool is_for_codes(const LinearArgs& args);
void linear_codes(const LinearArgs& args);

}  // namespace fastgen
