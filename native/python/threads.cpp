#include "threads.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

namespace gce_python {
namespace {

// Threads that wait for a task. They are never joined: the pool lives as long as the process.
class Pool {
 public:
  // False, with nothing done, if another thread is using the pool.
  bool try_run(int n, const std::function<void(int)>& task) {
    const std::unique_lock<std::mutex> in_use(one_at_a_time_, std::try_to_lock);
    if (!in_use.owns_lock()) return false;
    grow_to(n - 1);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task;
      next_ = 1;
      open_ = n - 1;
    }
    work_is_here_.notify_all();
    task(0);
    std::unique_lock<std::mutex> lock(mutex_);
    open_ = 0;  // whoever has not begun need not
    all_ended_.wait(lock, [this] { return active_ == 0; });
    return true;
  }

 private:
  void grow_to(int n) {
    while (threads_ < n) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {
        return;  // no more threads to be had: the caller's own does the work
      }
      ++threads_;
    }
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      work_is_here_.wait(lock, [this] { return open_ > 0; });
      const int index = next_++;
      --open_;
      ++active_;
      const std::function<void(int)>& task = *task_;
      lock.unlock();
      task(index);
      lock.lock();
      if (--active_ == 0) all_ended_.notify_one();
    }
  }

  std::mutex one_at_a_time_;
  std::mutex mutex_;
  std::condition_variable work_is_here_;
  std::condition_variable all_ended_;
  const std::function<void(int)>* task_ = nullptr;
  int next_ = 0;
  int open_ = 0;
  int active_ = 0;
  int threads_ = 0;
};

std::atomic<Pool*> current_pool{nullptr};

// A forked child has none of its parent's threads, and its copy of the pool's locks may be held for ever:
// it forgets that pool and makes a new one when it needs one.
void forget_pool() { current_pool.store(nullptr); }

Pool& pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  static_cast<void>(registered);
  Pool* existing = current_pool.load();
  if (existing != nullptr) return *existing;
  Pool* fresh = new Pool;
  if (current_pool.compare_exchange_strong(existing, fresh)) return *fresh;
  delete fresh;
  return *existing;
}

std::atomic<int> chosen_threads{0};

// The leading count of "8" or "8,4", or 0.
int leading_count(const char* text, bool* is_whole) {
  char* end = nullptr;
  const long count = std::strtol(text, &end, 10);
  *is_whole = end != text && *end == '\0';
  return count >= 1 && count <= 65536 ? static_cast<int>(count) : 0;
}

// Those that the process may use, where the system tells.
int cpus_of_process() {
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) return std::max(1, CPU_COUNT(&allowed));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int default_threads() {
  bool is_whole = false;
  if (const char* text = std::getenv("GCE_NUM_THREADS"); text != nullptr && *text != '\0') {
    const int count = leading_count(text, &is_whole);
    if (count > 0 && is_whole) return count;
    throw std::invalid_argument(std::string("GCE_NUM_THREADS = ") + text +
                                ", expected an integer >= 1");
  }
  if (const char* text = std::getenv("OMP_NUM_THREADS"); text != nullptr) {
    const int count = leading_count(text, &is_whole);
    if (count > 0) return count;
  }
  return cpus_of_process();
}

}  // namespace

void run_on_threads(int n, const std::function<void(int)>& task) {
  if (n <= 1 || !pool().try_run(n, task)) task(0);
}

int num_threads() {
  const int chosen = chosen_threads.load();
  if (chosen > 0) return chosen;
  const int count = default_threads();
  int none = 0;  // what another thread sets meanwhile stays
  return chosen_threads.compare_exchange_strong(none, count) ? count : none;
}

void set_num_threads(int n) { chosen_threads.store(n); }

}  // namespace gce_python
