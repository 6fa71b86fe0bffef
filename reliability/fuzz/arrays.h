// Strided arrays in memory that ends where their elements do, so that AddressSanitizer sees a byte too many.
#ifndef GCE_RELIABILITY_FUZZ_ARRAYS_H_
#define GCE_RELIABILITY_FUZZ_ARRAYS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "bytes.h"
#include "gce/gce.h"

namespace fuzz {

// Prints what does not hold, and aborts.
void require(bool holds, const char* expected, const char* of = "");

struct Block {
  std::unique_ptr<char[]> memory;
  size_t size = 0;
};

struct Array {
  bool given = false;
  int32_t dtype = GCE_FLOAT32;
  int32_t ndim = 0;  // unlike the number of lengths only if the core must refuse it
  int32_t readonly = 0;
  bool lacks_shape = false;
  bool lacks_strides = false;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
  int block = -1;     // in which memory it lies
  int64_t start = 0;  // of its first element there

  gce_array view(const std::vector<Block>& blocks) const;
};

// An array of these lengths, with strides as the bytes say: rows or columns first, gaps, reversed, broadcast.
Array make_array(int32_t dtype, std::vector<int64_t> shape, Bytes* bytes, bool is_output);

enum class Backing {
  kWhole,   // all of its elements have memory
  kRefused  // they cannot have: the core must refuse it before it reads one
  ,
  kImpossible  // too large for this machine, but not for the core
};
// Gives the array memory of its own. `lead` bytes before it make it unaligned.
Backing allocate(Array* array, int lead, std::vector<Block>* blocks);
// Puts it into another array's memory, `offset` bytes from where that begins, if it fits.
void put_into(Array* array, int block, int64_t offset, const std::vector<Block>& blocks);

// The number of elements; more than 2^62 counts as 2^62, a negative length as none.
int64_t count_of(const std::vector<int64_t>& shape);

// Offsets of all elements from the first's. Of arrays that have memory, and few elements.
std::vector<int64_t> offsets_of(const Array& array);

// What an array's elements are.
enum class Content {
  kLogits,
  kUnit,      // from 0 to 1
  kPositive,  // weights, probabilities
  kTargets
};
void fill(const Array& array, Content content, int64_t classes, Bytes* bytes,
          std::vector<Block>* blocks);

double real_at(const char* element, int32_t dtype);

}  // namespace fuzz

#endif  // GCE_RELIABILITY_FUZZ_ARRAYS_H_
