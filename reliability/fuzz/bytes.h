// What a fuzzer's bytes are read as. Past their end there are zeros, and zero is always the ordinary choice: a short input
// is a plain, valid call, and each byte more makes it stranger.
#ifndef GCE_RELIABILITY_FUZZ_BYTES_H_
#define GCE_RELIABILITY_FUZZ_BYTES_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fuzz {

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  uint8_t byte() { return at_ < size_ ? data_[at_++] : 0; }
  template <class T>
  T raw() {
    uint8_t bytes[sizeof(T)];
    for (uint8_t& one : bytes) one = byte();
    T value;
    std::memcpy(&value, bytes, sizeof(T));
    return value;
  }
  // In [0, n), n <= 256.
  int below(int n) { return byte() % n; }
  // For one byte in n.
  bool rarely(int n) { return byte() % n == n - 1; }
  template <class T, size_t kCount>
  T one_of(const T (&choices)[kCount]) {
    static_assert(kCount <= 256);
    return choices[below(kCount)];
  }

  int64_t any_integer() {
    constexpr int64_t kEdges[] = {0,
                                  1,
                                  -1,
                                  2,
                                  -2,
                                  63,
                                  64,
                                  65,
                                  INT32_MAX,
                                  INT32_MIN,
                                  int64_t{1} << 31,
                                  int64_t{1} << 32,
                                  int64_t{1} << 56,
                                  (int64_t{1} << 58) - 1,
                                  int64_t{1} << 58,
                                  int64_t{1} << 60,
                                  int64_t{1} << 62,
                                  -(int64_t{1} << 62),
                                  INT64_MAX,
                                  INT64_MIN};
    switch (below(4)) {
      case 0:
        return static_cast<int8_t>(byte());
      case 1:
        return one_of(kEdges);
      case 2:
        return raw<int16_t>();
      default:
        return raw<int64_t>();
    }
  }

  double any_real() {
    constexpr double kEdges[] = {0.0,        -0.0,
                                 1.0,        -1.0,
                                 0.5,        1e-300,
                                 4.9e-324,   1e300,
                                 -1e300,     0x1.fffffffffffffp-1,
                                 1.5,        kInfinity,
                                 -kInfinity, __builtin_nan("")};
    return rarely(2) ? raw<double>() : one_of(kEdges);
  }

 private:
  static constexpr double kInfinity = __builtin_inf();
  const uint8_t* data_;
  size_t size_;
  size_t at_ = 0;
};

// Numbers that follow from one byte of the input: arrays hold more of them than an input has bytes.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}

  uint64_t next() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = (state_ ^ (state_ >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // In [0, 1).
  double fraction() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  uint64_t state_;
};

}  // namespace fuzz

#endif  // GCE_RELIABILITY_FUZZ_BYTES_H_
