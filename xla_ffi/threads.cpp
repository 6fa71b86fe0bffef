#include "threads.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

namespace gce_xla {
namespace {

constexpr int64_t kMostThreads = 256;

// Whether `error` is none; one that is, is freed.
bool succeeded(const CallFrame& frame, Error* error) {
  if (error == nullptr) return true;
  auto args = sized<ErrorDestroyArgs>();
  args.error = error;
  frame.api->Error_Destroy()(&args);
  return false;
}

// The workers of one plan. The handler itself runs on a thread of the pool, so it must not wait for a task that
// has not begun: all others may be waiting for theirs. So workers belong to whoever comes first, the
// handler's own thread takes those that nobody has taken, and then waits for those at work. A task that comes
// too late finds none, and does not touch the plan, which may be gone.
class Workers {
 public:
  explicit Workers(gce_plan* plan) : plan_(plan), count_(gce_plan_workers(plan)) {}

  int32_t count() const { return count_; }

  void take() {
    int32_t done = 0;
    for (int32_t worker = next_++; worker < count_; worker = next_++) {
      gce_plan_work(plan_, worker);
      ++done;
    }
    if (done == 0) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    finished_ += done;
    if (finished_ == count_) all_finished_.notify_all();
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    all_finished_.wait(lock, [this] { return finished_ == count_; });
  }

 private:
  gce_plan* const plan_;
  const int32_t count_;
  std::atomic<int32_t> next_{0};
  std::mutex mutex_;
  std::condition_variable all_finished_;
  int32_t finished_ = 0;
};

using Shared = std::shared_ptr<Workers>;

void run_task(void* data) {
  const std::unique_ptr<Shared> shared(static_cast<Shared*>(data));
  (*shared)->take();
}

// False if the pool does not take it.
bool schedule(const CallFrame& frame, const Shared& workers) {
  auto args = sized<ThreadPoolScheduleArgs>();
  args.context = frame.context;
  args.task = run_task;
  args.data = new Shared(workers);  // the task's
  if (succeeded(frame, frame.api->ThreadPool_Schedule()(&args))) return true;
  delete static_cast<Shared*>(args.data);
  return false;
}

}  // namespace

int32_t most_workers(const CallFrame& frame) {
  int64_t threads = 1;
  auto args = sized<ThreadPoolNumThreadsArgs>();
  args.context = frame.context;
  args.num_threads = &threads;
  if (!succeeded(frame, frame.api->ThreadPool_NumThreads()(&args))) return 1;
  return static_cast<int32_t>(std::min(std::max<int64_t>(threads, 1), kMostThreads));
}

void work(const CallFrame& frame, gce_plan* plan) {
  if (gce_plan_workers(plan) == 1) return gce_plan_work(plan, 0);
  const auto workers = std::make_shared<Workers>(plan);
  for (int32_t others = workers->count() - 1; others > 0; --others) {
    if (!schedule(frame, workers)) break;
  }
  workers->take();
  workers->wait();
}

}  // namespace gce_xla
