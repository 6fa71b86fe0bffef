// Probability targets, softcap and second derivatives, which the other passes do not have: in double whatever the logits
// are. Included by ../kernels.inc.h.
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
// Rows of few classes are brought into scratch a vector of them at a time, whose lanes they are; others one by one, padded
// to whole vectors with classes of probability 0 (wide_memory.inc.h). The result goes from there to where it belongs. So
// the gradient may replace the logits, and a row's bits depend on nothing but the row.

namespace gce {
namespace {

// What a row's targets add up to.
struct TargetSums {
  F64 loss;         // sum_k c_k t_k L(q_k)
  F64 weight;       // sum_k a_k, and below that: but for the row's own factor
  F64 turn;         // sum_k m_k
  F64 gamma_grad;   // sum_k c_k t_k dL/dgamma
  F64 log_prob;     // sum_k t_k log q_k
  F64 grad_weight;  // sum_k t_k w_b(q_k)
};

// The buffers of a worker, each of a group of rows.
struct WideBuffers {
  double* x;      // logits, capped; then less their maximum
  double* e;      // exponentials; then the result
  double* a;      // targets; then a_k, but for the row's factor
  double* slope;  // of the cap: x'
  double* u;      // the vector, times x'
  double* turn;   // m_k, but for the row's factor
  double* bend;   // x'' u
  double* aside;  // for load_group

  // Lays them out, or with scratch null only counts their bytes.
  template <bool kRowsInLanes>
  static size_t lay_out(const RowProblem& p, char* scratch, WideBuffers* buffers) {
    const auto with_room = [](int64_t n) {
      return n > 0 ? (n + 2 * kRoom - 1) / kRoom * kRoom : 0;
    };
    const int64_t size = with_room(Group<kRowsInLanes>::size(p.classes));
    const int64_t aside = with_room(Group<kRowsInLanes>::aside(p.classes));
    const int64_t capped = p.softcap != 0.0 ? size : 0;
    const int64_t product = p.arrays[kVector].data != nullptr ? size : 0;
    const struct {
      double** buffer;
      int64_t size;
    } all[] = {{&buffers->x, size},
               {&buffers->e, size},
               {&buffers->a, size},
               {&buffers->slope, capped},
               {&buffers->u, product},
               {&buffers->turn, product},
               {&buffers->bend, capped < product ? capped : product},
               {&buffers->aside, aside}};
    size_t used = 0;
    for (const auto& one : all) {
      *one.buffer =
          one.size > 0 && scratch != nullptr ? reinterpret_cast<double*>(scratch + used) : nullptr;
      used += static_cast<size_t>(one.size) * sizeof(double);
    }
    return used;
  }
};

// kShort: see wide_terms.inc.h.
template <bool kShort, bool kRowsInLanes>
class WideWorker {
 public:
  WideWorker(const RowProblem& problem, char* scratch)
      : p_(problem), needs_(needs_of(problem)), size_(Rows::size(problem.classes)) {
    WideBuffers::lay_out<kRowsInLanes>(p_, scratch, &of_);
    fill_constants(p_, &tile_);
    for (int64_t i = 0; i < size_; ++i) {
      of_.a[i] = 0.0;
      if (has_product()) of_.turn[i] = 0.0;
    }
  }

  void run(NextChunk next, void* chunks, PairSum* loss_sums) {
    run_chunks(p_, next, chunks, loss_sums,
               [this](int64_t begin, int64_t end) { return run_rows(begin, end); });
  }

 private:
  using Rows = Group<kRowsInLanes>;
  using Sum = TermSum<kShort>;

  PairSum run_rows(int64_t begin, int64_t end) {
    RowCursor cursor(p_, begin);
    LossSum losses;
    for (int64_t r = begin; r < end; r += tile_.rows) {
      const RowCursor at = cursor;
      tile_.rows = end - r < kMaxTileRows ? end - r : kMaxTileRows;
      load_tile(p_, &cursor, &tile_);
      load_rest(at);
      for (first_ = 0; first_ < tile_.rows; first_ += Rows::kRows) {
        rows_ = tile_.rows - first_ < Rows::kRows ? tile_.rows - first_ : Rows::kRows;
        do_group();
      }
      store_tile(at, tile_);
      if (needs_.loss) losses.add(tile_.loss, tile_.rows);
    }
    return losses.total();
  }

