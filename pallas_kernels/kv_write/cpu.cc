#include "kv_write/cpu.h"

#include <algorithm>
#include <vector>

#include "native/float8.h"
#include "native/simd.h"
#include "native/thread_pool.h"

namespace fastgen {
namespace {

// Numbers that are worth waking a thread for: the write of fewer takes less than that does.
constexpr int64_t kNumbersPerThread = 32768;
constexpr int64_t kPieceTokens = 16;

void widen(const void* from, DType dtype, int64_t offset, int64_t count, float* to) {
  if (dtype == DType::kFloat32) {
    std::memcpy(to, static_cast<const float*>(from) + offset, count * sizeof(float));
    return;
  }
  const uint16_t* numbers = static_cast<const uint16_t*>(from) + offset;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load_bf16(numbers + i));
  for (; i < count; ++i) to[i] = widen_bf16(numbers[i]);
}

void narrow(const float* from, int64_t count, DType dtype, int64_t offset, void* to) {
  if (dtype == DType::kFloat32) {
    std::memcpy(static_cast<float*>(to) + offset, from, count * sizeof(float));
  } else if (dtype == DType::kBfloat16) {
    uint16_t* numbers = static_cast<uint16_t*>(to) + offset;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(numbers + i, round_bf16(load<Vec>(from + i)));
    for (; i < count; ++i) numbers[i] = round_bf16(from[i]);
  } else {
    uint8_t* numbers = static_cast<uint8_t*>(to) + offset;
    for (int64_t i = 0; i < count; ++i) numbers[i] = round_float8(from[i], dtype);
  }
}

// The halves of one head's key against each other.
void rotate(const float* cos, const float* sin, int64_t half, float* key) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec c = load<Vec>(cos + i), s = load<Vec>(sin + i);
    const Vec low = load<Vec>(key + i), high = load<Vec>(key + half + i);
    store(key + i, low * c - high * s);
    store(key + half + i, high * c + low * s);
  }
  for (; i < half; ++i) {
    const float low = key[i], high = key[half + i];
    key[i] = low * cos[i] - high * sin[i];
    key[half + i] = high * cos[i] + low * sin[i];
  }
}

void divide(float* numbers, int64_t count, float scale) {
  for (int64_t i = 0; i < count; ++i) numbers[i] /= scale;
}

void write_token(const KvWriteArgs& args, int64_t token, float* numbers) {
  const int64_t dim = args.head_dim;
  for (int64_t head = 0; head < args.num_kv_heads; ++head) {
    const int64_t from = (token * args.num_kv_heads + head) * dim;
    const int64_t place = (args.first_page + args.page_ids[token]) * args.num_kv_heads + head;
    const int64_t to = (place * args.page_size + args.slots[token]) * dim;
    widen(args.k, args.dtype, from, dim, numbers);
    if (args.cos != nullptr) {
      const int64_t first = token * args.rotary_half;
      rotate(args.cos + first, args.sin + first, args.rotary_half, numbers);
    }
    if (args.k_scales != nullptr) divide(numbers, dim, args.k_scales[head]);
    narrow(numbers, dim, args.kv_dtype, to, args.k_pages);
    widen(args.v, args.dtype, from, dim, numbers);
    if (args.v_scales != nullptr) divide(numbers, dim, args.v_scales[head]);
    narrow(numbers, dim, args.kv_dtype, to, args.v_pages);
  }
}

}  // namespace

void write_kv(const KvWriteArgs& args) {
  const int64_t numbers = 2 * args.num_tokens * args.num_kv_heads * args.head_dim;
  const int64_t limit = std::min<int64_t>(numbers / kNumbersPerThread, 1024);
  WorkQueue queue(args.num_tokens, kPieceTokens);
  ThreadPool::instance().run(static_cast<int>(limit), [&](int, Team&) {
    thread_local std::vector<float> scratch;
    scratch.resize(args.head_dim);
    for (int64_t first, last; queue.next(&first, &last);) {
      for (int64_t token = first; token < last; ++token) write_token(args, token, scratch.data());
    }
  });
}

}  // namespace fastgen
