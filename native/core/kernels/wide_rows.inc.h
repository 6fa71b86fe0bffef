// Rows one at a time, in double whatever the logits are: for probability targets, softcap and second derivatives, which
// the fast passes do not have. Included by ../kernels.inc.h.
//
//   x = kappa tanh(z / kappa), or z;  q = softmax(x);  c the class weights, t the targets (one-hot for an index)
//   loss      s ((1 - eps) sum_k c_k t_k L(q_k) + (eps / V) sum_v c_v (-log q_v) + lambda logsumexp(x)^2)
//   gradient  q_j G - a_j - eps_j,  a_k = s (1 - eps) c_k t_k w_b(q_k),  eps_j = s (eps / V) c_j,
//             G = sum_k a_k + sum_v eps_v + 2 s lambda logsumexp(x)
//   product   of the Hessian and u:  q_j (M + G (u_j - q.u) + 2 s lambda q.u) - m_j,
//             m_k = a_k (1 - d w(q_k)) (u_k - q.u), 0 where the threshold acts;  M = sum_k m_k
//             Gauss-Newton: without m and M, and with max(0, logsumexp) in G
//   softcap   x' = 1 - tanh^2, x'' = -2 tanh x' / kappa: the gradient times x'; the product with x' u for u, times x',
//             plus gradient_j x''_j u_j
//
// A row is brought into scratch, padded to whole vectors with classes of probability 0, and its result from there to
// where it belongs. So strides and dtypes are load_row's and store_row's alone, the gradient may replace the logits, and a
// row's bits depend on nothing but the row.

namespace gce {
namespace {

// One row: its options, and what its first pass found.
struct WideRow {
  double gamma;
  double threshold;
  double log_sum;   // log sum_v e_v
  double sum_high;  // sum_v e_v = sum_high + sum_low, e_v = exp(x_v - maximum)
  double sum_low;
  bool needs_log;  // the classes' log q
};

// What its targets add up to.
struct TargetSums {
  double loss;         // sum_k c_k t_k L(q_k)
  double weight;       // sum_k a_k, and below that: but for the row's own factor
  double turn;         // sum_k m_k
  double gamma_grad;   // sum_k c_k t_k dL/dgamma
  double log_prob;     // sum_k t_k log q_k
  double grad_weight;  // sum_k t_k w_b(q_k)
};

// F64::kLanes classes.
struct ClassTerms {
  F64 loss;
  F64 weight;  // w_b
  F64 turn;    // 1 - d w, by which w changes relatively with log q; 0 where the threshold acts
  F64 log_prob;
  F64 gamma_grad;
};

// Of classes with e = exp(d), d = x - maximum.
inline ClassTerms class_terms(const WideRow& row, const EpilogueNeeds& needs, F64 e, F64 d) {
  const F64 zero = broadcast(0.0);
  const F64 one = broadcast(1.0);
  const F64 gamma = broadcast(row.gamma);
  const F64 delta = one - gamma;
  const F64 b = broadcast(row.threshold);
  const F64 sum = broadcast(row.sum_high + row.sum_low);
  const F64 rest = max(zero, (broadcast(row.sum_high) - e) + broadcast(row.sum_low));
  const TargetProb prob = {e / sum, rest / sum};
  ClassTerms terms = {zero, zero, zero, zero, zero};
  if (row.needs_log) {
    const F64 l = d - broadcast(row.log_sum);
    terms.log_prob = any(prob.one_minus_p < broadcast(0.5)) ? log_prob(prob, l) : l;
  }
  const Mask64 vanishes = e == zero;
  const F64 scaled =
      (gamma * broadcast(0x1p64)) * (sum / select(vanishes, one, e));  // as in target_stats
  const F64 gamma_over_p = select(vanishes, gamma_over_zero(gamma), scaled * broadcast(0x1p-64));
  const F64 w = one / (delta + gamma_over_p);
  terms.weight = max(b, w);
  terms.turn = select(w < b, zero, one - delta * w);
  if (needs.loss) {
    terms.loss = needs.surrogate ? surrogate_loss(terms.log_prob, terms.weight)
                                 : primitive_loss(prob, terms.log_prob, gamma, b);
  }
  if (needs.gamma_grad) terms.gamma_grad = gamma_grad(prob, terms.log_prob, gamma, b);
  return terms;
}

// counted_loss of one row.
inline double counted(double weight, double value) {
  return value == value && weight == 0.0 ? 0.0 : weight * value;
}

inline double total_of(const WideSum<F64>& sums) { return value_of(sum_of_lanes(sums)); }

inline int64_t padded_classes(int64_t classes) {
  return (classes + F64::kLanes - 1) / F64::kLanes * F64::kLanes;
}

// The buffers of a worker, each of a row padded to whole vectors.
struct WideBuffers {
  double* x;      // logits, capped; then less their maximum
  double* e;      // exponentials; then the result
  double* a;      // targets; then a_k, but for the row's factor
  double* slope;  // of the cap: x'
  double* u;      // the vector, times x'
  double* turn;   // m_k, but for the row's factor
  double* bend;   // x'' u