  // What load_tile leaves out of the tile's rows.
  void load_rest(RowCursor cursor) {
    for (int64_t r = 0; r < tile_.rows;) {
      const int64_t n = tile_.rows - r < cursor.run() ? tile_.rows - r : cursor.run();
      read_option(p_, cursor, kSampleWeight, n, sample_weight_ + r);
      for (int64_t i = 0; i < n; ++i) {
        targets_[r + i] = cursor.pointer(kTargets) + i * cursor.stride(kTargets);
        if (has_product()) vector_[r + i] = cursor.pointer(kVector) + i * cursor.stride(kVector);
      }
      cursor.advance(n);
      r += n;
    }
  }

  bool has_product() const { return of_.u != nullptr; }
  bool has_bend() const { return of_.bend != nullptr && !p_.gauss_newton; }
  bool has_turns() const { return has_product() && !p_.gauss_newton; }

  // Calls visit(begin, end) for all of a buffer: parts of one long row are still in the L1 cache for what is next done to
  // them.
  template <class Visit>
  [[gnu::always_inline]] void for_parts(Visit visit) const {
    constexpr int64_t kPart = 1024;
    const int64_t step = kRowsInLanes ? size_ : kPart;
    for (int64_t begin = 0; begin < size_; begin += step) {
      visit(begin, size_ - begin < step ? size_ : begin + step);
    }
  }

  // Part [begin, end) of a buffer from memory: of rows in lanes it is the whole.
  void load_part(const RowsInMemory& from, int64_t begin, int64_t end, double fill, double* to) {
    if (kRowsInLanes) return load_group(from, p_.classes, of_.aside, to);
    load_classes(from, begin, end < p_.classes ? end : p_.classes, fill, to);
  }
  void store_part(int64_t begin, int64_t end, const RowsInMemory& to) {
    if (kRowsInLanes) return store_group(of_.e, p_.classes, of_.aside, to);
    const int64_t classes = end < p_.classes ? end : p_.classes;
    store_strided(of_.e + begin, to.dtype, classes - begin, to.row[0] + begin * to.class_stride,
                  to.class_stride);
  }
  RowsInMemory memory_of(RowArrayId id, char* const* rows, int64_t class_stride) const {
    return {rows + first_, rows_, class_stride, p_.arrays[id].dtype};
  }
  RowsInMemory logits_rows() const {
    return memory_of(kLogits, tile_.logits, p_.logits_class_stride);
  }
  RowsInMemory targets_rows() const {
    return memory_of(kTargets, targets_, p_.targets_class_stride);
  }
  RowsInMemory vector_rows() const { return memory_of(kVector, vector_, p_.vector_class_stride); }
  // The group's, of an array of the tile.
  F64 of_rows(const double* tile) const { return Rows::of_rows(tile + first_); }

  // What is read later, for a loop that computes to fetch on the way.
  struct Ahead {
    const char* from;
    int64_t class_stride;
    void fetch(int64_t i) const {
      if constexpr (!kRowsInLanes) prefetch(from + i * class_stride);
    }
  };
  static Ahead ahead_of(const RowsInMemory& rows) {
    const bool is_contiguous = rows.class_stride == size_of(rows.dtype);
    return {rows.row[0], is_contiguous ? rows.class_stride : 0};
  }

  void do_group() {
    reads_ahead_ = p_.targets_are_probabilities ? ahead_of(targets_rows())
                   : has_product()              ? ahead_of(vector_rows())
                                                : Ahead{tile_.logits[first_], 0};
    next_ = {tile_.logits[first_], 0};
    if (first_ + 1 < tile_.rows) {
      next_ = ahead_of(
          {tile_.logits + first_ + 1, 1, p_.logits_class_stride, p_.arrays[kLogits].dtype});
    }
    first_pass();
    is_nan_ = not_less(row_.sum_high, broadcast(__builtin_inf()));  // it is never infinite
    ignored_ = ignored_rows();
    if (has_product()) load_vector();
    const TargetSums sums = p_.targets_are_probabilities ? sum_targets() : sum_of_indices();
    const F64 sample_weight = of_rows(sample_weight_);
    write_outputs(sums, sample_weight);
    if (needs_.grad) write_grad(sums, sample_weight);
    if (!p_.targets_are_probabilities) clear_targets();
  }

