#include "arrays.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "storage.h"

namespace fuzz {
namespace {

constexpr int64_t kMostBytes = 1 << 26;
constexpr int64_t kMostElements = int64_t{1} << 58;  // what gce.h allows

// How far elements lie from the first, in both directions.
struct Reach {
  __int128 before = 0;
  __int128 after = 0;
  bool is_empty = false;
  bool is_wrong = false;  // a negative length
  __int128 elements = 1;  // saturating, without the lengths that are 0
};

Reach reach_of(const Array& array) {
  Reach reach;
  if (array.ndim != static_cast<int32_t>(array.shape.size())) reach.is_wrong = true;
  for (size_t d = 0; d < array.shape.size(); ++d) {
    const int64_t length = array.shape[d];
    if (length < 0) reach.is_wrong = true;
    if (length <= 0) reach.is_empty = true;
    if (length <= 1) continue;
    reach.elements = std::min<__int128>(reach.elements * length, __int128{1} << 62);
    const __int128 far = static_cast<__int128>(array.strides[d]) * (length - 1);
    (far < 0 ? reach.before : reach.after) += far < 0 ? -far : far;
  }
  return reach;
}

void put_integer(char* element, int32_t dtype, int64_t value) {
  std::memcpy(element, &value, static_cast<size_t>(gce::size_of(dtype)));
}

bool is_real(int32_t dtype) { return dtype >= GCE_FLOAT16 && dtype <= GCE_FLOAT64; }

constexpr double kSpecials[] = {0.0,    -0.0,  __builtin_inf(), -__builtin_inf(), 1e-310,  -1e-42,
                                1e38,   -3e38, 1.7e308,         -1.7e308,         65504.0, 88.8,
                                -104.0, 709.9, -745.2,          __builtin_nan("")};
constexpr double kUnits[] = {0.0,       1.0,      0.5,    1e-7,
                             0.9999999, 4.9e-324, 1e-300, 0x1.fffffffffffffp-1};

}  // namespace

void require(bool holds, const char* expected, const char* of) {
  if (holds) return;
  std::fprintf(stderr, "expected: %s%s%s\nlast error: %s\n", expected, *of ? ": " : "", of,
               gce_last_error());
  std::abort();
}

gce_array Array::view(const std::vector<Block>& blocks) const {
  if (!given) return {};
  return {blocks[static_cast<size_t>(block)].memory.get() + start,
          lacks_shape ? nullptr : shape.data(),
          lacks_strides ? nullptr : strides.data(),
          ndim,
          dtype,
          readonly};
}

Array make_array(int32_t dtype, std::vector<int64_t> shape, Bytes* bytes, bool is_output) {
  Array array;
  array.given = true;
  array.dtype = dtype;
  array.ndim = static_cast<int32_t>(shape.size());
  array.strides.resize(shape.size());
  const int way = bytes->below(32);
  const uint8_t signs = (way & 1) != 0 ? bytes->byte() : 0;
  const uint8_t gaps = (way & 2) != 0 ? bytes->byte() : 0;
  const uint8_t broadcast = (way & 4) != 0 && !is_output ? bytes->byte() : 0;
  const bool first_is_innermost = (way & 8) != 0;
  const int odd = (way & 16) != 0 ? bytes->below(8) : 0;  // bytes between elements: unaligned
  int64_t step = gce::size_of(dtype) + odd;
  for (size_t i = 0; i < shape.size(); ++i) {
    const size_t d = first_is_innermost ? i : shape.size() - 1 - i;
    const int bit = 1 << (i % 8);
    if ((gaps & bit) != 0) step += step * (1 + (gaps >> 6));
    array.strides[d] = (broadcast & bit) != 0 ? 0 : (signs & bit) != 0 ? -step : step;
    if ((broadcast & bit) == 0) step *= std::clamp<int64_t>(shape[d], 1, 1 << 20);
    step = std::min(step, int64_t{1} << 40);
  }
  array.shape = std::move(shape);
  return array;
}

Backing allocate(Array* array, int lead, std::vector<Block>* blocks) {
  const Reach reach = reach_of(*array);
  const __int128 span = reach.before + reach.after + gce::size_of(array->dtype);
  const bool has_elements = !reach.is_wrong && !reach.is_empty;
  const bool is_whole = has_elements && span <= kMostBytes && reach.elements <= kMostBytes;
  const bool may_be_one = array->lacks_shape || array->lacks_strides || !has_elements;
  const int64_t size = is_whole ? static_cast<int64_t>(span) : may_be_one ? 1 : 0;
  Block block;
  block.size = static_cast<size_t>(lead + size);
  block.memory.reset(new char[block.size]);
  Random random(block.size);
  for (size_t i = 0; i < block.size; ++i) block.memory[i] = static_cast<char>(random.next());
  array->block = static_cast<int>(blocks->size());
  array->start = lead + (is_whole ? static_cast<int64_t>(reach.before) : 0);
  blocks->push_back(std::move(block));
  if (is_whole || !has_elements) return Backing::kWhole;
  const bool too_many = reach.elements > kMostElements;
  const bool too_far = reach.before > (__int128{1} << 62) || reach.after > (__int128{1} << 62);
  return too_many || too_far ? Backing::kRefused : Backing::kImpossible;
}

void put_into(Array* array, int block, int64_t offset, const std::vector<Block>& blocks) {
  const Reach reach = reach_of(*array);
  const Block& memory = blocks[static_cast<size_t>(block)];
  const __int128 needed = reach.before + reach.after + gce::size_of(array->dtype);
  if (reach.is_wrong || reach.is_empty || needed > static_cast<__int128>(memory.size)) return;
  const int64_t free = static_cast<int64_t>(memory.size) - static_cast<int64_t>(needed);
  array->block = block;
  array->start = static_cast<int64_t>(reach.before) + std::clamp<int64_t>(offset, 0, free);
}

int64_t count_of(const std::vector<int64_t>& shape) {
  __int128 count = 1;
  for (const int64_t length : shape) {
    if (length <= 0) return 0;
    count = std::min<__int128>(count * length, __int128{1} << 62);
  }
  return static_cast<int64_t>(count);
}

std::vector<int64_t> offsets_of(const Array& array) {
  std::vector<int64_t> offsets = {0};
  for (size_t d = 0; d < array.shape.size(); ++d) {
    const auto length = static_cast<size_t>(array.shape[d]);
    if (length == 1) continue;
    std::vector<int64_t> longer(offsets.size() * length);
    int64_t* next = longer.data();
    for (const int64_t offset : offsets) {
      for (size_t i = 0; i < length; ++i) {
        *next++ = offset + static_cast<int64_t>(i) * array.strides[d];
      }
    }
    offsets = std::move(longer);
  }
  return offsets;
}

void fill(const Array& array, Content content, int64_t classes, Bytes* bytes,
          std::vector<Block>* blocks) {
  if (count_of(array.shape) == 0 || array.ndim != static_cast<int32_t>(array.shape.size())) return;
  constexpr double kScales[] = {4.0, 1.0, 30.0, 300.0, 1e4, 1e30, 1e-30, 0.0};
  const int mode = bytes->below(64);
  const double scale = content == Content::kLogits ? kScales[mode % 8] : 1.0;
  const bool is_hostile = content == Content::kLogits ? mode >= 48 : mode == 63;
  const bool has_specials = content == Content::kLogits ? mode >= 32 : mode >= 60;
  Random random(bytes->byte());
  const bool is_integer = !is_real(array.dtype);
  char* const first = (*blocks)[static_cast<size_t>(array.block)].memory.get() + array.start;
  for (const int64_t offset : offsets_of(array)) {
    char* const element = first + offset;
    if (is_hostile && mode % 2 == 1) {
      put_integer(element, array.dtype, bytes->raw<int64_t>());
      continue;
    }
    const bool is_special = is_hostile || (has_specials && random.next() % 8 == 0);
    double value = 0.0;
    if (is_special) {
      value = kSpecials[random.next() % std::size(kSpecials)];
    } else if (content == Content::kLogits) {
      value = (2.0 * random.fraction() - 1.0) * scale;
    } else if (content == Content::kTargets) {
      value =
          static_cast<double>(random.next() % static_cast<uint64_t>(std::max<int64_t>(classes, 1)));
      if (mode % 4 == 3 && random.next() % 4 == 0) value = -100.0;
    } else if (mode % 4 == 1) {
      value = kUnits[random.next() % std::size(kUnits)];
    } else if (mode % 4 == 2) {
      value = kUnits[mode / 4 % static_cast<int>(std::size(kUnits))];
    } else {
      value = random.fraction() * (content == Content::kPositive ? 3.0 : 1.0);
    }
    if (is_integer) {
      put_integer(element, array.dtype,
                  value >= -1e18 && value <= 1e18 ? static_cast<int64_t>(value) : -1);
    } else {
      gce::write_real(element, array.dtype, value);
    }
  }
}

double real_at(const char* element, int32_t dtype) { return gce::read_real(element, dtype); }

}  // namespace fuzz
