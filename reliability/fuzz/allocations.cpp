#include "allocations.h"

#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

thread_local int allocations_left = 0;  // until the one that fails; 0: none does

bool fails_now() { return allocations_left > 0 && --allocations_left == 0; }

}  // namespace

namespace fuzz {

FailingAllocation::FailingAllocation(int n) { allocations_left = n; }
FailingAllocation::~FailingAllocation() { allocations_left = 0; }

}  // namespace fuzz

// AddressSanitizer's own operator new ends the process where it should throw.
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return fails_now() ? nullptr : std::malloc(size == 0 ? 1 : size);
}
void* operator new(size_t size) {
  void* const memory = operator new(size, std::nothrow);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new[](size_t size) { return operator new(size); }
void* operator new[](size_t size, const std::nothrow_t&) noexcept {
  return operator new(size, std::nothrow);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }

extern "C" {

void* __real_aligned_alloc(size_t alignment, size_t size);
void* __wrap_aligned_alloc(size_t alignment, size_t size) {
  return fails_now() ? nullptr : __real_aligned_alloc(alignment, size);
}

}  // extern "C"