  Mask64 ignored_rows() const {
    if (kRowsInLanes) return negative(tile_.target + first_);
    return broadcast(tile_.ignored(first_) ? -1.0 : 0.0) < broadcast(0.0);
  }

  // x, then its exponentials and their sum; what label smoothing and the statistics need beside it.
  void first_pass() {
    const RowsInMemory logits = logits_rows();
    const double infinity = __builtin_inf();
    for_parts([&](int64_t begin, int64_t end) { load_part(logits, begin, end, -infinity, of_.x); });
    if (p_.arrays[kArgmax].data != nullptr) write_argmax();
    if (of_.slope != nullptr) cap_logits();

    maximum_ = maximum_of_rows();
    const F64 zero = broadcast(0.0);
    const WideBuffers of = of_;
    const F64 maximum = maximum_;
    const double* const weights = p_.label_smoothing != 0.0 ? p_.wide_weights : nullptr;
    const Ahead ahead = reads_ahead_;
    Sum sums;
    Sum spread;
    for (int64_t i = 0; i < size_; i += F64::kLanes) {
      ahead.fetch(i);
      const F64 d = load(of.x + i) - maximum;
      const F64 e = prob_of<kShort>(d).p;
      store(of.x + i, d);
      store(of.e + i, e);
      sums.add(e);
      if (weights != nullptr) spread.add(counted_loss(Rows::of_classes(weights, i), zero - d));
    }
    spread_ = total_of<kRowsInLanes>(spread);
    fill_row(pair_of<kRowsInLanes>(sums));
    logsumexp_ = maximum_ + row_.log_sum;
  }

  void fill_row(const F64Pair& sum) {
    const F64 one = broadcast(1.0);
    row_.sum_high = sum.high;
    row_.sum_low = sum.low;
    row_.log_sum = log(sum.high + sum.low);
    row_.inverse_sum = one / (sum.high + sum.low);
    row_.gamma = of_rows(tile_.gamma);
    row_.threshold = of_rows(tile_.threshold);
    row_.inverse_delta = one / (one - row_.gamma);
    const F64 zero = broadcast(0.0);
    const F64 least = broadcast(needs_.surrogate ? 2.0 : kLeastCommonGamma);  // 2: none is
    row_.is_cross_entropy = row_.gamma == zero;
    row_.is_common = not_less(row_.gamma, least) & (row_.threshold == zero);
    row_.needs_exact =
        !all(row_.is_cross_entropy | row_.is_common) || needs_.beside_loss_and_grad();
    row_.needs_log = needs_.beside_loss_and_grad() || needs_.surrogate ||
                     any(row_.gamma < broadcast(kTinyGamma)) || any(zero < row_.threshold);
  }

  void cap_logits() {
    for_parts([&](int64_t begin, int64_t end) {
      if (kShort && p_.softcap <= kLargestShortCap) {
        cap<true>(p_.softcap, end - begin, of_.x + begin, of_.slope + begin);
      } else {
        cap<false>(p_.softcap, end - begin, of_.x + begin, of_.slope + begin);
      }
    });
    if (kRowsInLanes) return;
    for (int64_t v = p_.classes; v < size_; ++v) of_.x[v] = -__builtin_inf();
  }

  F64 maximum_of_rows() const {
    if (!kRowsInLanes) return broadcast(row_max(of_.x, p_.classes));
    F64 maximum = minus_infinity<F64>();
    for (int64_t i = 0; i < size_; i += F64::kLanes) maximum = max(load(of_.x + i), maximum);
    return maximum;
  }

  // The first class of the maximum, or the first NaN.
  void write_argmax() {
    if (!kRowsInLanes) {
      const double largest = row_max(of_.x, p_.classes);
      tile_.argmax[first_] = row_argmax(of_.x, p_.classes, largest, true);
      return;
    }
    const F64 maximum = maximum_of_rows();
    F64 argmax = broadcast(0.0);
    F64 nan = broadcast(-1.0);
    for (int64_t v = p_.classes - 1; v >= 0; --v) {
      const F64 x = load(of_.x + v * F64::kLanes);
      const F64 index = broadcast(static_cast<double>(v));
      argmax = select(x == maximum, index, argmax);
      nan = select(x == x, nan, index);
    }
    double found[F64::kLanes];
    store(found, select(nan < broadcast(0.0), argmax, nan));
    for (int64_t r = 0; r < rows_; ++r) tile_.argmax[first_ + r] = static_cast<int64_t>(found[r]);
  }

