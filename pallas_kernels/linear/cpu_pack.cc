// Puts weights, as files hold them, into panels.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "linear/panel_format.h"
#include "native/thread_pool.h"

namespace fastgen {
namespace {

// What a line of a file is made of; the blocks are GGUF's.
enum class Encoding : int32_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1 };

bool is_block(Encoding encoding) { return encoding >= Encoding::kQ8_0; }

// Bytes of a block: a scale, a minimum for Q4_1, and 32 codes.
int64_t block_bytes(Encoding encoding) {
  return encoding == Encoding::kQ8_0 ? 34 : encoding == Encoding::kQ4_0 ? 18 : 20;
}

int64_t code_offset(Encoding encoding) { return encoding == Encoding::kQ4_1 ? 4 : 2; }

uint16_t read_u16(const uint8_t* from) {
  uint16_t value;
  std::memcpy(&value, from, 2);
  return value;
}

float widen_f16(uint16_t value) {
  alignas(64) uint16_t lanes[kLanes] = {value};
  return load_f16(lanes)[0];
}

bool is_finite_f16(uint16_t value) { return (value & 0x7c00u) != 0x7c00u; }

// The output features of one panel on their way from lines to words.
struct Line {
  std::vector<float> values;
  std::vector<uint32_t> words;
  std::vector<uint16_t> scales, mins;
  float scale = 0;  // of the whole line
};

// 32 codes of a block as numbers.
void block_codes(Encoding encoding, const uint8_t* codes, float* to) {
  if (encoding == Encoding::kQ8_0) {
    for (int i = 0; i < kGroup; ++i) to[i] = static_cast<int8_t>(codes[i]);
    return;
  }
  const int zero = encoding == Encoding::kQ4_0 ? 8 : 0;
  for (int i = 0; i < 16; ++i) {
    to[i] = static_cast<float>((codes[i] & 15) - zero);
    to[i + 16] = static_cast<float>((codes[i] >> 4) - zero);
  }
}

// A line's values in float32; whether what they are made of is finite.
bool widen_line(Encoding encoding, const uint8_t* from, int64_t K, float* values) {
  if (is_block(encoding)) {
    bool finite = true;
    for (int64_t g = 0; g < K / kGroup; ++g, from += block_bytes(encoding)) {
      float* to = values + g * kGroup;
      block_codes(encoding, from + code_offset(encoding), to);
      const float scale = widen_f16(read_u16(from));
      const float min = encoding == Encoding::kQ4_1 ? widen_f16(read_u16(from + 2)) : 0.0f;
      finite = finite && std::isfinite(scale) && std::isfinite(min);
      // Adding a minimum of 0 would turn -0 into 0.
      for (int i = 0; i < kGroup; ++i) to[i] *= scale;
      if (encoding != Encoding::kQ4_1) continue;
      for (int i = 0; i < kGroup; ++i) to[i] += min;
    }
    return finite;
  }
  if (encoding == Encoding::kF32) {
    std::memcpy(values, from, K * 4);
  } else {
    int64_t k = 0;
    for (; k + kLanes <= K; k += kLanes) {
      const uint8_t* at = from + 2 * k;
      store(values + k, encoding == Encoding::kF16 ? load_f16(at) : load_bf16(at));
    }
    for (; k < K; ++k) {
      const uint16_t value = read_u16(from + 2 * k);
      values[k] = encoding == Encoding::kF16 ? widen_f16(value) : widen_bf16(value);
    }
  }
  uint32_t largest = 0;
  for (int64_t k = 0; k < K; ++k) {
    uint32_t bits;
    std::memcpy(&bits, values + k, 4);
    largest = std::max(largest, bits & 0x7fffffffu);
  }
  return largest < 0x7f800000u;
}

// The halves of the words lie in the order of the values.
void words_of_bfloat16(const float* values, int64_t K, uint32_t* words) {
  auto* halves = reinterpret_cast<char*>(words);
  const auto put = [&](int64_t k, uint16_t half) { std::memcpy(halves + 2 * k, &half, 2); };
  int64_t k = 0;
  for (; k + kLanes <= K; k += kLanes) store(halves + 2 * k, round_bf16(load<Vec>(values + k)));
  for (; k < K; ++k) put(k, round_bf16(values[k]));
  if (K % 2) put(K, 0);
}

// Codes from -127 to 127, the nearest to value / scale; returns the scale.
float words_of_int8(const float* values, int64_t K, uint32_t* words) {
  float largest = 0;
  for (int64_t k = 0; k < K; ++k) largest = std::max(largest, std::fabs(values[k]));
  const float scale = largest / 127.0f, divisor = scale == 0 ? INFINITY : scale;
  auto* codes = reinterpret_cast<int8_t*>(words);
  for (int64_t k = 0; k < K; ++k) {
    const float code = std::nearbyint(values[k] / divisor);
    codes[k] = static_cast<int8_t>(std::min(127.0f, std::max(-127.0f, code)));
  }
  for (int64_t k = K; k % 4; ++k) codes[k] = 0;
  return scale;
}

// Eight bytes below 16 moved together into 32 bits.
uint32_t squeezed(uint64_t codes) {
  codes = (codes | codes >> 4) & 0x00ff00ff00ff00ffu;
  codes = (codes | codes >> 8) & 0x0000ffff0000ffffu;
  return static_cast<uint32_t>(codes | codes >> 16);
}

// The words of a line of blocks that keeps its format.
bool words_of_blocks(Encoding encoding, const uint8_t* from, int64_t K, Line* line) {
  bool finite = true;
  uint32_t* words = line->words.data();
  for (int64_t g = 0; g < K / kGroup; ++g, from += block_bytes(encoding)) {
    line->scales[g] = read_u16(from);
    finite = finite && is_finite_f16(line->scales[g]);
    if (encoding == Encoding::kQ4_1) {
      line->mins[g] = read_u16(from + 2);
      finite = finite && is_finite_f16(line->mins[g]);
    }
    const uint8_t* codes = from + code_offset(encoding);
    if (encoding == Encoding::kQ8_0) {
      std::memcpy(words + g * 8, codes, kGroup);
      continue;
    }
    for (int half = 0; half < 2; ++half) {
      uint64_t pairs;
      std::memcpy(&pairs, codes + 8 * half, 8);
      words[g * 4 + half] = squeezed(pairs & 0x0f0f0f0f0f0f0f0fu);
      words[g * 4 + 2 + half] = squeezed(pairs >> 4 & 0x0f0f0f0f0f0f0f0fu);
    }
  }
  return finite;
}

struct PackArgs {
  const uint8_t* lines;
  int64_t line_stride;
  const int64_t* order;  // which line each output feature comes from, or null: one after another
  int64_t count;         // output features
  int64_t in_features;
  Encoding encoding;
  WeightFormat format;
  uint32_t* words;  // of the first panel
  void* scales;
  uint16_t* mins;
};

int64_t words_in(WeightFormat format, int64_t K) {
  int64_t words = 0;
  with_format(format, [&](auto kind) { words = num_words<decltype(kind)>(K); });
  return words;
}

bool encode(const PackArgs& args, const uint8_t* from, Line* line) {
  const int64_t K = args.in_features;
  if (args.format >= WeightFormat::kQ8_0) return words_of_blocks(args.encoding, from, K, line);
  auto* words = line->words.data();
  if (args.format == WeightFormat::kFloat32) {
    return widen_line(args.encoding, from, K, reinterpret_cast<float*>(words));
  }
  const bool finite = widen_line(args.encoding, from, K, line->values.data());
  if (args.format == WeightFormat::kBfloat16) {
    words_of_bfloat16(line->values.data(), K, words);
  } else {
    line->scale = words_of_int8(line->values.data(), K, words);
  }
  return finite;
}

// to [count][kPanel] = the lines side by side.
template <typename T, typename Get>
void transpose(const std::vector<Line>& lines, int64_t count, T* to, Get get) {
  const T* from[kPanel];
  for (int64_t c = 0; c < kPanel; ++c) from[c] = get(lines[c]);
  for (int64_t i = 0; i < count; ++i) {
    FASTGEN_UNROLL for (int64_t c = 0; c < kPanel; ++c) to[i * kPanel + c] = from[c][i];
  }
}

bool pack_panel(const PackArgs& args, int64_t panel, std::vector<Line>* lines) {
  const int64_t K = args.in_features, words = words_in(args.format, K), groups = K / kGroup;
  const bool has_groups = args.format >= WeightFormat::kQ8_0;
  bool finite = true;
  for (int64_t c = 0; c < kPanel; ++c) {
    Line& line = (*lines)[c];
    const int64_t n = panel * kPanel + c;
    if (n < args.count) {
      const int64_t from = args.order ? args.order[n] : n;
      finite = encode(args, args.lines + from * args.line_stride, &line) && finite;
      continue;
    }
    line.scale = 0;
    std::fill(line.words.begin(), line.words.end(), 0);
    std::fill(line.scales.begin(), line.scales.end(), 0);
    std::fill(line.mins.begin(), line.mins.end(), 0);
  }
  transpose(*lines, words, args.words + panel * words * kPanel,
            [](const Line& line) { return line.words.data(); });
  if (args.format == WeightFormat::kInt8) {
    auto* scales = static_cast<float*>(args.scales) + panel * kPanel;
    for (int64_t c = 0; c < kPanel; ++c) scales[c] = (*lines)[c].scale;
  }
  if (has_groups) {
    transpose(*lines, groups, static_cast<uint16_t*>(args.scales) + panel * groups * kPanel,
              [](const Line& line) { return line.scales.data(); });
  }
  if (args.format == WeightFormat::kQ4_1) {
    transpose(*lines, groups, args.mins + panel * groups * kPanel,
              [](const Line& line) { return line.mins.data(); });
  }
  return finite;
}

bool pack(const PackArgs& args, int num_threads) {
  std::atomic<bool> finite{true};
  WorkQueue queue((args.count + kPanel - 1) / kPanel);
  ThreadPool::instance().run(num_threads, [&](int, Team&) {
    const int64_t K = args.in_features;
    std::vector<Line> lines(kPanel);
    for (Line& line : lines) {
      line.values.resize(K);
      line.words.resize(words_in(args.format, K));
      line.scales.resize(K / kGroup);
      line.mins.resize(K / kGroup);
    }
    for (int64_t panel, end; queue.next(&panel, &end);) {
      if (!pack_panel(args, panel, &lines)) finite = false;
    }
  });
  return finite;
}

}  // namespace
}  // namespace fastgen

// Returns whether all values, or all scales and minimums of blocks, are finite.
extern "C" bool fastgen_pack(const uint8_t* lines, int64_t line_stride, const int64_t* order,
                             int64_t count, int64_t in_features, int32_t encoding, int32_t format,
                             void* words, void* scales, void* mins, int32_t num_threads) {
  return fastgen::pack({lines, line_stride, order, count, in_features,
                        static_cast<fastgen::Encoding>(encoding),
                        static_cast<fastgen::WeightFormat>(format), static_cast<uint32_t*>(words),
                        scales, static_cast<uint16_t*>(mins)},
                       num_threads);
}
