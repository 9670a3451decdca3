// Prompt chunks: a tile of queries of all heads of a group against blocks of keys.
//
// The tile's rows (queries times heads) lie in the lanes of vectors, so scores, softmax and sums
// need nothing across lanes, and keys and values are broadcast from where they are: nothing but the
// queries and the results is ever transposed.
#pragma once

#include <cmath>

#include "ragged_paged_attention/cpu_pages.h"

namespace fastgen::paged {

inline constexpr int kBandVecs = 3;  // 3 vectors times 4 sums is what 16 registers have room for
inline constexpr int kBand = kBandVecs * kLanes;  // rows that are computed together
inline constexpr int64_t kTileRows = 96;         // a multiple of kBand
inline constexpr int64_t kTileKeyFloats = 4096;  // numbers of a block of keys: 16 KiB of L1

struct TileScratch {
  Scratch queries, scores, seen, keys, values;
  float top[kTileRows];
  float total[kTileRows];
  int32_t position[kTileRows];
};

// Queries [first_query, first_query + num_queries) of a row, for one kv head.
struct Tile {
  Keys keys;
  int64_t first_query;
  int64_t num_queries;

  int64_t group() const { return keys.args.num_heads / keys.args.num_kv_heads; }
  int64_t num_rows() const { return num_queries * group(); }
  int64_t position() const {
    return keys.length() - keys.args.query_len[keys.row] + first_query;
  }
  int64_t token(int64_t row) const {
    return keys.args.query_start[keys.row] + first_query + row / group();
  }
  int64_t head(int64_t row) const { return keys.head * group() + row % group(); }
};

// Queries of a tile for a group of so many heads.
inline int64_t tile_queries(int64_t group) { return std::max<int64_t>(1, kTileRows / group); }

// Sums over `depth`: to[i][lane] for kCount rows i of `a`, whose numbers are broadcast, and the
// lanes of `b`. Where `fading` isn't null, to[i] times fading is added.
template <int kVecs, int kCount>
FASTGEN_INLINE void multiply(const float* a, int64_t a_row, int64_t a_depth, const float* b,
                             int64_t depth, const Vec* fading, float* to) {
  Vec sums[kCount][kVecs] = {};
  if (fading != nullptr) {
    FASTGEN_UNROLL for (int i = 0; i < kCount; ++i) {
      FASTGEN_UNROLL for (int v = 0; v < kVecs; ++v) {
        sums[i][v] = load<Vec>(to + i * kBand + v * kLanes) * fading[v];
      }
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec lanes[kVecs];
    FASTGEN_UNROLL for (int v = 0; v < kVecs; ++v) {
      lanes[v] = load<Vec>(b + k * kBand + v * kLanes);
    }
    FASTGEN_UNROLL for (int i = 0; i < kCount; ++i) {
      const Vec number = broadcast(a[i * a_row + k * a_depth]);
      FASTGEN_UNROLL for (int v = 0; v < kVecs; ++v) {
        sums[i][v] = fma(number, lanes[v], sums[i][v]);
      }
    }
  }
  FASTGEN_UNROLL for (int i = 0; i < kCount; ++i) {
    FASTGEN_UNROLL for (int v = 0; v < kVecs; ++v) {
      store(to + i * kBand + v * kLanes, sums[i][v]);
    }
  }
}

// The widened keys and values of a block.
struct Block {
  int64_t first;   // position of the first key
  int64_t count;   // keys
  int64_t padded;  // a multiple of 8; the keys beyond count are zeros
  const float* keys;
  const float* values;
  bool is_masked;  // not every query sees every key
};

// Scores of a band to weights, in place; `fading` is what the sums so far are multiplied by.
template <int kVecs>
void weigh_band(const AttentionArgs& args, const Block& block, float* scores,
                const int32_t* position, float* top, float* total, Vec* fading) {
  FASTGEN_UNROLL for (int v = 0; v < kVecs; ++v) {
    float* column = scores + v * kLanes;
    const Vec old_top = load<Vec>(top + v * kLanes);
    const VecI last = load<VecI>(position + v * kLanes);
    const Vec hidden = broadcast(-INFINITY);
    const int32_t window = static_cast<int32_t>(args.window);
    Vec new_top = old_top;
    for (int64_t i = 0; i < block.count; ++i) {
      Vec score = load<Vec>(column + i * kBand);
      if (args.softcap != 0) score = cap(score, args.softcap);
      if (block.is_masked) {
        const int32_t key = static_cast<int32_t>(block.first + i);
        score = last < key ? hidden : score;
        if (args.window != 0) score = last - window >= key ? hidden : score;
      }
      if (block.is_masked || args.softcap != 0) store(column + i * kBand, score);
      new_top = max(new_top, score);
    }
    Vec sums = {};
    for (int64_t i = 0; i < block.count; ++i) {
      const Vec weight = exp(load<Vec>(column + i * kBand) - new_top);
      store(column + i * kBand, weight);
      sums += weight;
    }
    fading[v] = exp(old_top - new_top);
    store(top + v * kLanes, new_top);
    store(total + v * kLanes, load<Vec>(total + v * kLanes) * fading[v] + sums);
  }
}

// A block of keys for one band of kVecs vectors of rows.
template <int kVecs>
void attend_band(const AttentionArgs& args, const Block& block, int64_t band,
                 TileScratch& scratch) {
  constexpr int kCount = kVecs == 1 ? 8 : 4;
  const int64_t dim = args.head_dim;
  const float* queries = scratch.queries.floats(0) + band * dim * kBand;
  float* seen = scratch.seen.floats(0) + band * dim * kBand;
  float* scores = scratch.scores.floats(0);
  for (int64_t key = 0; key < block.padded; key += kCount) {
    multiply<kVecs, kCount>(block.keys + key * dim, dim, 1, queries, dim, nullptr,
                            scores + key * kBand);
  }
  Vec fading[kVecs];
  weigh_band<kVecs>(args, block, scores, scratch.position + band * kBand,
                    scratch.top + band * kBand, scratch.total + band * kBand, fading);
  for (int64_t i = 0; i < dim; i += kCount) {
    multiply<kVecs, kCount>(block.values + i, 1, dim, scores, block.count, fading,
                            seen + i * kBand);
  }
}

// Queries into the lanes of their bands; lanes beyond the last row see what its query sees.
inline void begin_tile(const Tile& tile, TileScratch& scratch) {
  const AttentionArgs& args = tile.keys.args;
  const int64_t dim = args.head_dim, num_bands = (tile.num_rows() + kBand - 1) / kBand;
  float* queries = scratch.queries.floats(num_bands * dim * kBand);
  std::fill_n(queries, num_bands * dim * kBand, 0.0f);
  std::fill_n(scratch.seen.floats(num_bands * dim * kBand), num_bands * dim * kBand, 0.0f);
  const float scale = score_scale(args, tile.keys.head);
  float query[kMaxHeadDim];
  for (int64_t row = 0; row < num_bands * kBand; ++row) {
    const int64_t of = std::min(row, tile.num_rows() - 1);
    scratch.top[row] = kMasked;
    scratch.total[row] = 0;
    scratch.position[row] = static_cast<int32_t>(tile.position() + of / tile.group());
    if (row != of) continue;
    load_query(args, tile.token(row), tile.head(row), scale, query);
    float* to = queries + row / kBand * dim * kBand + row % kBand;
    for (int64_t i = 0; i < dim; ++i) to[i * kBand] = query[i];
  }
}

inline void end_tile(const Tile& tile, TileScratch& scratch) {
  const AttentionArgs& args = tile.keys.args;
  const int64_t dim = args.head_dim;
  for (int64_t row = 0; row < tile.num_rows(); ++row) {
    const float* seen = scratch.seen.floats(0) + row / kBand * dim * kBand + row % kBand;
    float total = scratch.total[row], factor = 1;
    if (args.sinks != nullptr) {
      const float sink = args.sinks[tile.head(row)];
      const float top = std::max(scratch.top[row], sink);
      factor = std::exp(scratch.top[row] - top);
      total = total * factor + std::exp(sink - top);
    }
    if (args.v_scales != nullptr) factor *= args.v_scales[tile.keys.head];
    factor /= total;
    const int64_t to = (tile.token(row) * args.num_heads + tile.head(row)) * dim;
    float result[kMaxHeadDim];
    for (int64_t i = 0; i < dim; ++i) result[i] = seen[i * kBand] * factor;
    narrow(result, dim, args.q_dtype, to, args.out);
  }
}

inline void widen_block(const Keys& keys, const void* pages, const Block& block, float* to) {
  const int64_t dim = keys.args.head_dim;
  keys.each_stretch(block.first, block.first + block.count,
                    [&](int64_t index, int64_t offset, int64_t length) {
                      widen(pages, keys.args.kv_dtype, offset, length * dim, to + index * dim);
                    });
  std::fill(to + block.count * dim, to + block.padded * dim, 0.0f);
}

inline void attend_tile(const Tile& tile, TileScratch& scratch) {
  const AttentionArgs& args = tile.keys.args;
  const int64_t dim = args.head_dim, position = tile.position();
  const int64_t block_keys = std::max<int64_t>(8, kTileKeyFloats / dim / 8 * 8);
  const int64_t end = position + tile.num_queries;
  const int64_t num_vecs = (tile.num_rows() + kLanes - 1) / kLanes;
  begin_tile(tile, scratch);
  float* keys = scratch.keys.floats(block_keys * dim);
  float* values = scratch.values.floats(block_keys * dim);
  scratch.scores.floats(block_keys * kBand);
  for (int64_t first = first_seen(args, position); first < end; first += block_keys) {
    const int64_t count = std::min(block_keys, end - first);
    const bool is_masked = first + count - 1 > position || first < first_seen(args, end - 1);
    const Block block = {first, count, round_up(count, 8), keys, values, is_masked};
    widen_block(tile.keys, args.k_pages, block, keys);
    widen_block(tile.keys, args.v_pages, block, values);
    for (int64_t vec = 0; vec < num_vecs; vec += kBandVecs) {
      const int64_t band = vec / kBandVecs;
      // No query of the band sees more than its last one.
      const int64_t last = scratch.position[band * kBand + kBand - 1];
      Block part = block;
      part.count = std::min(count, last + 1 - first);
      part.padded = round_up(part.count, 8);
      if (part.count <= 0) continue;
      if (num_vecs - vec >= 3) {
        attend_band<3>(args, part, band, scratch);
      } else if (num_vecs - vec == 2) {
        attend_band<2>(args, part, band, scratch);
      } else {
        attend_band<1>(args, part, band, scratch);
      }
    }
  }
  end_tile(tile, scratch);
}

}  // namespace fastgen::paged