  // The vector, and its mean over q.
  void load_vector() {
    const RowsInMemory vector = vector_rows();
    const F64 two_over_cap = broadcast(-2.0 * inverse_of_cap(p_.softcap));
    Sum mean;
    for_parts([&](int64_t begin, int64_t end) {
      load_part(vector, begin, end, 0.0, of_.u);
      for (int64_t i = begin; i < end; i += F64::kLanes) {
        F64 u = load(of_.u + i);
        if (of_.slope != nullptr) {
          // x'' = -2 tanh x' / kappa, and tanh = x / kappa, where x is what its maximum was taken from.
          const F64 slope = load(of_.slope + i);
          const F64 tanh = (load(of_.x + i) + maximum_) / broadcast(p_.softcap);
          store(of_.bend + i, two_over_cap * tanh * slope * u);
          u = slope * u;
          store(of_.u + i, u);
        }
        mean.add(load(of_.e + i) * u);
      }
    });
    vector_mean_ = total_of<kRowsInLanes>(mean) / (row_.sum_high + row_.sum_low);
  }

  // Of row r of the group; any class where it is ignored.
  int64_t target_of(int64_t r) const {
    return tile_.ignored(first_ + r) ? 0 : tile_.target[first_ + r];
  }
  int64_t place_of_target(int64_t r) const { return Rows::at(target_of(r), r); }

  TargetSums sum_of_indices() {
    double e[Rows::kRows] = {};
    double d[Rows::kRows] = {};
    double u[Rows::kRows] = {};
    double weights[Rows::kRows] = {};
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t at = place_of_target(r);
      e[r] = of_.e[at];
      d[r] = of_.x[at];
      if (has_product()) u[r] = of_.u[at];
      weights[r] = p_.wide_weights != nullptr ? p_.wide_weights[target_of(r)] : 1.0;
    }
    const ClassTerms terms =
        class_terms<kShort, kEachItsOwn>(row_, needs_, Rows::of_rows(e), Rows::of_rows(d));
    const F64 c = Rows::of_rows(weights);
    const F64 weight = c * terms.weight;
    F64 turn = broadcast(0.0);
    if (has_turns()) turn = weight * terms.turn * (Rows::of_rows(u) - vector_mean_);
    put_at_targets(weight, of_.a);
    if (has_turns()) put_at_targets(turn, of_.turn);
    return {counted_loss(c, terms.loss),       weight,         turn,
            counted_loss(c, terms.gamma_grad), terms.log_prob, terms.weight};
  }
  void put_at_targets(F64 of_rows, double* buffer) {
    double values[F64::kLanes];
    store(values, of_rows);
    for (int64_t r = 0; r < rows_; ++r) buffer[place_of_target(r)] = values[r];
  }
  void clear_targets() {
    put_at_targets(broadcast(0.0), of_.a);
    if (has_product()) put_at_targets(broadcast(0.0), of_.turn);
  }

  TargetSums sum_targets() {
    const RowsInMemory targets = targets_rows();
    const Way way = way_of<kShort>(row_);
    RunningSums sums;
    for_parts([&](int64_t begin, int64_t end) {
      load_part(targets, begin, end, 0.0, of_.a);
      if (way == kAllCommon) {
        sum_part<kAllCommon>(begin, end, &sums);
      } else if (way == kAllCrossEntropy) {
        sum_part<kAllCrossEntropy>(begin, end, &sums);
      } else {
        sum_part<kEachItsOwn>(begin, end, &sums);
      }
    });
    const auto total = [](const Sum& sum) { return total_of<kRowsInLanes>(sum); };
    return {total(sums.loss),       total(sums.weight),   total(sums.turn),
            total(sums.gamma_grad), total(sums.log_prob), total(sums.grad_weight)};
  }

