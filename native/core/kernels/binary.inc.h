// The sigmoid form, elementwise, loss and gradient in one pass. Included by ../kernels.inc.h.
//
// For logit z, target t in [0, 1], pos_weight c, weight v: p1 = sigmoid(z), p0 = 1 - p1,
//
//   loss      v (c t L(p1) + (1 - t) L(p0))                        L, w as in epilogue.inc.h
//   gradient  v (c t w(p1) (p1 - 1) + (1 - t) w(p0) p1)            dL(p)/dz = -w d(log p)/dz
//
// times grad_output over the divisor, after t -> (1 - eps) t + eps / 2. Any shape and strides; the gradient may lie where
// the logits are. kBlock elements at a time are brought into arrays of doubles, whatever their dtype and layout, and
// computed on vectors of them. Which way an element goes depends on its own numbers and on options that are the same for
// all, never on its neighbours, and so do its bits.
//
// With e = e^-|z|: the smaller of p1 and p0 is e / (1 + e), the larger 1 / (1 + e), and 1 - p of one is the other. Of
// both log p is known to full relative accuracy: log(1 - small), and that less |z|. Errors are those of pointwise.inc.h:
// in units of v (c t + 1 - t) below 1e-15 of the loss, relative or, where it is tiny, absolute; below 1e-15 w of the
// gradient. Float logits without threshold go a shorter way (binary_common.inc.h): 1e-9, before results are rounded to
// float. Source: arXiv 2302.13344, for each of the two outcomes.

namespace gce {
namespace {

constexpr int64_t kBlock = 64;
static_assert(kBlock % kEpilogueRows == 0, "no tail within a block");

// One outcome of an element: its probability, with all that loss and gradient weight start from.
struct Outcome {
  TargetProb prob;
  F64 log_p;
  F64 gamma_over_p;
};

struct Outcomes {
  Outcome positive;
  Outcome negative;
};

inline Outcome select(Mask64 mask, const Outcome& yes, const Outcome& no) {
  return {{select(mask, yes.prob.p, no.prob.p),
           select(mask, yes.prob.one_minus_p, no.prob.one_minus_p)},
          select(mask, yes.log_p, no.log_p),
          select(mask, yes.gamma_over_p, no.gamma_over_p)};
}

// log_p and gamma_over_p are left out where nobody needs them.
inline Outcomes outcomes_of(F64 z, F64 gamma, bool needs_log_p, bool needs_gamma_over_p) {
  const F64 zero = broadcast(0.0);
  const F64 one = broadcast(1.0);
  const F64 l = zero - magnitude_of(z);
  const Exponential e = exponential_of(l);
  const F64 exponential = scale_by_integer(e.mantissa, e.exponent);
  const F64 sum = one + exponential;
  const F64 large = one / sum;
  const F64 small = exponential * large;
  const F64 log_large = needs_log_p ? log_one_minus(small) : zero;
  const F64 over_small = needs_gamma_over_p ? gamma_over_exponential(gamma, l, e) * sum : zero;
  const Outcome likely = {{large, small}, log_large, gamma * sum};
  const Outcome unlikely = {{small, large}, log_large + l, over_small};
  const Mask64 is_negative = z < zero;
  return {select(is_negative, unlikely, likely), select(is_negative, likely, unlikely)};
}

// Calls visit(where they are, index of the first, how many) for the runs that elements [at, at + n) lie in.
template <class Visit>
inline void for_each_run_of(const RowProblem& problem, const RowArray& array, int64_t at, int64_t n,
                            Visit visit) {
  const int last = problem.ndim - 1;
  if (is_one_run(problem, array)) return visit(array.data + at * array.strides[last], 0, n);
  for (int64_t done = 0; done < n;) {
    const int64_t inner = (at + done) % problem.shape[last];
    int64_t outer = (at + done) / problem.shape[last];
    const int64_t left = problem.shape[last] - inner;
    const int64_t count = n - done < left ? n - done : left;
    char* p = array.data + inner * array.strides[last];
    for (int d = last - 1; d >= 0; --d) {
      p += outer % problem.shape[d] * array.strides[d];
      outer /= problem.shape[d];
    }
    visit(p, done, count);
    done += count;
  }
}

// One worker: takes chunks until there are none, and works them off in blocks.
class ElementWorker {
 public:
  explicit ElementWorker(const RowProblem& problem)
      : p_(problem),
        wants_loss_(p_.arrays[kLoss].data != nullptr || p_.reduction != GCE_REDUCTION_NONE),
        may_be_common_(p_.arrays[kLogits].dtype != GCE_FLOAT64 && p_.value == GCE_VALUE_PRIMITIVE) {
    for (int64_t i = 0; i < kBlock; ++i) {  // what is the same for all, and lanes past the last
      logit_[i] = target_[i] = complement_[i] = 0.0;
      gamma_[i] = p_.arrays[kGamma].constant;
      threshold_[i] = p_.arrays[kThreshold].constant;
      weight_[i] = p_.arrays[kSampleWeight].constant;
      pos_weight_[i] = p_.arrays[kPosWeight].constant;
      upstream_[i] = p_.arrays[kGradOutput].constant;
    }
    set_inverse_deltas(kBlock);
    set_scales(kBlock);
  }

