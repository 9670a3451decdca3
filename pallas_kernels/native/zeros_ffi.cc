// A large array of zeros for kernels that read it in scattered pieces.
#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "native/ffi.h"
#include "native/thread_pool.h"

namespace fastgen {
namespace {

// What Linux has on x86 and, with its usual pages of 4 KiB, on ARM.
constexpr int64_t kHugePage = int64_t{2} << 20;

// Asks for huge pages under the whole ones within the memory, which is then no longer looked up
// 4 KiB at a time. Most systems give them to nobody who doesn't ask. Where there are none the call
// fails, and nothing is lost.
void ask_for_huge_pages(char* memory, int64_t size) {
#if defined(__linux__)
  const int64_t before = -reinterpret_cast<intptr_t>(memory) & (kHugePage - 1);
  const int64_t whole = (size - before) / kHugePage * kHugePage;
  if (whole > 0) (void)madvise(memory + before, whole, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)size;
#endif
}

// Memory is given page by page to who writes first, so the threads share that work too.
void write_zeros(char* memory, int64_t size) {
  const int64_t num_pieces = (size + kHugePage - 1) / kHugePage;
  WorkQueue pieces(num_pieces);
  const int limit = static_cast<int>(std::min<int64_t>(num_pieces, 1024));
  ThreadPool::instance().run(limit, [&](int, Team&) {
    for (int64_t piece, end; pieces.next(&piece, &end);) {
      const int64_t first = piece * kHugePage;
      std::memset(memory + first, 0, std::min(kHugePage, size - first));
    }
  });
}

xla::ffi::Error zeros_ffi(xla::ffi::Result<xla::ffi::AnyBuffer> out) {
  char* memory = static_cast<char*>(out->untyped_data());
  const int64_t size = static_cast<int64_t>(out->size_bytes());
  ask_for_huge_pages(memory, size);
  write_zeros(memory, size);
  return xla::ffi::Error::Success();
}

}  // namespace
}  // namespace fastgen

XLA_FFI_DEFINE_HANDLER_SYMBOL(fastgen_zeros, fastgen::zeros_ffi,
                              xla::ffi::Ffi::Bind().Ret<xla::ffi::AnyBuffer>());
