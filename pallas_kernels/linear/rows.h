// The rows of a product: widened, normalized, and put in the order in which kernels read them.
#pragma once

#include <algorithm>
#include <cmath>

#include "linear/micro_kernel.h"
#include "native/numbers.h"

namespace fastgen {

// Blocks of so many rows: few of them where one block costs as much whether it is full or not.
inline int64_t num_row_blocks(int64_t rows) {
  if (rows >= kUnpackFrom) return (rows + kMaxRows - 1) / kMaxRows;
  return std::max((rows + kMaxDecodingRows - 1) / kMaxDecodingRows,
                  (rows + 1) / kBestDecodingRows);
}

// The rows of a call in blocks of nearly equal height, none above kMaxRows, and where they lie in
// memory: plain, with each feature divided as 4-bit codes need it, and as sums over groups; each of
// these only where a matrix wants it. A block is [features][height], its features padded with zeros
// to whole words of every format.
class RowBlocks {
 public:
  explicit RowBlocks(const LinearArgs& args)
      : num_rows_(args.num_rows),
        count_(num_row_blocks(args.num_rows)),
        depth_((args.in_features + 3) / 4 * 4),
        groups_((args.in_features + kGroup - 1) / kGroup) {
    for (int i = 0; i < args.num_matrices; ++i) {
      with_format(args.matrices[i].format, [&](auto format) {
        (decltype(format)::kNibbles ? has_nibbles_ : has_plain_) = true;
      });
    }
  }

  int64_t num_rows() const { return num_rows_; }
  int64_t count() const { return count_; }
  int64_t depth() const { return depth_; }
  int64_t groups() const { return groups_; }
  bool has_plain() const { return has_plain_; }
  bool has_nibbles() const { return has_nibbles_; }
  int64_t first_row(int64_t block) const { return block * num_rows_ / count_; }
  int height(int64_t block) const {
    return static_cast<int>(first_row(block + 1) - first_row(block));
  }

  int64_t size() const { return num_rows_ * (2 * depth_ + groups_); }
  void use(float* memory) { memory_ = memory; }
  float* plain(int64_t block) const { return memory_ + first_row(block) * depth_; }
  float* nibbles(int64_t block) const { return plain(block) + num_rows_ * depth_; }
  float* group_sums(int64_t block) const {
    return memory_ + 2 * num_rows_ * depth_ + first_row(block) * groups_;
  }

  // A block from feature `start` on, as a format wants it.
  template <typename Format>
  Rows rows(int64_t block, int64_t start) const {
    const int64_t rows = height(block);
    return {(Format::kNibbles ? nibbles(block) : plain(block)) + start * rows,
            group_sums(block) + start / kGroup * rows};
  }

 private:
  int64_t num_rows_, count_, depth_, groups_;
  bool has_plain_ = false, has_nibbles_ = false;
  float* memory_ = nullptr;
};

FASTGEN_INLINE Vec load_as_float(const void* from, DType dtype, int64_t i) {
  return dtype == DType::kFloat32 ? load<Vec>(static_cast<const float*>(from) + i)
                                  : load_bf16(static_cast<const uint16_t*>(from) + i);
}

inline float read_as_float(const void* from, DType dtype, int64_t i) {
  return dtype == DType::kFloat32 ? static_cast<const float*>(from)[i]
                                  : widen_bf16(static_cast<const uint16_t*>(from)[i]);
}

template <typename T>
FASTGEN_INLINE T rounded_as(DType dtype, T value) {
  return dtype == DType::kFloat32 ? value : widen_bf16(round_bf16(value));
}

// RMSNorm in place; what it gives is rounded to the rows' own type.
inline void normalize(const LinearArgs& args, float* line) {
  const int64_t K = args.in_features;
  const DType dtype = args.x_dtype;
  Vec partial[4] = {};
  float squares = 0;
  int64_t k = 0;
  for (; k + 4 * kLanes <= K; k += 4 * kLanes) {
    FASTGEN_UNROLL for (int i = 0; i < 4; ++i) {
      const Vec value = load<Vec>(line + k + i * kLanes);
      partial[i] = fma(value, value, partial[i]);
    }
  }
  for (; k < K; ++k) squares += line[k] * line[k];
  squares += sum((partial[0] + partial[1]) + (partial[2] + partial[3]));
  const float scale = 1 / std::sqrt(squares / K + args.norm_epsilon);
  for (k = 0; k + kLanes <= K; k += kLanes) {
    const Vec weight = rounded_as(dtype, load_as_float(args.norm_weight, args.norm_dtype, k));
    const Vec unit = rounded_as(dtype, load<Vec>(line + k) * scale);
    store(line + k, rounded_as(dtype, unit * weight));
  }
  for (; k < K; ++k) {
    const float weight = rounded_as(dtype, read_as_float(args.norm_weight, args.norm_dtype, k));
    line[k] = rounded_as(dtype, rounded_as(dtype, line[k] * scale) * weight);
  }
}

// A row in float32, normalized, with zeros from its end to `depth`.
inline void read_row(const LinearArgs& args, int64_t row, int64_t depth, float* line) {
  widen(args.x, args.x_dtype, row * args.in_features, args.in_features, line);
  if (args.norm_weight != nullptr) normalize(args, line);
  for (int64_t k = args.in_features; k < depth; ++k) line[k] = 0;
}

template <int kHeight>
void interleave(const float* lines, int64_t depth, float* to) {
  for (int64_t k = 0; k < depth; ++k) {
    FASTGEN_UNROLL for (int r = 0; r < kHeight; ++r) to[k * kHeight + r] = lines[r * depth + k];
  }
}

template <int kHeight>
void interleave_nibbles(const float* lines, int64_t depth, float* to) {
  for (int64_t first = 0; first < depth; first += 8) {
    FASTGEN_UNROLL for (int j = 0; j < 8; ++j) {
      FASTGEN_UNROLL for (int r = 0; r < kHeight; ++r) {
        to[(first + j) * kHeight + r] = lines[r * depth + first + j] * kNibbleUnits[j];
      }
    }
  }
}

inline float group_sum(const float* line) {
  Vec total = load<Vec>(line);
  FASTGEN_UNROLL for (int i = kLanes; i < kGroup; i += kLanes) total += load<Vec>(line + i);
  return sum(total);
}

// One block, by way of `lines` [kMaxRows][depth].
inline void pack_block(const LinearArgs& args, const RowBlocks& blocks, int64_t block,
                       float* lines) {
  const int height = blocks.height(block);
  const int64_t depth = blocks.depth();
  for (int r = 0; r < height; ++r) {
    read_row(args, blocks.first_row(block) + r, depth, lines + r * depth);
  }
  with_height(height, [&](auto constant) {
    constexpr int kHeight = decltype(constant)::value;
    if (blocks.has_plain()) interleave<kHeight>(lines, depth, blocks.plain(block));
    if (!blocks.has_nibbles()) return;
    interleave_nibbles<kHeight>(lines, depth, blocks.nibbles(block));
    float* sums = blocks.group_sums(block);
    for (int64_t g = 0; g < blocks.groups(); ++g) {
      for (int r = 0; r < kHeight; ++r) {
        sums[g * kHeight + r] = group_sum(lines + r * depth + g * kGroup);
      }
    }
  });
}

}  // namespace fastgen