  void run(NextChunk next, void* chunks, PairSum* loss_sums) {
    run_chunks(p_, next, chunks, loss_sums, [this](int64_t begin, int64_t end) {
      return p_.value == GCE_VALUE_SURROGATE ? run_elements<true>(begin, end)
                                             : run_elements<false>(begin, end);
    });
  }

 private:
  template <bool kSurrogate>
  PairSum run_elements(int64_t begin, int64_t end) {
    LossSum losses;
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t n = end - at < kBlock ? end - at : kBlock;
      load_block(at, n);
      for (int64_t i = 0; i < n; i += kEpilogueRows) {
        if (may_be_common_) {
          compute_common(i);
        } else {
          compute_all<kSurrogate>(i);
        }
      }
      if (wants_loss_) losses.add(loss_, n);
      store_block(at, n);
    }
    return losses.total();
  }

  // Elements i to i + kEpilogueRows - 1 of the block. Those that are not common are compute's.
  void compute_common(int64_t i) {
    const Numbers zero = every(0.0);
    const Numbers one = every(1.0);
    const Numbers logit = load_numbers(logit_ + i);
    const Numbers target = load_numbers(target_ + i);
    const Numbers size = magnitude_of(logit);
    const Marks common =
        (size < every(kLargestCommonLogit)) & (load_numbers(threshold_ + i) == zero);
    const bool all_common = all(common);
    if (!all_common) compute_all<false>(i);
    const auto put = [&](double* array, const Numbers& value) {
      store_numbers(array + i, all_common ? value : select(common, value, load_numbers(array + i)));
    };

    const Numbers gamma = load_numbers(gamma_ + i);
    const Numbers e = common_exponential(zero - size);
    const Numbers of_positive = load_numbers(pos_weight_ + i) * target;
    const Numbers of_negative = load_numbers(complement_ + i);
    const Marks is_cross_entropy = gamma == zero;
    CommonParts parts;
    if (!all(is_cross_entropy)) {
      const CommonElement element = {e, one + e, gamma, one - gamma,
                                     load_numbers(inverse_delta_ + i)};
      parts = element_parts(element, logit, target, of_positive, of_negative);
    }
    if (any(is_cross_entropy)) {
      const CommonParts plain =
          common_cross_entropy(e, size, logit < zero, of_positive, of_negative);
      const bool all_plain = all(is_cross_entropy);
      parts.loss = all_plain ? plain.loss : select(is_cross_entropy, plain.loss, parts.loss);
      parts.slope = all_plain ? plain.slope : select(is_cross_entropy, plain.slope, parts.slope);
    }
    // + 0: no -0 from a weight of 0.
    put(loss_, one_nan(load_numbers(weight_ + i) * parts.loss + zero));
    put(grad_, one_nan(load_numbers(scale_ + i) * parts.slope + zero));
  }

  [[gnu::always_inline]] static CommonParts element_parts(const CommonElement& element,
                                                          const Numbers& logit,
                                                          const Numbers& target,
                                                          const Numbers& of_positive,
                                                          const Numbers& of_negative) {
    const Numbers zero = every(0.0);
    const Marks is_one = of_negative == zero;  // 1 may have been rounded to by label smoothing
    if (all(is_one | (target == zero))) {      // as in compute
      const Marks is_likely = zero < select(is_one, logit, zero - logit);
      const Numbers factor = of_positive + of_negative;
      const CommonParts parts = common_parts(element, is_likely);
      return {factor * parts.loss, factor * select(is_one, zero - parts.slope, parts.slope)};
    }
    const CommonParts positive = common_parts(element, zero < logit);
    const CommonParts negative = common_parts(element, logit < zero);
    return {of_positive * positive.loss + of_negative * negative.loss,
            of_negative * negative.slope - of_positive * positive.slope};
  }

  template <bool kSurrogate>
  void compute_all(int64_t i) {
    for (int u = 0; u < kEpilogueRows; u += F64::kLanes) compute<kSurrogate>(i + u);
  }

  // Loss and w (1 - p) of one outcome.
  struct Parts {
    F64 loss;
    F64 slope;
  };
  template <bool kSurrogate>
  Parts parts_of(const Outcome& of, F64 gamma, F64 b, bool is_cross_entropy) const {
    const F64 zero = broadcast(0.0);
    // What is below comes to the same bits.
    if (is_cross_entropy) return {zero - of.log_p, of.prob.one_minus_p};
    const F64 weight = grad_weight(of.gamma_over_p, gamma, b);
    Parts parts = {zero, weight * of.prob.one_minus_p};
    if (wants_loss_) {
      parts.loss = kSurrogate ? surrogate_loss(of.log_p, weight)
                              : primitive_loss(of.prob, of.log_p, gamma, b);
    }
    return parts;
  }