  // Lays them out, or with scratch null only counts their bytes.
  static size_t lay_out(const RowProblem& p, char* scratch, WideBuffers* buffers) {
    const size_t bytes = static_cast<size_t>(padded_classes(p.classes)) * sizeof(double);
    const bool caps = p.softcap != 0.0;
    const bool product = p.arrays[kVector].data != nullptr;
    const bool wanted[] = {true, true, true, caps, product, product, product && caps};
    double** const all[] = {&buffers->x, &buffers->e,    &buffers->a,   &buffers->slope,
                            &buffers->u, &buffers->turn, &buffers->bend};
    size_t used = 0;
    for (int i = 0; i < 7; ++i) {
      *all[i] =
          wanted[i] && scratch != nullptr ? reinterpret_cast<double*>(scratch + used) : nullptr;
      used += wanted[i] ? bytes : 0;
    }
    return used;
  }
};

template <class Storage>
class WideWorker {
 public:
  WideWorker(const RowProblem& problem, char* scratch)
      : p_(problem), needs_(needs_of(problem)), padded_(padded_classes(problem.classes)) {
    WideBuffers::lay_out(p_, scratch, &of_);
    fill_constants(p_, &tile_);
    tile_.rows = 1;
    for (int64_t v = 0; v < padded_; ++v) {
      of_.a[v] = 0.0;
      if (has_product()) of_.turn[v] = 0.0;
    }
  }

  void run(NextChunk next, void* chunks, PairSum* loss_sums) {
    run_chunks(p_, next, chunks, loss_sums,
               [this](int64_t begin, int64_t end) { return run_rows(begin, end); });
  }

 private:
  PairSum run_rows(int64_t begin, int64_t end) {
    RowCursor cursor(p_, begin);
    LossSum losses;
    for (int64_t r = begin; r < end; ++r) {
      const RowCursor at = cursor;
      load_tile(p_, &cursor, &tile_);
      do_row(at);
      store_tile(at, tile_);
      if (needs_.loss) losses.add(tile_.loss, 1);
    }
    return losses.total();
  }

  bool has_product() const { return of_.u != nullptr; }
  bool has_bend() const { return of_.bend != nullptr && !p_.gauss_newton; }

  void do_row(const RowCursor& at) {
    first_pass(at);
    double sample_weight = 0.0;
    read_option(p_, at, kSampleWeight, 1, &sample_weight);
    const bool is_nan = row_.sum_high != row_.sum_high;
    TargetSums sums = {};
    if (!tile_.ignored(0) && !is_nan) {
      if (has_product()) load_vector(at);
      sums = p_.targets_are_probabilities ? sum_targets(at) : sum_of_index();
    }
    write_outputs(sums, sample_weight, is_nan);
    if (needs_.grad) write_grad(at, sums, sample_weight, is_nan);
    if (!p_.targets_are_probabilities && !tile_.ignored(0)) {
      of_.a[tile_.target[0]] = 0.0;
      if (has_product()) of_.turn[tile_.target[0]] = 0.0;
    }
  }

  // x, then its exponentials and their sum; what label smoothing and the statistics need beside it.
  void first_pass(const RowCursor& at) {
    const double infinity = __builtin_inf();
    load_row(at.pointer(kLogits), p_.arrays[kLogits].dtype, p_.logits_class_stride, p_.classes,
             -infinity, of_.x);
    if (at.has(kArgmax)) {
      tile_.argmax[0] = first_equal(of_.x, p_.classes, broadcast(row_max(of_.x, p_.classes)));
      const int64_t nan = first_nan(of_.x, p_.classes);
      if (nan >= 0) tile_.argmax[0] = nan;
    }
    if (of_.slope != nullptr) cap_row(p_.softcap, padded_, of_.x, of_.slope);
    for (int64_t v = p_.classes; v < padded_; ++v) of_.x[v] = -infinity;

    maximum_ = row_max(of_.x, p_.classes);
    const F64 maximum = broadcast(maximum_);
    const F64 zero = broadcast(0.0);
    WideSum<F64> sums;
    WideSum<F64> spread;
    for (int64_t v = 0; v < padded_; v += F64::kLanes) {
      const F64 d = load(of_.x + v) - maximum;
      const F64 e = exp_of(d);
      store(of_.x + v, d);
      store(of_.e + v, e);
      sums.add(e);
      if (p_.label_smoothing != 0.0) spread.add(counted_loss(load(p_.wide_weights + v), zero - d));
    }
    const PairSum sum = sum_of_lanes(sums);
    row_.sum_high = sum.high;
    row_.sum_low = sum.low;
    row_.log_sum = first_lane(log(broadcast(sum.high + sum.low)));
    row_.gamma = tile_.gamma[0];
    row_.threshold = tile_.threshold[0];
    row_.needs_log = needs_.beside_loss_and_grad() || needs_.surrogate || row_.gamma < kTinyGamma ||
                     row_.threshold > 0.0;
    logsumexp_ = maximum_ + row_.log_sum;
    spread_ = total_of(spread);
  }

