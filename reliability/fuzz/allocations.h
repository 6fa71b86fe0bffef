// Memory that runs out when told to: the core's operator new and aligned_alloc (which the linker wraps).
#ifndef GCE_RELIABILITY_FUZZ_ALLOCATIONS_H_
#define GCE_RELIABILITY_FUZZ_ALLOCATIONS_H_

namespace fuzz {

// While it lives, the n-th allocation of this thread fails; none if n is 0.
class FailingAllocation {
 public:
  explicit FailingAllocation(int n);
  FailingAllocation(const FailingAllocation&) = delete;
  FailingAllocation& operator=(const FailingAllocation&) = delete;
  ~FailingAllocation();
};

}  // namespace fuzz

#endif  // GCE_RELIABILITY_FUZZ_ALLOCATIONS_H_
