// What happens to sums on their way to the results: scale, gate, residual, rounding.
#pragma once

#include "linear/rows.h"

namespace fastgen {

FASTGEN_INLINE Vec silu(Vec value) { return value / (exp(-value) + 1.0f); }

FASTGEN_INLINE Vec scaled(const LinearArgs& args, int index, int64_t column, Vec sums) {
  const Matrix& matrix = args.matrices[index];
  if (matrix.format != WeightFormat::kInt8) return sums;
  const Vec scale = load<Vec>(static_cast<const float*>(matrix.scales) + column);
  return sums * (args.rounds_rows ? scale : scale * Int8Format::kUnit);
}

FASTGEN_INLINE void store_as(void* to, DType dtype, int64_t i, Vec value) {
  if (dtype == DType::kFloat32) {
    store(static_cast<float*>(to) + i, value);
  } else {
    store(static_cast<uint16_t*>(to) + i, round_bf16(value));
  }
}

inline void store_as(void* to, DType dtype, int64_t i, float value) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(to)[i] = value;
  } else {
    static_cast<uint16_t*>(to)[i] = round_bf16(value);
  }
}

// Writes the columns of one panel: `sums` lie `width` apart from row to row. With a gate, `others`
// are the sums of the second matrix.
inline void finish(const LinearArgs& args, int index, int64_t panel, int64_t first_row,
                   int64_t num_rows, const float* sums, const float* others, int64_t width) {
  const int64_t N = args.matrices[index].out_features;
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int v = 0; v < kPanelVecs; ++v) {
      const int64_t column = panel * kPanel + v * kLanes, lane = r * width + v * kLanes;
      const int64_t at = (first_row + r) * N + column;
      const int64_t count = N - column < kLanes ? N - column : kLanes;
      Vec y = scaled(args, index, column, load<Vec>(sums + lane));
      if (args.gated) y = silu(y) * scaled(args, 1, column, load<Vec>(others + lane));
      if (count == kLanes) {
        if (args.residual) y = y + load_as_float(args.residual, args.x_dtype, at);
        store_as(args.outs[index], args.out_dtype, at, y);
        continue;
      }
      for (int64_t c = 0; c < count; ++c) {
        const float residual =
            args.residual ? read_as_float(args.residual, args.x_dtype, at + c) : 0.0f;
        store_as(args.outs[index], args.out_dtype, at + c, y[c] + residual);
      }
    }
  }
}

}  // namespace fastgen