  struct RunningSums {  // as TargetSums
    Sum loss, weight, turn, gamma_grad, log_prob, grad_weight;
  };
  template <Way kWay>
  void sum_part(int64_t begin, int64_t end, RunningSums* total) const {
    const F64 zero = broadcast(0.0);
    const WideBuffers of = of_;
    const WideRow row = row_;
    const EpilogueNeeds needs = needs_;
    const F64 mean = vector_mean_;
    const bool turns = has_turns();
    const double* const weights = p_.wide_weights;
    const Ahead ahead = next_;
    RunningSums sums = *total;
    for (int64_t i = begin; i < end; i += F64::kLanes) {
      if (!needs.grad) ahead.fetch(i);
      const F64 t = load(of.a + i);
      if (turns) store(of.turn + i, zero);
      if (!any(zero < t)) continue;
      const ClassTerms terms =
          class_terms<kShort, kWay>(row, needs, load(of.e + i), load(of.x + i));
      const F64 ct = weights != nullptr ? Rows::of_classes(weights, i) * t : t;
      const F64 a = ct * terms.weight;
      store(of.a + i, a);
      sums.weight.add(a);
      if (turns) {
        const F64 m = a * terms.turn * (load(of.u + i) - mean);
        store(of.turn + i, m);
        sums.turn.add(m);
      }
      if (needs.loss) sums.loss.add(counted_loss(ct, terms.loss));
      if (kWay != kEachItsOwn) continue;
      if (needs.gamma_grad) sums.gamma_grad.add(counted_loss(ct, terms.gamma_grad));
      if (needs.statistics) {
        sums.log_prob.add(counted_loss(t, terms.log_prob));
        sums.grad_weight.add(t * terms.weight);
      }
    }
    *total = sums;
  }

  // The factor of what a row's targets, and of what label smoothing and z-loss, add to it.
  double spread_share() const { return p_.label_smoothing / static_cast<double>(p_.classes); }

  void write_outputs(const TargetSums& sums, F64 sample_weight) {
    const F64 zero = broadcast(0.0);
    const F64 nan = broadcast(__builtin_nan(""));
    const auto put = [&](double* to, F64 x) {
      Rows::put_rows(to + first_, select(ignored_, zero, select(is_nan_, nan, one_nan(x))));
    };
    const F64 kept = sample_weight * broadcast(1.0 - p_.label_smoothing);
    F64 loss = counted_loss(kept, sums.loss);
    if (p_.label_smoothing != 0.0) {
      const F64 smooth = broadcast(p_.wide_weight_sum) * row_.log_sum + spread_;
      loss = loss + counted_loss(sample_weight * broadcast(spread_share()), smooth);
    }
    if (p_.z_loss != 0.0) {
      loss = loss + counted_loss(sample_weight * broadcast(p_.z_loss), logsumexp_ * logsumexp_);
    }
    put(tile_.loss, loss);
    put(tile_.target_log_prob, sums.log_prob);
    put(tile_.grad_weight, sums.grad_weight);
    const F64 scale = kept / broadcast(p_.divisor) * of_rows(tile_.upstream);
    put(tile_.gamma_grad, counted_loss(scale, sums.gamma_grad));
    Rows::put_rows(tile_.logsumexp + first_, select(is_nan_, nan, logsumexp_));
  }

  // The gradient or the product, in the place of the exponentials.
  void write_grad(const TargetSums& sums, F64 sample_weight) {
    const F64 zero = broadcast(0.0);
    const F64 scale = sample_weight / broadcast(p_.divisor) * of_rows(tile_.upstream);
    const F64 share = broadcast(2.0) * (scale * broadcast(p_.z_loss));
    GradTerms terms;
    terms.kept = scale * broadcast(1.0 - p_.label_smoothing);
    terms.smooth = scale * broadcast(spread_share());
    terms.of_all = terms.kept * sums.weight;
    terms.moved = terms.kept * sums.turn;
    if (p_.label_smoothing != 0.0) {
      terms.of_all = terms.of_all + counted_loss(terms.smooth, broadcast(p_.wide_weight_sum));
    }
    if (p_.z_loss != 0.0) {
      const bool is_convex = has_product() && p_.gauss_newton;
      const F64 lse = is_convex ? max(zero, logsumexp_) : logsumexp_;
      terms.of_all = terms.of_all + counted_loss(share, lse);
      if (has_product()) terms.moved = terms.moved + counted_loss(share, vector_mean_);
    }
    const RowsInMemory grad = memory_of(kGrad, tile_.grad, p_.grad_class_stride);
    for_parts([&](int64_t begin, int64_t end) {
      fill_grad(terms, begin, end);
      store_part(begin, end, grad);
    });
  }

