// Reads an array that no cache holds, over and over, with a few threads at once, and prints the
// bytes per second of every pass, one a line: memory_read BYTES THREADS PASSES.

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

// Holds every thread back until all have come; used again and again.
class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}

  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int64_t round = round_;
    if (++waiting_ == count_) {
      waiting_ = 0;
      ++round_;
      all_here_.notify_all();
      return;
    }
    all_here_.wait(lock, [&] { return round != round_; });
  }

 private:
  const int count_;
  int waiting_ = 0;
  int64_t round_ = 0;
  std::mutex mutex_;
  std::condition_variable all_here_;
};

// Several sums at once, so that adding never waits for the sum before; the compiler makes vectors.
uint64_t Sum(const uint64_t* begin, const uint64_t* end) {
  constexpr int kSums = 32;
  uint64_t sums[kSums] = {};
  for (; end - begin >= kSums; begin += kSums) {
    for (int i = 0; i < kSums; ++i) sums[i] += begin[i];
  }
  return std::accumulate(begin, end, std::accumulate(sums, sums + kSums, uint64_t{0}));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const int num_threads = std::atoi(argv[2]);
  const int num_passes = std::atoi(argv[3]);
  if (num_threads < 1 || num_passes < 1) return 2;
  const int64_t size = std::atoll(argv[1]) / static_cast<int64_t>(sizeof(uint64_t)) / num_threads;
  if (size < 1) return 2;
  std::vector<uint64_t> results(num_threads);
  std::vector<double> seconds(num_passes);
  Barrier barrier(num_threads);
  auto read = [&](int thread) {
    // Filled by the thread that reads it: its pages exist, and lie where that thread runs.
    const std::vector<uint64_t> values(size, static_cast<uint64_t>(thread) + 1);
    for (int pass = -1; pass < num_passes; ++pass) {  // the first one warms up
      barrier.Wait();
      const Clock::time_point start = Clock::now();
      results[thread] += Sum(values.data(), values.data() + size);
      barrier.Wait();
      if (thread == 0 && pass >= 0) {
        seconds[pass] = std::chrono::duration<double>(Clock::now() - start).count();
      }
    }
  };
  std::vector<std::thread> threads;
  for (int thread = 0; thread < num_threads; ++thread) threads.emplace_back(read, thread);
  for (std::thread& thread : threads) thread.join();
  const double bytes = static_cast<double>(size) * sizeof(uint64_t) * num_threads;
  for (const double one : seconds) std::printf("%.6e\n", bytes / one);
  // The sums have to be used, or nothing would be read.
  for (int thread = 0; thread < num_threads; ++thread) {
    const uint64_t due = static_cast<uint64_t>(thread + 1) * size * (num_passes + 1);
    if (results[thread] != due) return 3;
  }
  return 0;
}
