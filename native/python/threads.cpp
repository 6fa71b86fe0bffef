#include "threads.h"

#ifndef _WIN32
#include <pthread.h>
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

namespace gce_python {
namespace {

// Waiting for what comes soon if at all: to sleep and be woken takes 25 microseconds and more.
constexpr std::chrono::microseconds kSpin(100);

int cpus_of_process();

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Until done() is true, or the time is over.
template <class Done>
void spin_until(const Done& done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
}

// A thread of the pool, for its sleep. The system may wake it on the CPU that the caller is busy on, though another is
// idle; on a virtual machine it did so for whole series of calls, and the thread came too late for each.
class Sleeper {
 public:
  void sleep(std::unique_lock<std::mutex>* lock) {
#ifdef __linux__
    thread_ = pthread_self();
#endif
    is_asleep_ = true;
    bell_.wait(*lock, [this] { return !is_asleep_; });
    return_to_all_cpus();
  }
  bool is_asleep() const { return is_asleep_; }
  // On another CPU than the caller's.
  void wake() {
    keep_off_this_cpu();
    is_asleep_ = false;
    bell_.notify_one();
  }

 private:
#ifdef __linux__
  void keep_off_this_cpu() {
    if (pthread_getaffinity_np(thread_, sizeof(allowed_), &allowed_) != 0) return;
    const int here = sched_getcpu();
    others_ = allowed_;
    if (here >= 0 && here < CPU_SETSIZE) CPU_CLR(here, &others_);
    if (CPU_COUNT(&others_) == 0) return;
    is_kept_off_ = pthread_setaffinity_np(thread_, sizeof(others_), &others_) == 0;
  }
  // Unless someone else has given it CPUs meanwhile.
  void return_to_all_cpus() {
    cpu_set_t now;
    if (is_kept_off_ && pthread_getaffinity_np(thread_, sizeof(now), &now) == 0 &&
        CPU_EQUAL(&now, &others_)) {
      pthread_setaffinity_np(thread_, sizeof(allowed_), &allowed_);
    }
    is_kept_off_ = false;
  }

  pthread_t thread_ = {};
  bool is_kept_off_ = false;
  cpu_set_t allowed_ = {};  // its own, if it is kept off
  cpu_set_t others_ = {};   // those it is kept to
#else
  void keep_off_this_cpu() {}
  void return_to_all_cpus() {}
#endif
  bool is_asleep_ = false;
  std::condition_variable bell_;
};

// While it lives, a thread that is made has all signals blocked but those of its own faults and a profiler's: handlers run
// on threads of the program, whose waiting they are to interrupt. Windows sends threads no signals.
class SignalsBlocked {
 public:
#ifdef _WIN32
  SignalsBlocked() {}
#else
  SignalsBlocked() {
    sigset_t others;
    sigfillset(&others);
    for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF}) {
      sigdelset(&others, own);
    }
    pthread_sigmask(SIG_SETMASK, &others, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
#endif
};

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
      spins_ = n <= cpus_;  // else it would keep a CPU from who has work
      open_ = n - 1;
      wake_enough(n - 1);
    }
    task(0);
    std::unique_lock<std::mutex> lock(mutex_);
    open_ = 0;  // whoever has not begun need not
    if (spins_ && active_ > 0) {
      lock.unlock();
      spin_until([this] { return active_ == 0; });
      lock.lock();
    }
    all_ended_.wait(lock, [this] { return active_ == 0; });
    return true;
  }

 private:
  void grow_to(int n) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (static_cast<int>(sleepers_.size()) >= n) return;
    const SignalsBlocked blocked;
    while (static_cast<int>(sleepers_.size()) < n && add_thread()) {
    }
  }

  // False if there is no more thread to be had, or no memory for one: then those that there are do the work.
  bool add_thread() noexcept {
    const size_t before = sleepers_.size();
    try {
      Sleeper& sleeper = sleepers_.emplace_back();
      std::thread([this, &sleeper] { serve(sleeper); }).detach();
      return true;
    } catch (const std::exception&) {  // system_error, bad_alloc
      if (sleepers_.size() > before) sleepers_.pop_back();
      return false;
    }
  }

  // So that n threads of the pool are awake, if there are as many.
  void wake_enough(int n) {
    for (const Sleeper& sleeper : sleepers_) n -= sleeper.is_asleep() ? 0 : 1;
    for (Sleeper& sleeper : sleepers_) {
      if (n <= 0) return;
      if (!sleeper.is_asleep()) continue;
      sleeper.wake();
      --n;
    }
  }

  void serve(Sleeper& sleeper) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (spins_ && open_ == 0) {
        lock.unlock();
        spin_until([this] { return open_ > 0; });
        lock.lock();
      }
      while (open_ == 0) sleeper.sleep(&lock);
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
  std::condition_variable all_ended_;
  const std::function<void(int)>* task_ = nullptr;
  const int cpus_ = cpus_of_process();
  int next_ = 0;
  std::atomic<bool> spins_{false};
  std::atomic<int> open_{0};  // these are changed under the lock, and read without by who spins
  std::atomic<int> active_{0};
  std::deque<Sleeper> sleepers_;  // one for each thread; under the lock
};

std::atomic<Pool*> current_pool{nullptr};

// A forked child has none of its parent's threads, and its copy of the pool's locks may be held for ever:
// it forgets that pool and makes a new one when it needs one.
bool is_forgotten_by_children() {
#ifndef _WIN32  // which has no fork
  static std::atomic<bool> is_registered{false};
  if (is_registered) return true;
  if (pthread_atfork(nullptr, nullptr, [] { current_pool.store(nullptr); }) != 0) return false;
  is_registered = true;
#endif
  return true;
}

// Null if there is no memory for one.
Pool* pool() noexcept {
  Pool* existing = current_pool.load();
  if (existing != nullptr) return existing;
  if (!is_forgotten_by_children()) return nullptr;
  Pool* fresh = nullptr;
  try {
    fresh = new Pool;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
  if (current_pool.compare_exchange_strong(existing, fresh)) return fresh;
  delete fresh;
  return existing;
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

void run_on_threads(int n, const std::function<void(int)>& task) noexcept {
  Pool* const threads = n > 1 ? pool() : nullptr;
  if (threads == nullptr || !threads->try_run(n, task)) task(0);
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
