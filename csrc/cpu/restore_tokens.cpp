// Kept tokens come back to their places, the mask token comes elsewhere, and positions are added, in one pass; so is the gradient.
//   out[n, P + l] = (r < K ? x[n, P + r] : token) + pos[P + l], r = ids[n, l];   out[n, p] = x[n, p] + pos[p]
//   dx[n, P + r] = sum over l with ids[n, l] = r of dout[n, P + l]
//   dtoken = sum over (n, l) with ids[n, l] >= K of dout[n, P + l]
// N (2 P + K + L) D elements are moved forward, N (2 P + L + K) D backward.
#include <utility>

#include "cpu/new_rows.h"

namespace fastssl::restore_tokens {
namespace {

// The mask token's gradient is summed for each group of so many samples, so that every number of threads gives the same sums.
constexpr int64_t kSamples = 8, kBeside = 4;

// The mask token at every place, pos + token. In 16 bits, where a sum is widened and rounded, it is made once for all samples.
template <class T>
Tensor masked_tokens(Array token, const Tensor& pos) {
  Tensor out = empty(pos.sizes(), pos.scalar_type());
  const int64_t D = pos.size(1);
  const Array position = array_of(pos), to = array_of(out);
  parallel_for(pos.size(0), D, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) token_rows<T>().add(token, 0, position, t * D, to, t * D, D);
  });
  return out;
}

Tensor restore_tokens_fwd(const Tensor& x_given, const Tensor& ids_given, const Tensor& token, const OptionalTensor& pos,
                          int64_t prefix) {
  FASTSSL_CHECK(x_given.dim() == 3 && prefix >= 0 && prefix <= x_given.size(1), "restore_tokens: expected x (N, P + K, D), got ",
                x_given.sizes());
  expect_ids("restore_tokens", ids_given, x_given.size(0));
  expect_dense("restore_tokens", token, {x_given.size(2)});
  if (pos) expect_dense("restore_tokens", *pos, {prefix + ids_given.size(1), x_given.size(2)});
  const Tensor x = x_given.stride(2) == 1 ? x_given : as_contiguous(x_given), ids = as_contiguous(ids_given);
  const int64_t N = x.size(0), D = x.size(2), L = ids.size(1), tokens = prefix + L, K = x.size(1) - prefix;
  Tensor out = new_tensor({N, tokens, D}, token.scalar_type());
  const int64_t* id = ids.const_data_ptr<int64_t>();
  const Array from = array_of(x), hidden = array_of(token);
  const Array position = pos ? array_of(*pos) : Array{nullptr, kNothing};
  with_accumulator(out.scalar_type(), [&]<class T>(T) {
    const Tensor made = pos && pos->element_size() == 2 ? masked_tokens<T>(hidden, *pos) : Tensor();
    const Array masked = made.defined() ? array_of(made) : Array{nullptr, kNothing};
    parallel_for(N * tokens, D, [&](int64_t begin, int64_t end) {
      NewRows<T> to(out, int64_t(bytes_of(x)));
      // The element of x that token i begins with, -1 where it is the mask token.
      const auto start_of = [&](int64_t i) -> int64_t {
        const int64_t n = i / tokens, t = i % tokens, r = t < prefix ? t - prefix : id[n * L + t - prefix];
        return t < prefix || uint64_t(r) < uint64_t(K) ? n * x.stride(0) + (prefix + r) * x.stride(1) : -1;
      };
      for (int64_t i = begin; i < end; i++) {
        const int64_t t = i % tokens, start = start_of(i), ahead = start_of(std::min(i + kAhead, end - 1));
        if (ahead >= 0) prefetch(from, ahead, D);
        const Array source = start < 0 ? hidden : from;
        if (start < 0 && masked.data) to.copy(masked, t * D, i * D, D);
        else if (pos) to.add(source, std::max<int64_t>(start, 0), position, t * D, i * D, D);
        else to.copy(source, std::max<int64_t>(start, 0), i * D, D);
      }
    });
  });
  return out;
}

// The sum of rows: kRun rows are added in T, and these sums in double. T alone would lose six bits over 65,536 rows.
template <class T>
class RowSum {
 public:
  RowSum(Array from, int64_t width, double* sum) : from_(from), run_(width, T(0)), sum_(sum) {}
  void add(int64_t i) {
    starts_[waiting_++] = i;
    if (waiting_ == kTogether) take();
    if (rows_ == kRun) flush();
  }
  void flush() {
    take();
    for (size_t d = 0; d < run_.size(); d++) sum_[d] += run_[d], run_[d] = T(0);
    rows_ = 0;
  }

 private:
  static constexpr int kRun = 64;

  void take() {
    token_rows<T>().accumulate(from_, starts_, waiting_, int64_t(run_.size()), run_.data());
    rows_ += std::exchange(waiting_, 0);
  }

  Array from_;
  std::vector<T> run_;
  double* sum_;
  int64_t starts_[kTogether];
  int waiting_ = 0, rows_ = 0;
};

