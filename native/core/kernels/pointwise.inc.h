// Elementwise functions of l = log p: the loops of the numpy ufuncs. Included by ../kernels.inc.h.
//
//   loss (l, gamma, b)   grad_weight (l, gamma, b)   gamma_grad (l, gamma) = dL/dgamma at b = 0
//
// l and the result are float or double; gamma and b are double always, as is the arithmetic. Any
// strides; out may be an input, or overlap inputs. Errors below 4 ulp of normal results, of gamma_grad below 20: its
// subtraction cancels where v is just too large for the series.

namespace gce {
namespace {

inline TargetProb target_prob_of(F64 l, const Exponential& e) {
  const F64 zero = broadcast(0.0);
  const F64 p = scale_by_integer(e.mantissa, e.exponent);
  const Mask64 near_zero = broadcast(-0.5) < l;
  const F64 small = select(near_zero, l, zero);
  const F64 bounded = select(broadcast(0.5) < small, zero, small);
  const F64 expm1 = bounded * horner<12>(bounded, kExpm1);
  const F64 direct = broadcast(1.0) - p;
  F64 one_minus_p = select(near_zero, zero - expm1, direct);
  one_minus_p = select(broadcast(0.5) < l, direct, one_minus_p);
  return {p, one_minus_p};
}

inline F64 pointwise_loss(F64 l, F64 gamma, F64 b) {
  const TargetProb t = target_prob_of(l, exponential_of(l));
  return select(l == l, primitive_loss(t, l, gamma, b), l);
}

// gamma / e^l, given e = e^l.
inline F64 gamma_over_exponential(F64 gamma, F64 l, const Exponential& e) {
  const F64 scaled =
      (gamma * broadcast(0x1p64)) / e.mantissa;  // a subnormal gamma keeps its digits
  const F64 gamma_over_p = scale_by_integer(scaled, broadcast(-64.0) - e.exponent);
  return select(l < broadcast(kLeastLogP), gamma_over_zero(gamma), gamma_over_p);
}

inline F64 pointwise_grad_weight(F64 l, F64 gamma, F64 b) {
  return grad_weight(gamma_over_exponential(gamma, l, exponential_of(l)), gamma, b);
}

inline F64 pointwise_gamma_grad(F64 l, F64 gamma) {
  return gamma_grad(target_prob_of(l, exponential_of(l)), l, gamma, broadcast(0.0));
}

// Whether an input may be what another element wrote, as in numpy's reduce and accumulate: then one follows the other.
template <class Scalar>
inline bool is_sequential(int inputs, int64_t n, char* const* args, const int64_t* strides) {
  const auto first = [&](int a) { return args[a] + (strides[a] < 0 ? (n - 1) * strides[a] : 0); };
  const auto last = [&](int a) { return args[a] + (strides[a] < 0 ? 0 : (n - 1) * strides[a]); };
  const int out = inputs;
  const auto size = static_cast<int64_t>(sizeof(double));
  for (int a = 0; a < inputs; ++a) {
    const int64_t own = a == 0 ? static_cast<int64_t>(sizeof(Scalar)) : size;
    const bool is_apart = strides[a] >= own || strides[a] <= -own;  // from the next element
    const bool is_out = args[a] == args[out] && strides[a] == strides[out] && is_apart;
    if (!is_out && first(a) < last(out) + size && first(out) < last(a) + size) return true;
  }
  return false;
}

template <class Scalar>
int64_t pointwise_loop(gce_pointwise_op op, int64_t n, char* const* args, const int64_t* strides) {
  constexpr int kLanes = F64::kLanes;
  const int inputs = inputs_of(op);
  const int at_once = n > 1 && is_sequential<Scalar>(inputs, n, args, strides) ? 1 : kLanes;
  const double nan = __builtin_nan("");
  int64_t out_of_range = 0;
  for (int64_t start = 0; start < n; start += at_once) {
    const int64_t count = n - start < at_once ? n - start : at_once;
    double in[3][kLanes] = {};
    double out[kLanes];
    for (int64_t i = 0; i < count; ++i) {
      for (int a = 0; a < inputs; ++a) {
        const char* element = args[a] + (start + i) * strides[a];
        const double x =
            a == 0 ? static_cast<double>(read<Scalar>(element)) : read<double>(element);
        const bool bad = a > 0 && (x < 0.0 || x > 1.0);
        out_of_range += bad;
        in[a][i] = bad ? nan : x;
      }
    }
    const F64 l = load(in[0]);
    const F64 gamma = load(in[1]);
    const F64 b = load(in[2]);
    if (op == GCE_POINTWISE_LOSS) {
      store(out, pointwise_loss(l, gamma, b));
    } else if (op == GCE_POINTWISE_GRAD_WEIGHT) {
      store(out, pointwise_grad_weight(l, gamma, b));
    } else {
      store(out, pointwise_gamma_grad(l, gamma));
    }
    for (int64_t i = 0; i < count; ++i) {
      const bool is_nan = in[0][i] != in[0][i] || in[1][i] != in[1][i] || in[2][i] != in[2][i];
      write(args[inputs] + (start + i) * strides[inputs],
            static_cast<Scalar>(is_nan ? nan : out[i]));
    }
  }
  return out_of_range;
}

int64_t pointwise(gce_pointwise_op op, gce_dtype dtype, int64_t n, char* const* args,
                  const int64_t* strides) {
  return dtype == GCE_FLOAT32 ? pointwise_loop<float>(op, n, args, strides)
                              : pointwise_loop<double>(op, n, args, strides);
}

}  // namespace
}  // namespace gce
