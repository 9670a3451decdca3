#include "native/thread_pool.h"

#include <algorithm>

namespace fastgen {
namespace {

// About 100 microseconds: longer than XLA takes between two kernels of a layer.
constexpr int kSpins = 4000;
// A waiting member gives its core away after this many turns, for whoever holds it up.
constexpr int kSpinsBeforeYield = 20000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <typename Condition>
void spin_until(Condition condition) {
  for (int turn = 0; !condition(); ++turn) {
    if (turn < kSpinsBeforeYield) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace

void Team::barrier() {
  if (size_ == 1) return;
  passed_ += size_;
  arrived_->fetch_add(1, std::memory_order_acq_rel);
  spin_until([&] { return arrived_->load(std::memory_order_acquire) >= passed_; });
}

ThreadPool& ThreadPool::instance() {
  static ThreadPool pool;
  return pool;
}

ThreadPool::ThreadPool() { start(static_cast<int>(std::thread::hardware_concurrency())); }

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::resize(int num_threads) {
  std::lock_guard<std::mutex> lock(busy_);
  if (num_threads == num_threads_) return;
  stop();
  start(num_threads);
}

void ThreadPool::start(int num_threads) {
  stopping_ = false;
  num_threads_ = std::max(1, num_threads);
  const int64_t epoch = epoch_.load();
  for (int member = 1; member < num_threads_; ++member) {
    threads_.emplace_back([this, member, epoch] { serve(member, epoch); });
  }
}

void ThreadPool::stop() {
  stopping_ = true;
  {
    std::lock_guard<std::mutex> lock(sleep_);
    epoch_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

int64_t ThreadPool::wait_for_work(int64_t epoch) {
  for (int turn = 0; turn < kSpins; ++turn) {
    const int64_t now = epoch_.load(std::memory_order_acquire);
    if (now != epoch) return now;
    pause();
  }
  std::unique_lock<std::mutex> lock(sleep_);
  sleepers_.fetch_add(1);
  wake_.wait(lock, [&] { return epoch_.load() != epoch; });
  sleepers_.fetch_sub(1);
  return epoch_.load();
}

void ThreadPool::serve(int member, int64_t epoch) {
  while (true) {
    epoch = wait_for_work(epoch);
    if (stopping_) return;
    if (member < team_size_) {
      Team team(team_size_, &arrived_);
      (*work_)(member, team);
    }
    running_.fetch_sub(1, std::memory_order_release);
  }
}

void ThreadPool::run(int limit, const Work& work) {
  std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
  const int size = lock.owns_lock() ? std::min<int>(limit, num_threads_) : 1;
  if (size <= 1) {
    Team alone(1, nullptr);
    work(0, alone);
    return;
  }
  work_ = &work;
  team_size_ = size;
  arrived_.store(0, std::memory_order_relaxed);
  running_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1);
  if (sleepers_.load() > 0) {
    std::lock_guard<std::mutex> sleep_lock(sleep_);
    wake_.notify_all();
  }
  Team team(size, &arrived_);
  work(0, team);
  spin_until([&] { return running_.load(std::memory_order_acquire) == 0; });
}

}  // namespace fastgen

extern "C" void fastgen_set_num_threads(int num_threads) {
  fastgen::ThreadPool::instance().resize(num_threads);
}

extern "C" int fastgen_num_threads() { return fastgen::ThreadPool::instance().size(); }
