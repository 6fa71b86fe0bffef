// How floats are computed in a call of the C ABI: as IEEE has it, whatever the host's thread was told.
#ifndef GCE_CORE_DEFAULT_FLOATS_H_
#define GCE_CORE_DEFAULT_FLOATS_H_

#include <cstdint>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace gce {

// While it lives, the thread rounds to nearest, keeps subnormal numbers and raises no trap. A host may have told one thread
// otherwise (torch.set_flush_denormal) and not the others: bits must not depend on which of them takes a row.
class DefaultFloats {
 public:
  DefaultFloats() : before_(get()) {
    if ((before_ & kControl) != kDefault) set(kDefault);
  }
  ~DefaultFloats() {
    if (get() != before_) set(before_);  // what was raised, too
  }
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;

 private:
#if defined(__x86_64__)
  // MXCSR. Setting it takes as long as ten additions, and it seldom has to be.
  using Word = unsigned;
  static constexpr Word kControl = 0xFFC0;  // the rest is what was raised
  static constexpr Word kDefault = 0x1F80;  // all exceptions masked
  static Word get() { return _mm_getcsr(); }
  static void set(Word word) { _mm_setcsr(word); }
#elif defined(__aarch64__)
  // FPCR, which has not what was raised.
  using Word = uint64_t;
  static constexpr Word kControl = ~Word{0};
  static constexpr Word kDefault = 0;
  static Word get() {
    Word word;
    __asm__ volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void set(Word word) { __asm__ volatile("msr fpcr, %0" : : "r"(word)); }
#else
  using Word = int;
  static constexpr Word kControl = 0;
  static constexpr Word kDefault = 0;
  static Word get() { return 0; }
  static void set(Word) {}
#endif

  const Word before_;
};

}  // namespace gce

#endif  // GCE_CORE_DEFAULT_FLOATS_H_