  // The vector, and its mean over q.
  void load_vector(const RowCursor& at) {
    load_row(at.pointer(kVector), p_.arrays[kVector].dtype, p_.vector_class_stride, p_.classes, 0.0,
             of_.u);
    const F64 two_over_cap = broadcast(-2.0 / p_.softcap);
    WideSum<F64> mean;
    for (int64_t v = 0; v < padded_; v += F64::kLanes) {
      F64 u = load(of_.u + v);
      if (of_.slope != nullptr) {
        // x'' = -2 tanh x' / kappa, and tanh = x / kappa, where x is what its maximum was taken from.
        const F64 slope = load(of_.slope + v);
        const F64 tanh = (load(of_.x + v) + broadcast(maximum_)) / broadcast(p_.softcap);
        store(of_.bend + v, two_over_cap * tanh * slope * u);
        u = slope * u;
        store(of_.u + v, u);
      }
      mean.add(load(of_.e + v) * u);
    }
    vector_mean_ = total_of(mean) / (row_.sum_high + row_.sum_low);
  }

  double weight_of(int64_t v) const {
    return p_.wide_weights != nullptr ? p_.wide_weights[v] : 1.0;
  }

  TargetSums sum_of_index() {
    const int64_t y = tile_.target[0];
    const double c = weight_of(y);
    const ClassTerms terms = class_terms(row_, needs_, broadcast(of_.e[y]), broadcast(of_.x[y]));
    const double weight = c * first_lane(terms.weight);
    of_.a[y] = weight;
    double turn = 0.0;
    if (has_product() && !p_.gauss_newton) {
      turn = of_.turn[y] = weight * first_lane(terms.turn) * (of_.u[y] - vector_mean_);
    }
    return {counted(c, first_lane(terms.loss)),
            weight,
            turn,
            counted(c, first_lane(terms.gamma_grad)),
            first_lane(terms.log_prob),
            first_lane(terms.weight)};
  }

  TargetSums sum_targets(const RowCursor& at) {
    load_row(at.pointer(kTargets), p_.arrays[kTargets].dtype, p_.targets_class_stride, p_.classes,
             0.0, of_.a);
    const F64 zero = broadcast(0.0);
    const bool turns = has_product() && !p_.gauss_newton;
    WideSum<F64> loss, weight, turn, gamma_grad, log_prob, grad_weight;
    for (int64_t v = 0; v < padded_; v += F64::kLanes) {
      const F64 t = load(of_.a + v);
      if (turns) store(of_.turn + v, zero);
      if (all(t == zero)) continue;
      const ClassTerms terms = class_terms(row_, needs_, load(of_.e + v), load(of_.x + v));
      const F64 c = p_.wide_weights != nullptr ? load(p_.wide_weights + v) : broadcast(1.0);
      const F64 ct = c * t;
      const F64 a = ct * terms.weight;
      store(of_.a + v, a);
      weight.add(a);
      if (turns) {
        const F64 m = a * terms.turn * (load(of_.u + v) - broadcast(vector_mean_));
        store(of_.turn + v, m);
        turn.add(m);
      }
      if (needs_.loss) loss.add(counted_loss(ct, terms.loss));
      if (needs_.gamma_grad) gamma_grad.add(counted_loss(ct, terms.gamma_grad));
      if (needs_.statistics) {
        log_prob.add(counted_loss(t, terms.log_prob));
        grad_weight.add(t * terms.weight);
      }
    }
    return {total_of(loss),       total_of(weight),   total_of(turn),
            total_of(gamma_grad), total_of(log_prob), total_of(grad_weight)};
  }

  // The factor of what a row's targets, and of what label smoothing and z-loss, add to it.
  double spread_share() const { return p_.label_smoothing / static_cast<double>(p_.classes); }