  // Elements i to i + L - 1 of the block.
  template <bool kSurrogate>
  void compute(int64_t i) {
    const F64 zero = broadcast(0.0);
    const F64 target = load(target_ + i);
    const F64 gamma = load(gamma_ + i);
    const F64 b = load(threshold_ + i);
    const F64 of_positive = load(pos_weight_ + i) * target;
    const F64 of_negative = load(complement_ + i);
    const bool needs_log_p = kSurrogate || any(gamma < broadcast(kTinyGamma)) || any(zero < b);
    const bool is_cross_entropy = all(gamma == zero);
    const Outcomes outcomes = outcomes_of(load(logit_ + i), gamma, needs_log_p, !is_cross_entropy);
    const Mask64 is_one = of_negative == zero;  // as in compute_common
    F64 loss;
    F64 slope;
    if (all(is_one |
            (target == zero))) {  // each has one outcome alone: the same bits, half the work
      const F64 factor = of_positive + of_negative;
      const Outcome outcome = select(is_one, outcomes.positive, outcomes.negative);
      const Parts parts = parts_of<kSurrogate>(outcome, gamma, b, is_cross_entropy);
      loss = counted_loss(factor, parts.loss) + zero;
      slope = factor * parts.slope;
      slope = select(is_one, zero - slope, slope);
    } else {
      const Parts positive = parts_of<kSurrogate>(outcomes.positive, gamma, b, is_cross_entropy);
      const Parts negative = parts_of<kSurrogate>(outcomes.negative, gamma, b, is_cross_entropy);
      loss = counted_loss(of_positive, positive.loss) + counted_loss(of_negative, negative.loss);
      slope = of_negative * negative.slope - of_positive * positive.slope;
    }
    store(loss_ + i, one_nan(counted_loss(load(weight_ + i), loss)));
    store(grad_ + i, one_nan(load(scale_ + i) * slope + zero));  // no -0 from a weight of 0
  }

  void load_block(int64_t at, int64_t n) {
    const struct {
      RowArrayId id;
      double* values;
    } inputs[] = {{kLogits, logit_},        {kTargets, target_},      {kGamma, gamma_},
                  {kThreshold, threshold_}, {kSampleWeight, weight_}, {kPosWeight, pos_weight_},
                  {kGradOutput, upstream_}};
    for (const auto& input : inputs) {
      const RowArray& array = p_.arrays[input.id];
      if (input.id != kLogits && input.id != kTargets && !array.varies) continue;
      for_each_run_of(p_, array, at, n, [&](const char* p, int64_t first, int64_t count) {
        load_strided(p, array.dtype, array.strides[p_.ndim - 1], count, input.values + first);
      });
    }
    if (p_.arrays[kGamma].varies) set_inverse_deltas(n);
    if (p_.arrays[kSampleWeight].varies || p_.arrays[kGradOutput].varies) set_scales(n);
    for (int64_t i = 0; i < n; ++i) complement_[i] = 1.0 - target_[i];
    if (p_.label_smoothing != 0.0) smooth_targets(n);
  }

  void store_block(int64_t at, int64_t n) {
    const struct {
      RowArrayId id;
      const double* values;
    } outputs[] = {{kLoss, loss_}, {kGrad, grad_}};
    for (const auto& output : outputs) {
      const RowArray& array = p_.arrays[output.id];
      if (array.data == nullptr) continue;
      for_each_run_of(p_, array, at, n, [&](char* p, int64_t first, int64_t count) {
        store_strided(output.values + first, array.dtype, count, p, array.strides[p_.ndim - 1]);
      });
    }
  }

  void set_inverse_deltas(int64_t n) {
    for (int64_t i = 0; i < n; ++i) inverse_delta_[i] = 1.0 / (1.0 - gamma_[i]);
  }

  // What multiplies the gradient of an element.
  void set_scales(int64_t n) {
    for (int64_t i = 0; i < n; ++i) scale_[i] = weight_[i] / p_.divisor * upstream_[i];
  }

  // Each by itself: the small one of the two shall have all its digits.
  void smooth_targets(int64_t n) {
    const double kept = 1.0 - p_.label_smoothing;
    const double spread = 0.5 * p_.label_smoothing;
    for (int64_t i = 0; i < n; ++i) {
      target_[i] = target_[i] * kept + spread;
      complement_[i] = complement_[i] * kept + spread;
    }
  }

  const RowProblem& p_;
  const bool wants_loss_;
  const bool may_be_common_;
  alignas(64) double logit_[kBlock + kRoom];
  double target_[kBlock + kRoom];
  double complement_[kBlock + kRoom];  // 1 - target
  double gamma_[kBlock + kRoom];
  double inverse_delta_[kBlock + kRoom];  // 1/(1 - gamma)
  double threshold_[kBlock + kRoom];
  double weight_[kBlock + kRoom];
  double pos_weight_[kBlock + kRoom];
  double upstream_[kBlock + kRoom];
  double scale_[kBlock + kRoom];
  double loss_[kBlock + kRoom];
  double grad_[kBlock + kRoom];
};

void work_on_elements(const RowProblem& p, NextChunk next, void* chunks, PairSum* loss_sums) {
  ElementWorker(p).run(next, chunks, loss_sums);
}

}  // namespace
}  // namespace gce
