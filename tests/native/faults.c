/* Memory and threads that cannot be had: preloaded, it makes the n-th allocation after fault_arm fail, and those behind it.
 *
 * Counted is what any library allocates, or only what one does (fault_within), but for glibc and its loader: where they find
 * no memory for thread-local variables, the process ends, whoever's these are. Of the blocks that live, likewise.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* glibc's own; to ask dlsym for them would allocate. */
extern void* __libc_malloc(size_t size);
extern void* __libc_calloc(size_t n, size_t size);
extern void* __libc_realloc(void* memory, size_t size);
extern void* __libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void* memory);

static atomic_long until = -1; /* allocations before the first that fails; -1: none shall */
static atomic_long left = 0;   /* how many are to fail from there on */
static atomic_long counted = 0;
static atomic_long failed = 0;
static atomic_long live = 0; /* blocks that are allocated, of any caller or the library's */
static atomic_int threads_fail = 0;

/* Addresses [begin, end) of a library. */
typedef struct Range {
  const char* name; /* what its path has in it */
  uintptr_t begin, end;
} Range;
static Range libc = {"/libc.so", 0, 0};
static Range loader = {"/ld-linux", 0, 0};
static Range cpp = {"/libstdc++.so", 0, 0};
static Range own = {"/faults-", 0, 0};
static Range within = {NULL, 0, 0};

static int look(struct dl_phdr_info* info, size_t size, void* data) {
  (void)size;
  Range* const range = data;
  if (strstr(info->dlpi_name, range->name) == NULL) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)* part = &info->dlpi_phdr[i];
    if (part->p_type != PT_LOAD) continue;
    const uintptr_t begin = info->dlpi_addr + part->p_vaddr;
    if (range->begin == 0) range->begin = begin;
    range->end = begin + part->p_memsz;
  }
  return 1;
}

static int is_in(const Range* range, const void* caller) {
  return (uintptr_t)caller >= range->begin && (uintptr_t)caller < range->end;
}

static _Thread_local int is_looking = 0;

/* Whether the library `within` asks, itself or through the C++ library. */
static int is_within(const void* caller) {
  void* callers[16];
  if (is_in(&within, caller)) return 1;
  if (is_looking || !is_in(&cpp, caller)) return 0; /* looking: backtrace's own */
  is_looking = 1;
  const int count = backtrace(callers, 16);
  is_looking = 0;
  for (int i = 0; i < count; ++i) {
    if (!is_in(&own, callers[i]) && !is_in(&cpp, callers[i])) return is_in(&within, callers[i]);
  }
  return 0;
}

/* Whether this allocation is one that fails. */
static int fails(const void* caller) {
  if (atomic_load(&until) < 0 || is_in(&libc, caller) || is_in(&loader, caller)) return 0;
  if (within.name != NULL && !is_within(caller)) return 0;
  const long number = atomic_fetch_add(&counted, 1);
  if (number < atomic_load(&until)) return 0;
  if (atomic_fetch_sub(&left, 1) <= 0) return 0;
  atomic_fetch_add(&failed, 1);
  errno = ENOMEM;
  return 1;
}

/* The blocks of the library `within`, whoever frees them: few, in no order. */
#define MOST_BLOCKS 10000
static void* blocks[MOST_BLOCKS];
static atomic_flag is_held = ATOMIC_FLAG_INIT;
static void hold(void) {
  while (atomic_flag_test_and_set(&is_held)) {
  }
}
static void add(void* memory) {
  hold();
  const long number = atomic_fetch_add(&live, 1);
  if (number >= MOST_BLOCKS) abort();
  blocks[number] = memory;
  atomic_flag_clear(&is_held);
}
static int drop(const void* memory) {
  hold();
  long number = atomic_load(&live) - 1;
  while (number >= 0 && blocks[number] != memory) --number;
  if (number >= 0) blocks[number] = blocks[atomic_fetch_sub(&live, 1) - 1];
  atomic_flag_clear(&is_held);
  return number >= 0;
}

static void* noted(void* memory, const void* caller) {
  if (memory == NULL) return NULL;
  if (within.name == NULL) {
    atomic_fetch_add(&live, 1);
  } else if (is_within(caller)) {
    add(memory);
  }
  return memory;
}

#define CALLER __builtin_return_address(0)

void* malloc(size_t size) { return fails(CALLER) ? NULL : noted(__libc_malloc(size), CALLER); }
void* calloc(size_t n, size_t size) {
  return fails(CALLER) ? NULL : noted(__libc_calloc(n, size), CALLER);
}
void* memalign(size_t alignment, size_t size) {
  return fails(CALLER) ? NULL : noted(__libc_memalign(alignment, size), CALLER);
}
void* aligned_alloc(size_t alignment, size_t size) {
  return fails(CALLER) ? NULL : noted(__libc_memalign(alignment, size), CALLER);
}
int posix_memalign(void** memory, size_t alignment, size_t size) {
  if (fails(CALLER)) return ENOMEM;
  *memory = noted(__libc_memalign(alignment, size), CALLER);
  return *memory == NULL ? ENOMEM : 0;
}
void* realloc(void* memory, size_t size) {
  if (fails(CALLER)) return NULL;
  if (memory == NULL) return noted(__libc_realloc(NULL, size), CALLER);
  const int is_owned = within.name != NULL && drop(memory);
  void* const moved = __libc_realloc(memory, size);
  if (is_owned) add(moved == NULL ? memory : moved);
  return moved;
}
void free(void* memory) {
  if (memory != NULL && within.name == NULL) {
    atomic_fetch_sub(&live, 1);
  } else if (memory != NULL) {
    drop(memory);
  }
  __libc_free(memory);
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*),
                   void* argument) {
  if (atomic_load(&threads_fail)) {
    atomic_fetch_add(&failed, 1);
    return EAGAIN;
  }
  int (*real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) = NULL;
  *(void**)&real = dlsym(RTLD_NEXT, "pthread_create");
  return real(thread, attributes, start, argument);
}

/* From here on, the allocation behind the next n fails, and the `many` - 1 behind that one. */
void fault_arm(long n, long many) {
  if (libc.begin == 0) {
    dl_iterate_phdr(look, &libc);
    dl_iterate_phdr(look, &loader);
  }
  atomic_store(&counted, 0);
  atomic_store(&failed, 0);
  atomic_store(&left, many);
  atomic_store(&until, n);
}
/* Counts from now on, once for all, what the loaded library allocates whose path has this in it; 0 if there is none. */
int fault_within(const char* name) {
  void* callers[4];
  backtrace(callers, 4); /* the first time it loads a library */
  const Range wanted = {name, 0, 0};
  within = wanted;
  dl_iterate_phdr(look, &cpp);
  dl_iterate_phdr(look, &own);
  dl_iterate_phdr(look, &within);
  atomic_store(&live, 0);
  return within.begin != 0;
}
void fault_disarm(void) { atomic_store(&until, -1); }
void fault_threads(int fail) {
  atomic_store(&failed, 0);
  atomic_store(&threads_fail, fail);
}
/* How many have failed since fault_arm. */
long fault_count(void) { return atomic_load(&failed); }
long fault_live(void) { return atomic_load(&live); }
