// A few threads that take part in one kernel at a time.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace fastgen {

// One member of the team that runs a kernel.
class Team {
 public:
  Team(int size, std::atomic<int64_t>* arrived) : size_(size), arrived_(arrived) {}
  int size() const { return size_; }
  // Waits until every member has come here.
  void barrier();

 private:
  int size_;
  int64_t passed_ = 0;
  std::atomic<int64_t>* arrived_;
};

// Threads wait for the next kernel by spinning for a moment, since the kernels of a step follow each
// other within microseconds, and then sleep.
class ThreadPool {
 public:
  using Work = std::function<void(int member, Team& team)>;

  static ThreadPool& instance();

  // Threads of later kernels, the calling one included.
  void resize(int num_threads);
  int size() const { return num_threads_; }

  // Calls `work` once on every member, the caller among them, and returns when all are through.
  // While another kernel has the threads, the caller works alone. At most `limit` members take part.
  void run(int limit, const Work& work);

 private:
  ThreadPool();
  ~ThreadPool();
  void start(int num_threads);
  void stop();
  void serve(int member, int64_t epoch);
  int64_t wait_for_work(int64_t epoch);

  std::mutex busy_;
  std::mutex sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
  std::atomic<int> num_threads_{1};
  std::atomic<int> sleepers_{0};
  std::atomic<int64_t> epoch_{0};
  std::atomic<int> running_{0};
  std::atomic<int64_t> arrived_{0};
  std::atomic<bool> stopping_{false};
  const Work* work_ = nullptr;
  int team_size_ = 1;
};

// Hands out the numbers [0, end) in pieces to whoever asks first.
class WorkQueue {
 public:
  explicit WorkQueue(int64_t end, int64_t piece = 1) : end_(end), piece_(piece) {}
  // False when nothing is left; otherwise [*first, *last) is the caller's.
  bool next(int64_t* first, int64_t* last) {
    const int64_t start = next_.fetch_add(piece_, std::memory_order_relaxed);
    if (start >= end_) return false;
    *first = start;
    *last = start + piece_ < end_ ? start + piece_ : end_;
    return true;
  }

 private:
  int64_t end_, piece_;
  std::atomic<int64_t> next_{0};
};

// Hands out the numbers [0, end) in pieces that shrink towards the end: all finish together.
class ShrinkingQueue {
 public:
  ShrinkingQueue(int64_t end, int64_t largest, int64_t shares)
      : end_(end), largest_(largest), shares_(shares) {}
  bool next(int64_t* first, int64_t* last) {
    int64_t start = next_.load(std::memory_order_relaxed), size;
    do {
      if (start >= end_) return false;
      size = std::max<int64_t>(1, std::min(largest_, (end_ - start) / shares_));
      if (size > 1) size = size / 2 * 2;
    } while (!next_.compare_exchange_weak(start, start + size, std::memory_order_relaxed));
    *first = start;
    *last = start + size;
    return true;
  }

 private:
  int64_t end_, largest_, shares_;
  std::atomic<int64_t> next_{0};
};

}  // namespace fastgen
