// Written by native/tools/polynomials.py; constant term first.
// Included by ../kernels.inc.h.
// clang-format off

namespace gce {
namespace {

// q of 2^t = 1 + t q(t), |t| <= 2^-1: relative error of 2^t 9.3e-08.
constexpr float kExp2QuotientF32Bits0[] = {
    0x1.62e42a0000000p-1f,
    0x1.ebf9c20000000p-3f,
    0x1.c6b6d80000000p-5f,
    0x1.3ce8ac0000000p-7f,
    0x1.5bda400000000p-10f,
};

// q of 2^t = 1 + t q(t), |t| <= 2^-4: relative error of 2^t 2.6e-08.
constexpr float kExp2QuotientF32Bits3[] = {
    0x1.62e4320000000p-1f,
    0x1.ec0c220000000p-3f,
    0x1.c690ca0000000p-5f,
};

// 2^(j / 2^3) rounded to float, as bits, less j << 20.
constexpr uint32_t kExp2TableBits3[] = {
    0x3f800000u,
    0x3f7b95c2u,
    0x3f7837f0u,
    0x3f75fed7u,
    0x3f7504f3u,
    0x3f75672au,
    0x3f7744fdu,
    0x3f7ac0c7u,
};

// q of 2^t = 1 + t q(t), |t| <= 2^-6: relative error of 2^t 5.3e-08.
constexpr float kExp2QuotientF32Bits5[] = {
    0x1.62e5840000000p-1f,
    0x1.ebfbde0000000p-3f,
};

// 2^(j / 2^5) rounded to float, as bits, less j << 18.
constexpr uint32_t kExp2TableBits5[] = {
    0x3f800000u,
    0x3f7ecd87u,
    0x3f7daac3u,
    0x3f7c980fu,
    0x3f7b95c2u,
    0x3f7aa43au,
    0x3f79c3d3u,
    0x3f78f4f0u,
    0x3f7837f0u,
    0x3f778d3au,
    0x3f76f532u,
    0x3f767043u,
    0x3f75fed7u,
    0x3f75a15bu,
    0x3f75583fu,
    0x3f7523f6u,
    0x3f7504f3u,
    0x3f74fbafu,
    0x3f7508a4u,
    0x3f752c4du,
    0x3f75672au,
    0x3f75b9beu,
    0x3f76248cu,
    0x3f76a81eu,
    0x3f7744fdu,
    0x3f77fbb8u,
    0x3f78ccdfu,
    0x3f79b907u,
    0x3f7ac0c7u,
    0x3f7be4bau,
    0x3f7d257du,
    0x3f7e83b3u,
};

// The same for double and |t| <= 1/2: relative error of 2^t 2e-17.
constexpr double kExp2QuotientF64[] = {
    0x1.62e42fefa39efp-1,
    0x1.ebfbdff82c598p-3,
    0x1.c6b08d704a0c2p-5,
    0x1.3b2ab6fba1ddap-7,
    0x1.5d87fe78a5276p-10,
    0x1.430913096fd9fp-13,
    0x1.ffcbfc670dcd4p-17,
    0x1.62bfd47773353p-20,
    0x1.b524fae627834p-24,
    0x1.e6063f7217bc6p-28,
    0x1.e9d3fe3952179p-32,
};

// The same for double and |t| <= 1/2: relative error of 2^t 1.1e-10.
constexpr double kExp2QuotientF64Short[] = {
    0x1.62e42fefa39efp-1,
    0x1.ebfbe045f4d3cp-3,
    0x1.c6b08d883dca1p-5,
    0x1.3b2a1b7152befp-7,
    0x1.5d879ead06a82p-10,
    0x1.443fffc90db59p-13,
    0x1.00a581594758ep-16,
};

// R(z) of log(1 + f) = 2s + s z R(z), z = s^2, s = f/(2 + f).
constexpr double kLog[] = {
    0x1.5555555555558p-1,
    0x1.99999999952e2p-2,
    0x1.2492492df148dp-2,
    0x1.c71c62e5800a1p-3,
    0x1.7462b4ab2ef6bp-3,
    0x1.39fe606542ddep-3,
    0x1.2b584aae78a57p-3,
};

// The same to a relative error of 4e-10, for 1 + f from 1/2 to 2.
constexpr double kLogShort[] = {
    0x1.5555558d7fe22p-1,
    0x1.9998d485cf47ep-2,
    0x1.24c926a40acd3p-2,
    0x1.bc8cf8ddd5876p-3,
    0x1.dba25f0718ee6p-3,
};

// (e^x - 1)/x on [-1/2, 1/2].
constexpr double kExpm1[] = {
    0x1.0000000000000p+0,
    0x1.0000000000000p-1,
    0x1.5555555555555p-3,
    0x1.55555555555e5p-5,
    0x1.1111111111137p-7,
    0x1.6c16c16bf2c5dp-10,
    0x1.a01a01a006d2ap-13,
    0x1.a01a021b73430p-16,
    0x1.71de3a972f8cap-19,
    0x1.27e42df3ab7bcp-22,
    0x1.ae637b5a397c8p-26,
    0x1.2036290a2a4e6p-29,
    0x1.6282cd6876bd7p-33,
};

}  // namespace
}  // namespace gce
