"""Fit the polynomials of the kernels and print them as C++.

    python native/tools/polynomials.py > native/core/kernels/polynomials.inc.h

* ``exp2`` for float: q of 2**t = 1 + t q(t), minimal largest relative error, for |t| up to half
  the distance of the powers 2**(j / 2**bits) that a table holds (bits = 0: of 1 alone).
  Coefficients are rounded one at a time, each time fitting the rest anew by linear programming. The
  table's entries are the bits of 2**(j / 2**bits) less those of j that `power` adds to them
  (native/core/simd/README.md).
* ``exp2`` for double: q for bits = 0, the Chebyshev fit at 60 digits, far below half an ulp.
* ``expm1``: Chebyshev fit of (e**x - 1)/x.
* ``log``: with s = f/(2 + f), log(1 + f) = 2s + s z R(z), z = s**2, for 1 + f from sqrt(1/2)
  to sqrt(2).
* Shorter ones of both for what ends as a float; the logarithm for 1 + f from 1/2 to 2.

Needs mpmath, numpy and scipy (the project's dependency group "dev").
"""

import mpmath
import numpy as np
from scipy.optimize import linprog

mpmath.mp.dps = 60


def fit_exp2_float(degree: int, low: float, high: float) -> list[float]:
    t = (low + high) / 2 + (high - low) / 2 * np.cos(np.linspace(0, np.pi, 4001))
    powers = np.vander(t, degree + 1, increasing=True) / np.exp2(t)[:, None]
    scale = 1e8  # the program's tolerances are absolute
    fixed = [1.0]  # 2^0 is exactly 1
    while len(fixed) <= degree:
        done = len(fixed)
        target = (1 - powers[:, :done] @ np.array(fixed)) * scale
        free = powers[:, done:]
        bound = -np.ones((len(t), 1))
        a_ub = np.block([[free, bound], [-free, bound]])
        cost = np.zeros(free.shape[1] + 1)
        cost[-1] = 1
        answer = linprog(cost, a_ub, np.concatenate([target, -target]), bounds=(None, None))
        fixed.append(float(np.float32(answer.x[0] / scale)))
    return fixed


def fit_exp2_quotient_double(degree: int, high: float) -> list[float]:
    def quotient(t: mpmath.mpf) -> mpmath.mpf:
        t = mpmath.mpf(t)
        return (mpmath.mpf(2) ** t - 1) / t if t else mpmath.log(2)

    coefficients = mpmath.chebyfit(quotient, [-high, high], degree + 1)
    return [float(c) for c in reversed(coefficients)]


def exp2_table(bits: int) -> list[int]:
    powers = [np.float32(mpmath.mpf(2) ** (mpmath.mpf(j) / 2**bits)) for j in range(2**bits)]
    return [int(power.view(np.uint32)) - (j << (23 - bits)) for j, power in enumerate(powers)]


def fit_log(degree: int, largest_ratio: mpmath.mpf) -> list[float]:
    largest = ((largest_ratio - 1) / (largest_ratio + 1)) ** 2

    def remainder(z: mpmath.mpf) -> mpmath.mpf:
        z = mpmath.mpf(z)
        if z < mpmath.mpf(10) ** -12:
            return mpmath.mpf(2) / 3 + 2 * z / 5
        s = mpmath.sqrt(z)
        return (2 * mpmath.atanh(s) - 2 * s) / (s * z)

    coefficients = mpmath.chebyfit(remainder, [mpmath.mpf(0), largest], degree + 1)
    return [float(c) for c in reversed(coefficients)]


def fit_expm1(degree: int) -> list[float]:
    coefficients = mpmath.chebyfit(
        lambda x: mpmath.expm1(x) / x if x else mpmath.mpf(1), [-0.5, 0.5], degree + 1
    )
    return [float(c) for c in reversed(coefficients)]


def largest_relative_error(coefficients: list[float], low: float, high: float) -> float:
    worst = mpmath.mpf(0)
    for t in mpmath.linspace(low, high, 2001):
        value = sum(mpmath.mpf(c) * t**k for k, c in enumerate(coefficients))
        worst = max(worst, abs(value / mpmath.mpf(2) ** t - 1))
    return float(worst)


def declare(name: str, scalar: str, coefficients: list[float], comment: str) -> None:
    suffix = "f" if scalar == "float" else ""
    print(f"// {comment}")
    print(f"constexpr {scalar} {name}[] = {{")
    for c in coefficients:
        print(f"    {c.hex()}{suffix},")
    print("};\n")


def main() -> None:
    print("// Written by native/tools/polynomials.py; constant term first.")
    print("// Included by ../kernels.inc.h.\n// clang-format off\n")
    print("namespace gce {\nnamespace {\n")
    for bits, degree in ((0, 5), (3, 3), (5, 2)):
        high = 0.5 ** (bits + 1)
        coefficients = fit_exp2_float(degree, -high, high)
        error = largest_relative_error(coefficients, -high, high)
        comment = f"q of 2^t = 1 + t q(t), |t| <= 2^-{bits + 1}: relative error of 2^t {error:.2g}."
        declare(f"kExp2QuotientF32Bits{bits}", "float", coefficients[1:], comment)
        if bits:
            print(f"// 2^(j / 2^{bits}) rounded to float, as bits, less j << {23 - bits}.")
            print(f"constexpr uint32_t kExp2TableBits{bits}[] = {{")
            for entry in exp2_table(bits):
                print(f"    {entry:#010x}u,")
            print("};\n")
    for name, degree in (("", 10), ("Short", 6)):
        coefficients = fit_exp2_quotient_double(degree, 0.5)
        error = largest_relative_error([1.0, *coefficients], -0.5, 0.5)
        comment = f"The same for double and |t| <= 1/2: relative error of 2^t {error:.2g}."
        declare(f"kExp2QuotientF64{name}", "double", coefficients, comment)
    comment = "R(z) of log(1 + f) = 2s + s z R(z), z = s^2, s = f/(2 + f)."
    declare("kLog", "double", fit_log(6, mpmath.sqrt(2)), comment)
    comment = "The same to a relative error of 4e-10, for 1 + f from 1/2 to 2."
    declare("kLogShort", "double", fit_log(4, mpmath.mpf(2)), comment)
    declare("kExpm1", "double", fit_expm1(12), "(e^x - 1)/x on [-1/2, 1/2].")
    print("}  // namespace\n}  // namespace gce")


if __name__ == "__main__":
    main()
