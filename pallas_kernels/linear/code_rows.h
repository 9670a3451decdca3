// The rows of a product in int8, each 16 input features with a scale of their own.
#pragma once

#include <limits>

#include "linear/code_kernel.h"
#include "linear/rows.h"

namespace fastgen {

// The rows of a call in blocks of nearly equal height, none above kMaxCodeRows, and where their
// codes lie in memory: four consecutive features to a word, or the even and the odd ones of eight,
// each of these only where a matrix wants it. Features are padded with zeros to whole groups.
class CodeBlocks {
 public:
  explicit CodeBlocks(const LinearArgs& args)
      : num_rows_(args.num_rows),
        count_((args.num_rows + kMaxCodeRows - 1) / kMaxCodeRows),
        groups_((args.in_features + kGroup - 1) / kGroup) {
    for (int i = 0; i < args.num_matrices; ++i) {
      with_format(args.matrices[i].format, [&](auto format) {
        (decltype(format)::kNibbles ? has_nibbles_ : has_plain_) = true;
      });
    }
  }

  int64_t count() const { return count_; }
  int64_t groups() const { return groups_; }
  int64_t depth() const { return groups_ * kGroup; }
  bool has_plain() const { return has_plain_; }
  bool has_nibbles() const { return has_nibbles_; }
  int64_t first_row(int64_t block) const { return block * num_rows_ / count_; }
  int height(int64_t block) const {
    return static_cast<int>(first_row(block + 1) - first_row(block));
  }

  // In numbers of 32 bits.
  int64_t size() const {
    return num_rows_ * groups_ * (2 * kGroup + static_cast<int64_t>(sizeof(RowGroup))) / 4;
  }
  void use(float* memory) { memory_ = memory; }
  uint32_t* plain(int64_t block) const {
    return reinterpret_cast<uint32_t*>(memory_) + first_row(block) * groups_ * (kGroup / 4);
  }
  uint32_t* nibbles(int64_t block) const { return plain(block) + num_rows_ * groups_ * kGroup / 4; }
  RowGroup* groups(int64_t block) const {
    return reinterpret_cast<RowGroup*>(memory_ + num_rows_ * groups_ * kGroup / 2) +
           first_row(block) * groups_;
  }

  // A block from group `start` on, as a format wants it.
  template <typename Format>
  CodeRows rows(int64_t block, int64_t start) const {
    const int64_t rows = height(block);
    return {(Format::kNibbles ? nibbles(block) : plain(block)) + start * (kGroup / 4) * rows,
            groups(block) + start * rows};
  }

 private:
  int64_t num_rows_, count_, groups_;
  bool has_plain_ = false, has_nibbles_ = false;
  float* memory_ = nullptr;
};

// The largest magnitude of numbers that share a scale; NaN where one of them isn't finite.
inline float largest_of(const float* numbers) {
  VecU largest = {};
  FASTGEN_UNROLL for (int i = 0; i < kRowGroup; i += kLanes) {
    // The order of floating point numbers without their sign is that of their bits.
    const VecU bits = load<VecU>(numbers + i) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  uint32_t most = 0;
  FASTGEN_UNROLL for (int lane = 0; lane < kLanes; ++lane) {
    most = largest[lane] > most ? largest[lane] : most;
  }
  float result;
  std::memcpy(&result, &most, sizeof result);
  return result + (result - result);
}

// The codes of numbers that share a scale, to the nearest, ties to even; returns the sum of codes.
inline int32_t round_to_codes(const float* numbers, float* scale, int8_t* codes) {
  using VecI8 = int8_t __attribute__((vector_size(kLanes)));
  // Added to a small number, it leaves the nearest integer in the lowest bits.
  constexpr float kRounder = 12582912.0f;
  *scale = largest_of(numbers) * (1.0f / 127.0f);
  if (*scale < std::numeric_limits<float>::min()) *scale = 0.0f;
  const Vec inverse = broadcast(*scale == 0.0f ? 0.0f : 1.0f / *scale);
  const Vec most = broadcast(127.0f);
  VecI sums = {};
  FASTGEN_UNROLL for (int i = 0; i < kRowGroup; i += kLanes) {
    Vec number = load<Vec>(numbers + i) * inverse;
    number = number > most ? most : number < -most ? -most : number;
    const VecI code = (VecI)(number + kRounder) - (VecI)broadcast(kRounder);
    sums += code;
    store(codes + i, __builtin_convertvector(code, VecI8));
  }
  int32_t sum = 0;
  FASTGEN_UNROLL for (int lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  return sum;
}

inline RowGroup round_group(const float* numbers, int8_t* codes) {
  RowGroup group = {};
  for (int half = 0; half < kHalves; ++half) {
    const int64_t at = half * kRowGroup;
    group.code_sums[half] = round_to_codes(numbers + at, &group.scales[half], codes + at);
    group.sum += group.scales[half] * static_cast<float>(group.code_sums[half]);
  }
  return group;
}

// The even bytes of eight.
inline uint32_t even_bytes(uint64_t bytes) {
  bytes &= 0x00ff00ff00ff00ffu;
  bytes = (bytes | (bytes >> 8)) & 0x0000ffff0000ffffu;
  return static_cast<uint32_t>(bytes | (bytes >> 16));
}

inline void place_words(const int8_t* codes, int64_t depth, int64_t stride, uint32_t* to) {
  for (int64_t word = 0; word < depth / 4; ++word) {
    std::memcpy(to + word * stride, codes + 4 * word, 4);
  }
}

inline void place_nibbles(const int8_t* codes, int64_t depth, int64_t stride, uint32_t* to) {
  for (int64_t word = 0; word < depth / 8; ++word) {
    uint64_t bytes;
    std::memcpy(&bytes, codes + 8 * word, 8);
    to[2 * word * stride] = even_bytes(bytes);
    to[(2 * word + 1) * stride] = even_bytes(bytes >> 8);
  }
}

// One block, by way of `scratch`: a row in float32, and its codes.
inline void round_block(const LinearArgs& args, const CodeBlocks& blocks, int64_t block,
                        float* scratch) {
  const int height = blocks.height(block);
  const int64_t depth = blocks.depth();
  auto* codes = reinterpret_cast<int8_t*>(scratch + depth);
  for (int r = 0; r < height; ++r) {
    read_row(args, blocks.first_row(block) + r, depth, scratch);
    for (int64_t g = 0; g < blocks.groups(); ++g) {
      blocks.groups(block)[g * height + r] = round_group(scratch + g * kGroup, codes + g * kGroup);
    }
    if (blocks.has_plain()) place_words(codes, depth, height, blocks.plain(block) + r);
    if (blocks.has_nibbles()) place_nibbles(codes, depth, height, blocks.nibbles(block) + r);
  }
}

}  // namespace fastgen
