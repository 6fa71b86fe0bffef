#include "dispatch.h"

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
// F16C came before AVX2 in every line of CPUs; older compilers cannot ask for it.
bool cpu_has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif
#if GCE_HAVE_AVX512
bool cpu_has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && cpu_has_avx2();
}
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
