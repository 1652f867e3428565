// Kept tokens come back to their places, the mask token comes elsewhere, and positions are added, in one pass; so is the gradient.
//   out[n, P + l] = (r < K ? x[n, P + r] : token) + pos[P + l], r = ids[n, l];   out[n, p] = x[n, p] + pos[p]
//   dx[n, P + r] = sum over l with ids[n, l] = r of dout[n, P + l]
//   dtoken = sum over (n, l) with ids[n, l] >= K of dout[n, P + l]
// N (2 P + K + L) D elements are moved forward, N (2 P + L + K) D backward.
#include <torch/library.h>

#include "cpu/new_rows.h"

namespace fastssl::restore_tokens {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The mask token's gradient is summed for each group of so many samples, so that every number of threads gives the same sums.
constexpr int64_t kSamples = 8;

Tensor restore_tokens_fwd(const Tensor& x_given, const Tensor& ids_given, const Tensor& token, const OptionalTensor& pos,
                          int64_t prefix) {
  TORCH_CHECK(x_given.dim() == 3 && prefix >= 0 && prefix <= x_given.size(1), "restore_tokens: expected x (N, P + K, D), got ",
              x_given.sizes());
  expect_ids("restore_tokens", ids_given, x_given.size(0));
  expect_dense("restore_tokens", token, {x_given.size(2)});
  if (pos) expect_dense("restore_tokens", *pos, {prefix + ids_given.size(1), x_given.size(2)});
  const Tensor x = x_given.stride(2) == 1 ? x_given : x_given.contiguous(), ids = ids_given.contiguous();
  const int64_t N = x.size(0), D = x.size(2), L = ids.size(1), tokens = prefix + L, K = x.size(1) - prefix;
  Tensor out = new_tensor({N, tokens, D}, token.options());
  const int64_t* id = ids.const_data_ptr<int64_t>();
  const Array from = array_of(x), hidden = array_of(token);
  const Array position = pos ? array_of(*pos) : Array{nullptr, kNothing};
  with_accumulator(out.scalar_type(), [&]<class T>(T) {
    parallel_for(N * tokens, D, [&](int64_t begin, int64_t end) {
      NewRows<T> to(out);
      // The element of x that token i begins with, -1 where it is the mask token.
      const auto start_of = [&](int64_t i) -> int64_t {
        const int64_t n = i / tokens, t = i % tokens, r = t < prefix ? t - prefix : id[n * L + t - prefix];
        return t < prefix || uint64_t(r) < uint64_t(K) ? n * x.stride(0) + (prefix + r) * x.stride(1) : -1;
      };
      for (int64_t i = begin; i < end; i++) {
        const int64_t start = start_of(i), ahead = start_of(std::min(i + kAhead, end - 1));
        if (ahead >= 0) prefetch(from, ahead, D);
        const Array source = start < 0 ? hidden : from;
        if (pos) to.add(source, std::max<int64_t>(start, 0), position, i % tokens * D, i * D, D);
        else to.copy(source, std::max<int64_t>(start, 0), i * D, D);
      }
    });
  });
  return out;
}

// The sum of rows: kRun rows are added in T, and these sums in double. T alone would lose six bits over 65,536 rows.
template <class T>
struct RowSum {
  static constexpr int kRun = 64;
  std::vector<T> run;
  double* sum;
  int rows = 0;

  RowSum(int64_t width, double* sum) : run(width, T(0)), sum(sum) {}
  void add(Array from, int64_t i) {
    token_rows<T>().accumulate(from, i, int64_t(run.size()), run.data());
    if (++rows == kRun) flush();
  }
  void flush() {
    for (size_t d = 0; d < run.size(); d++) sum[d] += run[d], run[d] = T(0);
    rows = 0;
  }
};

// Writes dx where it has elements, and for each group the sum of the rows of removed patches where `partial` has elements.
template <class T>
void gradients(const Tensor& dout, const Tensor& ids, int64_t K, int64_t prefix, const Tensor& dx, std::vector<double>& partial) {
  const int64_t N = dout.size(0), D = dout.size(2), L = ids.size(1);
  const bool need_x = dx.numel() > 0, need_token = !partial.empty();
  const int64_t* id = ids.const_data_ptr<int64_t>();
  const Array from = array_of(dout);
  const Matches matches(ids, need_x ? K : 0);
  parallel_for((N + kSamples - 1) / kSamples, kSamples * dout.size(1) * D, [&](int64_t begin, int64_t end) {
    std::vector<T> buffer;
    NewRows<T> to(dx);
    for (int64_t group = begin; group < end; group++) {
      RowSum<T> hidden(D, partial.data() + group * D);
      for (int64_t n = group * kSamples; n < std::min(N, (group + 1) * kSamples); n++) {
        const int64_t start = n * dout.stride(0), step = dout.stride(1), patches = start + prefix * step;
        const int64_t row = n * (prefix + K);
        for (int64_t p = 0; need_x && p < prefix; p++) to.copy(from, start + p * step, (row + p) * D, D);
        for (int64_t l = 0; l < L; l++) {  // in the order of dout, which is read once
          const int64_t r = id[n * L + l];
          if (l + kAhead < L) prefetch(from, patches + (l + kAhead) * step, D);
          if (uint64_t(r) >= uint64_t(K)) {
            if (need_token) hidden.add(from, patches + l * step);
          } else if (need_x && matches.first(n, r) == l) {
            write_matches(matches, n, r, from, patches, step, to, (row + prefix + r) * D, D, buffer);
          }
        }
        for (int64_t r = 0; need_x && r < K; r++)
          if (matches.first(n, r) < 0) to.clear((row + prefix + r) * D, D);
      }
      if (need_token) hidden.flush();
    }
  });
}

std::tuple<Tensor, Tensor> restore_tokens_bwd(const Tensor& dout_given, const Tensor& ids_given, int64_t kept, int64_t prefix,
                                              std::array<bool, 2> need) {
  TORCH_CHECK(dout_given.dim() == 3 && kept >= 0 && prefix >= 0, "restore_tokens: expected dout (N, P + L, D), got ",
              dout_given.sizes());
  expect_ids("restore_tokens", ids_given, dout_given.size(0));
  expect_shape("restore_tokens", dout_given, {dout_given.size(0), prefix + ids_given.size(1), dout_given.size(2)});
  const Tensor dout = dout_given.stride(2) == 1 ? dout_given : dout_given.contiguous(), ids = ids_given.contiguous();
  const int64_t N = dout.size(0), D = dout.size(2), groups = (N + kSamples - 1) / kSamples;
  Tensor dx = need[0] ? new_tensor({N, prefix + kept, D}, dout.options()) : at::empty({0}, dout.options());
  Tensor dtoken = at::empty({need[1] ? D : 0}, dout.options().dtype(accumulator(dout.scalar_type())));
  std::vector<double> partial(need[1] ? groups * D : 0, 0.0);
  with_accumulator(dout.scalar_type(), [&]<class T>(T) {
    gradients<T>(dout, ids, kept, prefix, dx, partial);
    if (!need[1]) return;
    for (int64_t group = 1; group < groups; group++)
      for (int64_t d = 0; d < D; d++) partial[d] += partial[group * D + d];
    std::copy_n(partial.data(), D, dtoken.mutable_data_ptr<T>());
  });
  return {dx, dtoken};
}

}  // namespace
}  // namespace fastssl::restore_tokens

TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("restore_tokens_fwd", &fastssl::restore_tokens::restore_tokens_fwd);
  m.impl("restore_tokens_bwd", &fastssl::restore_tokens::restore_tokens_bwd);
}
