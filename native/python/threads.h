// The module's own threads, and how many of them a call may use.
#ifndef GCE_PYTHON_THREADS_H_
#define GCE_PYTHON_THREADS_H_

#include <functional>

namespace gce_python {

// Calls task(0) on this thread and task(1), ..., task(n - 1) on pool threads, as far as they are free
// before task(0) has returned: a task must not rely on the others. Returns when all that began have ended.
// Any number of threads may call at once (one at a time gets the pool); a forked child has a new pool.
// Where the system has no more threads or memory, fewer do the work.
void run_on_threads(int n, const std::function<void(int)>& task) noexcept;

// The process setting: set_num_threads, else GCE_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs that
// this process may use. Throws std::invalid_argument for a GCE_NUM_THREADS that is no count.
int num_threads();
void set_num_threads(int n);  // n >= 1

}  // namespace gce_python

#endif  // GCE_PYTHON_THREADS_H_