// The rows of dx, where it has elements, and the sums for the mask token.
template <class T>
class Gradients {
 public:
  Gradients(const Tensor& dout, const Tensor& ids, int64_t K, int64_t prefix, const Tensor& dx, std::vector<double>& partial)
      : dout_(dout),
        dx_(dx),
        K_(K),
        D_(dout.size(2)),
        L_(ids.size(1)),
        prefix_(prefix),
        partial_(partial),
        id_(ids.const_data_ptr<int64_t>()),
        from_(array_of(dout)),
        matches_(ids, dx.numel() ? K : 0) {}

  // Reads each row of dout once. A core reads several streams of memory faster than one, so kBeside samples are read in turn.
  void groups(int64_t begin, int64_t end) const {
    NewRows<T> to(dx_, int64_t(bytes_of(dout_)));
    for (int64_t group = begin; group < end; group++) {
      RowSum<T> hidden(from_, D_, partial_.data() + group * D_);
      const int64_t last = std::min(dout_.size(0), (group + 1) * kSamples);
      for (int64_t first = group * kSamples; first < last; first += kBeside) {
        const int64_t behind = std::min(last, first + kBeside);
        for (int64_t n = first; dx_.numel() && n < behind; n++) write_others(n, to);
        for (int64_t l = 0; l < L_; l++)
          for (int64_t n = first; n < behind; n++) read(n, l, to, hidden);
      }
      if (!partial_.empty()) hidden.flush();
    }
  }

 private:
  int64_t patches(int64_t n) const { return n * dout_.stride(0) + prefix_ * dout_.stride(1); }
  int64_t row_of(int64_t n, int64_t r) const { return (n * (prefix_ + K_) + prefix_ + r) * D_; }

  // Rows of dx that no row of a patch goes to: prefix tokens, and zeros.
  void write_others(int64_t n, NewRows<T>& to) const {
    for (int64_t p = -prefix_; p < 0; p++) to.copy(from_, patches(n) + p * dout_.stride(1), row_of(n, p), D_);
    for (int64_t r = 0; r < K_; r++)
      if (matches_.first(n, r) < 0) to.clear(row_of(n, r), D_);
  }

  void read(int64_t n, int64_t l, NewRows<T>& to, RowSum<T>& hidden) const {
    const int64_t r = id_[n * L_ + l], step = dout_.stride(1);
    if (uint64_t(r) >= uint64_t(K_)) {
      if (!partial_.empty()) hidden.add(patches(n) + l * step);
    } else if (dx_.numel() && matches_.first(n, r) == l) {
      std::vector<T> buffer;
      write_matches(matches_, n, r, from_, patches(n), step, to, row_of(n, r), D_, buffer);
    }
  }

  const Tensor &dout_, &dx_;
  int64_t K_, D_, L_, prefix_;
  std::vector<double>& partial_;  // (groups, D), or empty where the token needs no gradient
  const int64_t* id_;
  Array from_;
  Matches matches_;
};

std::tuple<Tensor, Tensor> restore_tokens_bwd(const Tensor& dout_given, const Tensor& ids_given, int64_t kept, int64_t prefix,
                                              const std::vector<bool>& need) {
  FASTSSL_CHECK(dout_given.dim() == 3 && kept >= 0 && prefix >= 0, "restore_tokens: expected dout (N, P + L, D), got ",
                dout_given.sizes());
  expect_ids("restore_tokens", ids_given, dout_given.size(0));
  expect_shape("restore_tokens", dout_given, {dout_given.size(0), prefix + ids_given.size(1), dout_given.size(2)});
  const Tensor dout = dout_given.stride(2) == 1 ? dout_given : as_contiguous(dout_given), ids = as_contiguous(ids_given);
  const int64_t N = dout.size(0), D = dout.size(2), groups = (N + kSamples - 1) / kSamples;
  Tensor dx = need[0] ? new_tensor({N, prefix + kept, D}, dout.scalar_type()) : empty({0}, dout.scalar_type());
  Tensor dtoken = empty({need[1] ? D : 0}, accumulator(dout.scalar_type()));
  std::vector<double> partial(need[1] ? groups * D : 0, 0.0);
  with_accumulator(dout.scalar_type(), [&]<class T>(T) {
    const Gradients<T> gradients(dout, ids, kept, prefix, dx, partial);
    parallel_for(groups, kSamples * dout.size(1) * D, [&](int64_t begin, int64_t end) { gradients.groups(begin, end); });
    if (!need[1]) return;
    for (int64_t group = 1; group < groups; group++)
      for (int64_t d = 0; d < D; d++) partial[d] += partial[group * D + d];
    std::copy_n(partial.data(), D, dtoken.mutable_data_ptr<T>());
  });
  return {dx, dtoken};
}

}  // namespace
}  // namespace fastssl::restore_tokens

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("restore_tokens_fwd", TORCH_BOX(&fastssl::restore_tokens::restore_tokens_fwd));
  m.impl("restore_tokens_bwd", TORCH_BOX(&fastssl::restore_tokens::restore_tokens_bwd));
}
