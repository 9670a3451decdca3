#include "linear/cpu.h"

#include <algorithm>
#include <type_traits>

#include "linear/epilogue.h"
#include "native/scratch.h"
#include "native/thread_pool.h"

namespace fastgen {
namespace {

// Bytes of a panel's part that stay in the first-level cache while all rows are multiplied with it.
constexpr int64_t kPartBytes = 20 << 10;
// Blocks of rows that go through a part together: what they read of x stays in the second-level
// cache.
constexpr int64_t kBlocksAtOnce = kLanes == 16 ? 20 : 40;
constexpr int64_t kRowsAtOnce = kBlocksAtOnce * kMaxRows;
// Bytes of weights that a thread takes at a time: enough to stream, few enough to share out.
constexpr int64_t kPieceBytes = 64 << 10;
constexpr int kAllThreads = 1 << 10;

thread_local Scratch rows_scratch;
thread_local Scratch own_scratch;

int64_t num_panels(const Matrix& matrix) { return (matrix.out_features + kPanel - 1) / kPanel; }

// The matrices whose results differ: a gated pair has one.
int num_results(const LinearArgs& args) { return args.gated ? 1 : args.num_matrices; }

// Panels that a few rows take at once, so that enough sums are under way.
constexpr int panels_at_once(int rows) {
  constexpr int kSums = kLanes == 4 ? 16 : 8;
  return std::max(1, std::min(4, kSums / (rows * kPanelVecs)));
}

// ---- A few rows: weights go from memory straight into registers. ----

// sums [rows][kPanels * kPanel] of the panels from `first` on.
template <typename Format, int kRows, int kPanels>
void stream_panels(const Matrix& matrix, int64_t first, const RowBlocks& blocks, float* sums) {
  Panel panels[kPanels];
  for (int p = 0; p < kPanels; ++p) panels[p] = panel_of<Format>(matrix, first + p);
  multiply<Format, kRows, kPanels, true>(blocks.rows<Format>(0, 0), panels,
                                         num_words<Format>(matrix.in_features), false, {}, sums);
}

template <int kRows>
void few_rows(const LinearArgs& args, int index, int64_t first, int64_t last,
              const RowBlocks& blocks) {
  constexpr int kPanels = panels_at_once(kRows), kPair = std::min(2, kPanels);
  alignas(kCacheLine) float sums[2][kRows * kPanels * kPanel];
  while (first < last) {
    const int64_t left = last - first;
    const int count = left >= kPanels ? kPanels : left >= kPair ? kPair : 1;
    for (int i = 0; i <= (args.gated ? 1 : 0); ++i) {
      const Matrix& matrix = args.matrices[index + i];
      with_format(matrix.format, [&](auto format) {
        using Format = decltype(format);
        if (count == 1) {
          stream_panels<Format, kRows, 1>(matrix, first, blocks, sums[i]);
        } else if (count == kPair) {
          stream_panels<Format, kRows, kPair>(matrix, first, blocks, sums[i]);
        } else {
          stream_panels<Format, kRows, kPanels>(matrix, first, blocks, sums[i]);
        }
      });
    }
    for (int p = 0; p < count; ++p) {
      finish(args, index, first + p, 0, kRows, sums[0] + p * kPanel, sums[1] + p * kPanel,
             count * kPanel);
    }
    first += count;
  }
}

// Panels are handed out in pairs.
int64_t num_pairs(const Matrix& matrix) { return (num_panels(matrix) + 1) / 2; }

int64_t panel_bytes(const Matrix& matrix) {
  int64_t bytes = 0;
  with_format(matrix.format, [&](auto format) {
    bytes = num_words<decltype(format)>(matrix.in_features) * kPanel * 4;
  });
  return bytes;
}

// The pairs [first, last) of all results, one result after another.
template <int kRows>
void few_rows_of_all(const LinearArgs& args, int64_t first, int64_t last,
                     const RowBlocks& blocks) {
  for (int i = 0; i < num_results(args) && first < last; ++i) {
    const int64_t pairs = num_pairs(args.matrices[i]);
    if (first < pairs) {
      const int64_t end = std::min(num_panels(args.matrices[i]), 2 * std::min(last, pairs));
      few_rows<kRows>(args, i, 2 * first, end, blocks);
    }
    first = std::max<int64_t>(0, first - pairs);
    last -= pairs;
  }
}

void multiply_few(const LinearArgs& args) {
  RowBlocks blocks(args);
  blocks.use(rows_scratch.floats(blocks.size()));
  pack_block(args, blocks, 0, own_scratch.floats(args.num_rows * blocks.depth()));
  int64_t pairs = 0;
  for (int i = 0; i < num_results(args); ++i) pairs += num_pairs(args.matrices[i]);
  ThreadPool& pool = ThreadPool::instance();
  const int64_t largest = std::max<int64_t>(2, kPieceBytes / 2 / panel_bytes(args.matrices[0]));
  ShrinkingQueue queue(pairs, largest, 2 * pool.size());
  pool.run(static_cast<int>(std::min<int64_t>(pairs, kAllThreads)), [&](int, Team&) {
    with_height(static_cast<int>(args.num_rows), [&](auto rows) {
      constexpr int kRows = decltype(rows)::value;
      if constexpr (kRows <= kMaxDecodingRows) {
        for (int64_t first, last; queue.next(&first, &last);) {
          few_rows_of_all<kRows>(args, first, last, blocks);
        }
      }
    });
  });
}

// ---- Many rows: a part of a panel comes into the cache once, for every block of rows. ----

struct RowRange {
  const RowBlocks* blocks;
  int64_t first, last;  // blocks of rows
  int64_t first_row() const { return blocks->first_row(first); }
  int64_t num_rows() const { return blocks->first_row(last) - first_row(); }
};

// sums [rows][kPanel] += x [features from `start` on] times so many words of a panel.
template <typename Format>
void multiply_blocks(const RowRange& range, int64_t start, int64_t words, const Panel& panel,
                     Ahead ahead, float* sums) {
  for (int64_t b = range.first; b < range.last; ++b) {
    with_height(range.blocks->height(b), [&](auto height) {
      multiply<Format, decltype(height)::value, 1, false>(
          range.blocks->rows<Format>(b, start), &panel, words, start > 0, ahead,
          sums + (range.blocks->first_row(b) - range.first_row()) * kPanel);
    });
    ahead.from += ahead.bytes_per_word * words;
  }
}

// Input features of a panel's part, as evenly as their groups allow.
int64_t part_depth(int64_t in_features, int64_t bytes_per_feature) {
  const int64_t parts = (in_features * bytes_per_feature + kPartBytes - 1) / kPartBytes;
  return ((in_features + parts - 1) / parts + kGroup - 1) / kGroup * kGroup;
}

// Multiplies a panel's codes as they are, or, where `Codes` is another format than `Format`, once
// they are unpacked.
template <typename Format, typename Codes>
void multiply_panel(const Matrix& matrix, int64_t index, const RowRange& range, float* codes,
                    float* sums) {
  const int64_t K = matrix.in_features;
  const int64_t depth = part_depth(K, kPanel * 4 / Codes::kPerWord);
  Panel panel = panel_of<Format>(matrix, index);
  for (int64_t start = 0; start < K; start += depth) {
    const int64_t features = std::min(depth, K - start), words = num_words<Format>(features);
    const int64_t used = num_words<Codes>(features);
    const int64_t bytes = words * 4 * kPanel, uses = used * (range.last - range.first);
    const Ahead ahead = {reinterpret_cast<const char*>(panel.words) + bytes, bytes / uses + 1};
    Panel part = panel;
    if constexpr (!std::is_same_v<Format, Codes>) {
      unpack<Format>(panel.words, words, codes);
      part.words = reinterpret_cast<const uint32_t*>(codes);
    }
    multiply_blocks<Codes>(range, start, used, part, ahead, sums);
    panel.words += words * kPanel;
    panel.scales += features / kGroup * kPanel;
    panel.mins += features / kGroup * kPanel;
  }
}

template <typename Format>
void multiply_panel_of(const Matrix& matrix, int64_t index, const RowRange& range, float* codes,
                       float* sums) {
  // Formats without groups are all alike once they are unpacked.
  using Codes = std::conditional_t<Format::kGrouped, Unpacked<Format>, Float32Format>;
  constexpr bool kIsCheap = Format::kPerWord <= 2;
  if constexpr (kIsCheap) {
    if (range.blocks->num_rows() < kUnpackFrom) {
      return multiply_panel<Format, Format>(matrix, index, range, codes, sums);
    }
  }
  multiply_panel<Format, Codes>(matrix, index, range, codes, sums);
}

void many_rows(const LinearArgs& args, int index, int64_t panel, const RowRange& range) {
  constexpr int64_t kCodes = kPartBytes / 4 + kGroup * kPanel;
  float* codes = own_scratch.floats(kCodes + 2 * kRowsAtOnce * kPanel);
  float* sums[2] = {codes + kCodes, codes + kCodes + kRowsAtOnce * kPanel};
  for (int i = 0; i <= (args.gated ? 1 : 0); ++i) {
    const Matrix& matrix = args.matrices[index + i];
    with_format(matrix.format, [&](auto format) {
      multiply_panel_of<decltype(format)>(matrix, panel, range, codes, sums[i]);
    });
  }
  finish(args, index, panel, range.first_row(), range.num_rows(), sums[0], sums[1], kPanel);
}

void multiply_many(const LinearArgs& args) {
  RowBlocks blocks(args);
  blocks.use(rows_scratch.floats(blocks.size()));
  int64_t pieces = 0;
  for (int i = 0; i < num_results(args); ++i) pieces += num_panels(args.matrices[i]);
  // More ranges than the caches ask for where there are too few panels for the threads.
  const int64_t wanted = (4 * ThreadPool::instance().size() + pieces - 1) / pieces;
  const int64_t ranges =
      std::max((blocks.count() + kBlocksAtOnce - 1) / kBlocksAtOnce,
               std::min(wanted, blocks.count() / 4));
  WorkQueue packing(blocks.count()), products(ranges * pieces);
  ThreadPool::instance().run(kAllThreads, [&](int, Team& team) {
    float* lines = own_scratch.floats(kMaxRows * blocks.depth());
    for (int64_t b, end; packing.next(&b, &end);) {
      pack_block(args, blocks, b, lines);
    }
    team.barrier();
    for (int64_t item, end; products.next(&item, &end);) {
      const int64_t r = item / pieces;
      const RowRange range = {&blocks, r * blocks.count() / ranges,
                              (r + 1) * blocks.count() / ranges};
      int64_t panel = item % pieces;
      int index = 0;
      while (panel >= num_panels(args.matrices[index])) panel -= num_panels(args.matrices[index++]);
      many_rows(args, index, panel, range);
    }
  });
}

}  // namespace

void linear(const LinearArgs& args) {
  if (args.num_rows <= 0) return;
  if (is_for_codes(args)) return linear_codes(args);
  if (args.num_rows <= kMaxDecodingRows) {
    multiply_few(args);
  } else {
    multiply_many(args);
  }
}

}  // namespace fastgen
