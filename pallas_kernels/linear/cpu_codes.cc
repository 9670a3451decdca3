// Products of rows in int8 with the codes of quantized weights.
#include <algorithm>

#include "linear/code_rows.h"
#include "linear/epilogue.h"
#include "native/scratch.h"
#include "native/thread_pool.h"

namespace fastgen {
namespace {

// Input features whose codes stay in the first-level cache while all rows pass.
constexpr int64_t kCodeDepth = 512;
// Rows that share one reading of a panel: their codes stay in the second-level cache.
constexpr int64_t kRowsAtOnce = 240;
// Bytes of weights that a thread takes at a time: enough to stream, few enough to share out.
constexpr int64_t kPieceBytes = 64 << 10;
constexpr int kAllThreads = 1 << 10;

thread_local Scratch rows_scratch;
thread_local Scratch own_scratch;
thread_local Scratch gate_scratch;

template <typename Function>
void with_codes(WeightFormat format, Function function) {
  with_format(format, [&](auto type) {
    if constexpr (kHasCodes<decltype(type)>) function(type);
  });
}

bool has_codes(const Matrix& matrix) {
  bool result = false;
  with_codes(matrix.format, [&](auto) { result = true; });
  return result;
}

int64_t num_panels(const Matrix& matrix) { return (matrix.out_features + kPanel - 1) / kPanel; }

// The matrices whose results differ: a gated pair has one.
int num_results(const LinearArgs& args) { return args.gated ? 1 : args.num_matrices; }

struct BlockRange {
  const CodeBlocks* blocks;
  int64_t first, last;
  int64_t first_row() const { return blocks->first_row(first); }
  int64_t num_rows() const { return blocks->first_row(last) - first_row(); }
};

// Calls `function` with a height from 1 to kMaxCodeRows as a constant.
template <typename Function>
void with_code_rows(int height, Function function) {
  static_for<kMaxCodeRows>([&](auto index) {
    constexpr int kHeight = decltype(index)::value + 1;
    if (height == kHeight) function(std::integral_constant<int, kHeight>{});
  });
}

// sums [rows][kPanel] += rows times a part of a panel that begins with group `start`. The first
// block brings the part into the cache.
template <typename Format>
void multiply_blocks(const BlockRange& range, int64_t start, int64_t words, const Panel& panel,
                     float* sums) {
  for (int64_t b = range.first; b < range.last; ++b) {
    float* to = sums + (range.blocks->first_row(b) - range.first_row()) * kPanel;
    const CodeRows rows = range.blocks->rows<Format>(b, start);
    with_code_rows(range.blocks->height(b), [&](auto height) {
      constexpr int kRows = decltype(height)::value;
      if (b == range.first) {
        multiply_codes<Format, kRows, true>(rows, panel, words, start > 0, to);
      } else {
        multiply_codes<Format, kRows, false>(rows, panel, words, start > 0, to);
      }
    });
  }
}

template <typename Format>
void multiply_panel(const Matrix& matrix, int64_t index, const BlockRange& range, float* sums) {
  const int64_t K = matrix.in_features;
  Panel panel = panel_of<Format>(matrix, index);
  for (int64_t start = 0; start < K; start += kCodeDepth) {
    const int64_t features = std::min(kCodeDepth, K - start);
    const int64_t words = num_words<Format>(features);
    multiply_blocks<Format>(range, start / kGroup, words, panel, sums);
    panel.words += words * kPanel;
    panel.scales += features / kGroup * kPanel;
    panel.mins += features / kGroup * kPanel;
  }
}

void multiply_result(const LinearArgs& args, int index, int64_t panel, const BlockRange& range) {
  const int64_t size = range.num_rows() * kPanel;
  float* first = own_scratch.floats(2 * size);
  float* sums[2] = {first, first + size};
  for (int i = 0; i <= (args.gated ? 1 : 0); ++i) {
    const Matrix& matrix = args.matrices[index + i];
    with_codes(matrix.format, [&](auto format) {
      multiply_panel<decltype(format)>(matrix, panel, range, sums[i]);
    });
  }
  finish(args, index, panel, range.first_row(), range.num_rows(), sums[0], sums[1], kPanel);
}

int64_t panel_bytes(const Matrix& matrix) {
  int64_t bytes = 0;
  with_format(matrix.format, [&](auto format) {
    bytes = num_words<decltype(format)>(matrix.in_features) * kPanel * 4;
  });
  return bytes;
}

void multiply_all(const LinearArgs& args) {
  CodeBlocks blocks(args);
  blocks.use(rows_scratch.floats(blocks.size()));
  int64_t panels = 0;
  for (int i = 0; i < num_results(args); ++i) panels += num_panels(args.matrices[i]);
  ThreadPool& pool = ThreadPool::instance();
  const int64_t threads = pool.size();
  const int64_t at_once = kRowsAtOnce / kMaxCodeRows;
  // More ranges than the caches ask for where there are too few panels for the threads.
  const int64_t ranges =
      std::max((blocks.count() + at_once - 1) / at_once,
               std::min((4 * threads + panels - 1) / panels, blocks.count() / 4));
  const int64_t largest = std::max<int64_t>(1, kPieceBytes / panel_bytes(args.matrices[0]));
  const bool is_one_block = blocks.count() == 1;
  // Too little to share out: waiting for each other takes longer.
  if (is_one_block) round_block(args, blocks, 0, own_scratch.floats(2 * blocks.depth()));
  WorkQueue rounding(is_one_block ? 0 : blocks.count());
  ShrinkingQueue products(ranges * panels, largest, 2 * threads);
  pool.run(kAllThreads, [&](int, Team& team) {
    float* scratch = own_scratch.floats(2 * blocks.depth());
    for (int64_t b, end; rounding.next(&b, &end);) round_block(args, blocks, b, scratch);
    if (!is_one_block) team.barrier();
    for (int64_t item, end; products.next(&item, &end);) {
      for (; item < end; ++item) {
        const int64_t r = item / panels;
        const BlockRange range = {&blocks, r * blocks.count() / ranges,
                                  (r + 1) * blocks.count() / ranges};
        int64_t panel = item % panels;
        int index = 0;
        while (panel >= num_panels(args.matrices[index])) {
          panel -= num_panels(args.matrices[index++]);
        }
        multiply_result(args, index, panel, range);
      }
    }
  });
}

// The call without the matrices that `chosen` leaves out.
template <typename Choice>
LinearArgs part_of(const LinearArgs& args, Choice chosen) {
  LinearArgs part = args;
  part.num_matrices = 0;
  for (int i = 0; i < args.num_matrices; ++i) {
    if (!chosen(args.matrices[i])) continue;
    part.outs[part.num_matrices] = args.outs[i];
    part.matrices[part.num_matrices++] = args.matrices[i];
  }
  return part;
}

// A gated pair of which only one matrix has codes.
void multiply_mixed_pair(const LinearArgs& args) {
  const int64_t N = args.matrices[0].out_features, size = args.num_rows * N;
  float* products = gate_scratch.floats(2 * size);
  for (int i = 0; i < 2; ++i) {
    LinearArgs one = args;
    one.gated = false;
    one.num_matrices = 1;
    one.matrices[0] = args.matrices[i];
    one.outs[0] = products + i * size;
    one.out_dtype = DType::kFloat32;
    linear(one);
  }
  WorkQueue rows(args.num_rows);
  ThreadPool::instance().run(kAllThreads, [&](int, Team&) {
    for (int64_t row, end; rows.next(&row, &end);) {
      float* first = products + row * N;
      for (int64_t n = 0; n < N; n += kLanes) {
        alignas(kCacheLine) float lanes[2][kLanes] = {};
        const int64_t count = std::min<int64_t>(kLanes, N - n);
        for (int i = 0; i < 2; ++i) std::copy_n(first + i * size + n, count, lanes[i]);
        store(lanes[0], silu(load<Vec>(lanes[0])) * load<Vec>(lanes[1]));
        std::copy_n(lanes[0], count, first + n);
      }
      narrow(first, N, args.out_dtype, row * N, args.outs[0]);
    }
  });
}

}  // namespace

bool is_for_codes(const LinearArgs& args) {
  const Matrix* end = args.matrices + args.num_matrices;
  return args.rounds_rows && std::any_of(args.matrices, end, has_codes);
}

void linear_codes(const LinearArgs& args) {
  if (std::all_of(args.matrices, args.matrices + args.num_matrices, has_codes)) {
    multiply_all(args);
  } else if (args.gated) {
    multiply_mixed_pair(args);
  } else {
    linear(part_of(args, [](const Matrix& matrix) { return has_codes(matrix); }));
    linear(part_of(args, [](const Matrix& matrix) { return !has_codes(matrix); }));
  }
}

}  // namespace fastgen
