#include "kv_write/cpu.h"

#include <algorithm>
#include <vector>

#include "native/numbers.h"
#include "native/thread_pool.h"

namespace fastgen {
namespace {

// Numbers that are worth waking a thread for: the write of fewer takes less than that does.
constexpr int64_t kNumbersPerThread = 32768;
constexpr int64_t kPieceTokens = 16;

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
      rotate_halves(args.cos + first, args.sin + first, args.rotary_half, numbers);
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