  struct GradTerms {
    F64 kept;    // the factor of a and m
    F64 smooth;  // of the class weights
    F64 of_all;  // G
    F64 moved;   // M and z-loss's part
  };
  void fill_grad(const GradTerms& of_group, int64_t begin, int64_t end) const {
    const F64 zero = broadcast(0.0);
    const WideBuffers of = of_;
    const GradTerms terms = of_group;
    const F64 sum = row_.sum_high + row_.sum_low;
    const F64 inverse_sum = row_.inverse_sum;
    const F64 mean = vector_mean_;
    const Mask64 ignored = ignored_;
    const double* const weights = p_.label_smoothing != 0.0 ? p_.wide_weights : nullptr;
    const bool bends = has_bend();
    const Ahead ahead = next_;
    for (int64_t i = begin; i < end; i += F64::kLanes) {
      ahead.fetch(i);
      const F64 e = load(of.e + i);
      const F64 q = kShort ? e * inverse_sum : e / sum;
      F64 result = q * terms.of_all - terms.kept * load(of.a + i);
      if (weights != nullptr) result = result - terms.smooth * Rows::of_classes(weights, i);
      if (of.u != nullptr) {
        const F64 grad = result;
        const F64 u = load(of.u + i) - mean;
        result = q * (terms.moved + terms.of_all * u) - terms.kept * load(of.turn + i);
        if (of.slope != nullptr) result = result * load(of.slope + i);
        if (bends) result = result + grad * load(of.bend + i);
      } else if (of.slope != nullptr) {
        result = result * load(of.slope + i);
      }
      store(of.e + i, select(ignored, zero, one_nan(result) + zero));
    }
  }

  const RowProblem& p_;
  const EpilogueNeeds needs_;
  const int64_t size_;  // of a buffer
  WideBuffers of_;
  Tile<double> tile_;  // its scalars are not used
  alignas(64) double sample_weight_[kMaxTileRows];
  char* targets_[kMaxTileRows];
  char* vector_[kMaxTileRows];

  // The group: rows first_ to first_ + rows_ - 1 of the tile.
  int64_t first_ = 0;
  int64_t rows_ = 0;
  Ahead reads_ahead_ = {};  // the targets, or the vector
  Ahead next_ = {};         // the next row's logits
  WideRow row_ = {};
  Mask64 is_nan_ = {};
  Mask64 ignored_ = {};
  F64 maximum_ = broadcast(0.0);
  F64 logsumexp_ = broadcast(0.0);
  F64 spread_ = broadcast(0.0);       // for label smoothing, sum_v c_v (maximum - x_v)
  F64 vector_mean_ = broadcast(0.0);  // q.u
};

// Up to it a group of rows and its result are in the L1 cache.
constexpr int64_t kMostClassesOfGroup = 64;

inline bool has_rows_in_lanes(const RowProblem& p) { return p.classes <= kMostClassesOfGroup; }

void lay_out_wide(RowProblem* p) {
  WideBuffers none;
  p->layout = kRowsWide;
  p->stream_grad = p->keeps = false;
  p->tile_rows = 1;
  p->ring_rows = p->line_count = 0;
  p->scratch_bytes = has_rows_in_lanes(*p) ? WideBuffers::lay_out<true>(*p, nullptr, &none)
                                           : WideBuffers::lay_out<false>(*p, nullptr, &none);
  p->chunk_rows = rows_of_chunk(p->classes);
}

template <bool kShort>
void work_wide_as(const RowProblem& p, char* scratch, NextChunk next, void* chunks,
                  PairSum* loss_sums) {
  if (has_rows_in_lanes(p)) {
    return WideWorker<kShort, true>(p, scratch).run(next, chunks, loss_sums);
  }
  WideWorker<kShort, false>(p, scratch).run(next, chunks, loss_sums);
}
void work_wide(const RowProblem& p, char* scratch, NextChunk next, void* chunks,
               PairSum* loss_sums) {
  if (p.arrays[kLogits].dtype == GCE_FLOAT64) {
    return work_wide_as<false>(p, scratch, next, chunks, loss_sums);
  }
  work_wide_as<true>(p, scratch, next, chunks, loss_sums);
}

}  // namespace
}  // namespace gce
