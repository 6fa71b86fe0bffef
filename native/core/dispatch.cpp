#include "dispatch.h"

#if GCE_HAVE_AVX2
#include <cpuid.h>
#endif

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

#include "error.h"

namespace gce {
namespace {

struct Isa {
  const char* name;
  const KernelTable* (*kernels)();
  bool (*supported)();
};

#if GCE_HAVE_AVX2
// Not __builtin_cpu_supports: to that some runtimes of compilers (zig's) always say no.
struct Cpu {
  Cpu() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    constexpr unsigned kFirst = bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & kFirst) != kFirst) return;
    unsigned saved = 0, high = 0;  // parts of registers that the system keeps for each thread
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    constexpr unsigned kYmm = 0x06, kZmm = 0xe6;
#ifdef __APPLE__  // which keeps the latter from a thread's first use on
    const bool keeps_zmm = true;
#else
    const bool keeps_zmm = (saved & kZmm) == kZmm;
#endif
    if ((saved & kYmm) != kYmm || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return;
    constexpr unsigned k512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    has_avx2 = (ebx & bit_AVX2) != 0;
    has_avx512 = has_avx2 && keeps_zmm && (ebx & k512) == k512;
  }
  bool has_avx2 = false;
  bool has_avx512 = false;
};

bool cpu_has_avx2() { return Cpu().has_avx2; }
#endif
#if GCE_HAVE_AVX512
bool cpu_has_avx512() { return Cpu().has_avx512; }
#endif
bool always() { return true; }

// Best first. The build defines GCE_HAVE_<ISA> for each ISA object that it compiles.
constexpr Isa kIsas[] = {
#if GCE_HAVE_AVX512
    {"avx512", avx512_kernels, cpu_has_avx512},
#endif
#if GCE_HAVE_AVX2
    {"avx2", avx2_kernels, cpu_has_avx2},
#endif
#if GCE_HAVE_NEON
    {"neon", neon_kernels, always},
#endif
    {"baseline", baseline_kernels, always},
};

std::string names_of_isas() {
  std::string names;
  for (const Isa& isa : kIsas) {
    names += names.empty() ? "" : ", ";
    names += isa.name;
  }
  return names;
}

const KernelTable* find(const char* name, const char* asked_by) {
  for (const Isa& isa : kIsas) {
    if (std::strcmp(isa.name, name) != 0) continue;
    if (isa.supported()) return isa.kernels();
    fail(GCE_RUNTIME_ERROR, asked_by, " = ", name, ", but this CPU lacks ", name);
  }
  fail(GCE_RUNTIME_ERROR, asked_by, " = ", name, ", expected one of ", names_of_isas());
}

const KernelTable* choose() {
  const char* forced = std::getenv("GCE_FORCE_ISA");
  if (forced != nullptr && *forced != '\0') return find(forced, "GCE_FORCE_ISA");
  for (const Isa& isa : kIsas) {
    if (isa.supported()) return isa.kernels();
  }
  return baseline_kernels();
}

std::atomic<const KernelTable*> in_use{nullptr};

}  // namespace

const KernelTable& kernels() {
  const KernelTable* table = in_use.load(std::memory_order_acquire);
  if (table == nullptr) {
    table = choose();
    in_use.store(table, std::memory_order_release);
  }
  return *table;
}

void select_isa(const char* name) {
  in_use.store(name == nullptr ? nullptr : find(name, "isa"), std::memory_order_release);
}

const char* isa_name(int32_t i, bool* supported) {
  constexpr int32_t kCount = sizeof(kIsas) / sizeof(kIsas[0]);
  if (i < 0 || i >= kCount) return nullptr;
  *supported = kIsas[i].supported();
  return kIsas[i].name;
}

}  // namespace gce