  void write_outputs(const TargetSums& sums, double sample_weight, bool is_nan) {
    const double nan = __builtin_nan("");
    const auto put = [&](double* to, double x) {
      *to = tile_.ignored(0) ? 0.0 : is_nan || x != x ? nan : x;
    };
    const double kept = sample_weight * (1.0 - p_.label_smoothing);
    double loss = counted(kept, sums.loss);
    if (p_.label_smoothing != 0.0) {
      const double smooth = p_.wide_weight_sum * row_.log_sum + spread_;
      loss += counted(sample_weight * spread_share(), smooth);
    }
    if (p_.z_loss != 0.0) loss += counted(sample_weight * p_.z_loss, logsumexp_ * logsumexp_);
    put(tile_.loss, loss);
    put(tile_.target_log_prob, sums.log_prob);
    put(tile_.grad_weight, sums.grad_weight);
    put(tile_.gamma_grad, counted(kept / p_.divisor * tile_.upstream[0], sums.gamma_grad));
    tile_.logsumexp[0] = is_nan ? nan : logsumexp_;
  }

  // The gradient or the product, in the place of the exponentials.
  void write_grad(const RowCursor& at, const TargetSums& sums, double sample_weight, bool is_nan) {
    if (tile_.ignored(0) || is_nan) {
      const double of_all = is_nan && !tile_.ignored(0) ? __builtin_nan("") : 0.0;
      for (int64_t v = 0; v < p_.classes; ++v) of_.e[v] = of_all;
    } else {
      const double scale = sample_weight / p_.divisor * tile_.upstream[0];
      const double kept = scale * (1.0 - p_.label_smoothing);
      const double smooth = scale * spread_share();
      const double share = 2.0 * (scale * p_.z_loss);
      const double lse = has_product() && p_.gauss_newton && logsumexp_ < 0.0 ? 0.0 : logsumexp_;
      double of_all = kept * sums.weight;
      if (smooth != 0.0) of_all += smooth * p_.wide_weight_sum;
      if (share != 0.0) of_all += share * lse;
      const double moved = kept * sums.turn + (share != 0.0 ? share * vector_mean_ : 0.0);
      fill_grad({kept, smooth, of_all, moved});
    }
    store_row<Storage>(of_.e, p_.arrays[kGrad].dtype, p_.classes, at.pointer(kGrad),
                       p_.grad_class_stride);
  }

  struct GradTerms {
    double kept;    // the factor of a and m
    double smooth;  // of the class weights
    double of_all;  // G
    double moved;   // M and z-loss's part
  };
  void fill_grad(const GradTerms& terms) {
    const F64 sum = broadcast(row_.sum_high + row_.sum_low);
    const F64 kept = broadcast(terms.kept);
    const F64 of_all = broadcast(terms.of_all);
    const F64 smooth = broadcast(terms.smooth);
    for (int64_t v = 0; v < padded_; v += F64::kLanes) {
      const F64 q = load(of_.e + v) / sum;
      F64 result = q * of_all - kept * load(of_.a + v);
      if (terms.smooth != 0.0) result = result - smooth * load(p_.wide_weights + v);
      if (has_product()) {
        const F64 grad = result;
        const F64 u = load(of_.u + v) - broadcast(vector_mean_);
        result = q * (broadcast(terms.moved) + of_all * u) - kept * load(of_.turn + v);
        if (of_.slope != nullptr) result = result * load(of_.slope + v);
        if (has_bend()) result = result + grad * load(of_.bend + v);
      } else if (of_.slope != nullptr) {
        result = result * load(of_.slope + v);
      }
      store(of_.e + v, one_nan(result) + broadcast(0.0));
    }
  }

  const RowProblem& p_;
  const EpilogueNeeds needs_;
  const int64_t padded_;
  WideBuffers of_;
  Tile<Storage> tile_;  // of one row
  WideRow row_ = {};
  double maximum_ = 0.0;
  double logsumexp_ = 0.0;
  double spread_ = 0.0;       // for label smoothing, sum_v c_v (maximum - x_v)
  double vector_mean_ = 0.0;  // q.u
};

inline void lay_out_wide(RowProblem* p) {
  WideBuffers none;
  p->layout = kRowsWide;
  p->stream_grad = p->keeps = false;
  p->tile_rows = 1;
  p->ring_rows = p->line_count = 0;
  p->scratch_bytes = WideBuffers::lay_out(*p, nullptr, &none);
  p->chunk_rows = rows_of_chunk(p->classes);
}

}  // namespace
}  // namespace gce
