// Negative sampling of pairs of words: the loss over rows of two tables, and gradients of the rows that occur.
//   h_b = mean over c of inputs[i_bc];   u_bt = <h_b, outputs[o_bt]>;   L_b = softplus(-u_b0) + sum_{t > 0} softplus(u_bt)
//   slope_bt = dL_b/du_bt;   pull_b = sum_t slope_bt outputs[o_bt] / n_b;   ids below 0 are left out
//   sums_r = sum over (b, t) with ids_bt = r of weight_b factor_bt source_b
// The places of an id are found by a radix sort, which keeps their order. Each row of the sums is summed by one thread in that
// order: the same bits for any number of threads. Work and memory follow the ids, and no array is as large as a table.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/tokens.h"
#include "cpu/word_rows.h"

namespace fastssl::word_pairs {
namespace {

constexpr const char* kOp = "word_pairs";

Tensor dense_rows(const Tensor& t) { return t.stride(1) == 1 ? t : as_contiguous(t); }

void check_below(const Tensor& ids, int64_t rows) {
  const int64_t* id = ids.const_data_ptr<int64_t>();
  int64_t largest = -1;
  for (int64_t i = 0, n = ids.numel(); i < n; i++) largest = std::max(largest, id[i]);
  FASTSSL_CHECK_VALUE(largest < rows, kOp, ": ids must be below ", rows, ", got ", largest);
}

// softplus(u), and its derivative sigmoid(u) in `slope`
template <class T>
T softplus(T u, T& slope) {
  const T e = std::exp(-std::abs(u));
  slope = (u > 0 ? T(1) : e) / (1 + e);
  return u != u ? u : std::max(u, T(0)) + std::log1p(e);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> word_pairs_fwd(const Tensor& inputs_given, const Tensor& outputs_given,
                                                          const Tensor& input_ids_given, const Tensor& target_ids_given) {
  FASTSSL_CHECK(inputs_given.dim() == 2 && outputs_given.dim() == 2 && inputs_given.size(1) == outputs_given.size(1), kOp,
                ": expected tables of one width, got ", inputs_given.sizes(), " and ", outputs_given.sizes());
  const Tensor inputs = dense_rows(inputs_given), outputs = dense_rows(outputs_given);
  const Tensor input_ids = as_contiguous(input_ids_given), target_ids = as_contiguous(target_ids_given);
  const int64_t D = inputs.size(1), B = input_ids.size(0), C = input_ids.size(1), T_ = target_ids.size(1);
  expect_ids(kOp, target_ids, B);
  check_below(input_ids, inputs.size(0)), check_below(target_ids, outputs.size(0));
  const ScalarType wide = accumulator(inputs.scalar_type());
  Tensor loss = empty({B}, wide), hidden = new_tensor({B, D}, wide), pull = new_tensor({B, D}, wide);
  Tensor slope = empty({B, T_}, wide);
  const Array from = array_of(inputs), to = array_of(outputs);
  const int64_t in_stride = inputs.stride(0), out_stride = outputs.stride(0);
  const int64_t *in = input_ids.const_data_ptr<int64_t>(), *out = target_ids.const_data_ptr<int64_t>();
  with_accumulator(inputs.scalar_type(), [&]<class T>(T) {
    const WordRows<T>& f = word_rows<T>();
    T *l = loss.mutable_data_ptr<T>(), *h = hidden.mutable_data_ptr<T>(), *p = pull.mutable_data_ptr<T>();
    T* g = slope.mutable_data_ptr<T>();
    parallel_for(B, (C + 2 * T_) * D, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; b++) {
        T *mean = h + b * D, *gradient = p + b * D, total = 0;
        std::fill_n(mean, D, T(0)), std::fill_n(gradient, D, T(0));
        int64_t count = 0;
        for (int64_t c = 0; c < C; c++)
          if (const int64_t id = in[b * C + c]; id >= 0) f.add(from, id * in_stride, D, T(1), mean), count++;
        if (count > 1)
          for (int64_t e = 0; e < D; e++) mean[e] /= T(count);
        for (int64_t t = 0; t < T_; t++) {
          const int64_t id = out[b * T_ + t];
          T& s = g[b * T_ + t];
          s = 0;
          if (id < 0) continue;
          const T sign = t ? T(1) : T(-1);
          total += softplus(sign * f.dot(to, id * out_stride, D, mean), s);
          s *= sign;
          f.add(to, id * out_stride, D, s, gradient);
        }
        if (count > 1)
          for (int64_t e = 0; e < D; e++) gradient[e] /= T(count);
        l[b] = total;
      }
    });
  });
  return {loss, hidden, pull, slope};
}

// The places of ids (n,), those of an id one after the other and in their order, and ids in rising order; without ids below 0.
class Places {
 public:
  Places(const Tensor& ids, int64_t rows) {
    const int64_t* id = ids.const_data_ptr<int64_t>();
    for (int64_t i = 0, n = ids.numel(); i < n; i++)
      if (id[i] >= 0) place_.push_back(int32_t(i));
    std::vector<int32_t> sorted(place_.size());
    for (int64_t shift = 0; shift < 63 && (rows - 1) >> shift > 0; shift += kBits) {
      int32_t first[kBuckets + 1] = {};
      const auto bucket = [&](int32_t i) { return id[i] >> shift & (kBuckets - 1); };
      for (const int32_t i : place_) first[bucket(i) + 1]++;
      std::partial_sum(first, first + kBuckets, first);
      for (const int32_t i : place_) sorted[first[bucket(i)]++] = i;
      place_.swap(sorted);
    }
    for (size_t k = 0; k < place_.size(); k++)
      if (k == 0 || id[place_[k]] != id[place_[k - 1]]) begin_.push_back(int32_t(k));
    begin_.push_back(int32_t(place_.size()));
  }
  int64_t rows() const { return int64_t(begin_.size()) - 1; }
  int64_t count() const { return int64_t(place_.size()); }
  int64_t place(int64_t k) const { return place_[k]; }
  int64_t begin(int64_t r) const { return begin_[r]; }
  int64_t first_from(int64_t k) const { return std::lower_bound(begin_.begin(), begin_.end(), int32_t(k)) - begin_.begin(); }

 private:
  static constexpr int64_t kBits = 9, kBuckets = 1 << kBits;
  std::vector<int32_t> place_, begin_;
};

// Row r of the sums goes to row to(r) of out.
template <class F>
void write_sums(const Places& places, const Tensor& source_given, const OptionalTensor& factor_given, const Tensor& weight_given,
                int64_t columns, Tensor out, const F& to) {
  const Tensor source = dense_rows(source_given), weight = as_contiguous(as_dtype(weight_given, source.scalar_type()));
  const int64_t B = source.size(0), D = source.size(1), stride = source.stride(0);
  expect_shape(kOp, weight, {B});
  Tensor factor;
  if (factor_given) {
    expect_shape(kOp, *factor_given, {B, columns});
    factor = as_contiguous(*factor_given);
  }
  const Array from = array_of(source), target = array_of(out);
  with_accumulator(source.scalar_type(), [&]<class T>(T) {
    const WordRows<T>& f = word_rows<T>();
    const T *w = weight.const_data_ptr<T>(), *g = factor.defined() ? factor.const_data_ptr<T>() : nullptr;
    parallel_for(places.count(), D, [&](int64_t begin, int64_t end) {
      std::vector<T> sum(D);
      for (int64_t r = places.first_from(begin); r < places.rows() && places.begin(r) < end; r++) {
        std::fill(sum.begin(), sum.end(), T(0));
        for (int64_t k = places.begin(r); k < places.begin(r + 1); k++) {
          const int64_t place = places.place(k), b = place / columns;
          f.add(from, b * stride, D, g ? w[b] * g[place] : w[b], sum.data());
        }
        f.write(sum.data(), target, to(r) * D, D);
      }
    });
  });
}

Tensor checked(const Tensor& source, const Tensor& ids, int64_t table) {
  FASTSSL_CHECK(source.dim() == 2, kOp, ": expected source (B, D), got ", source.sizes());
  expect_ids(kOp, ids, source.size(0));
  FASTSSL_CHECK(ids.numel() < std::numeric_limits<int32_t>::max(), kOp, ": too many ids in one call: ", ids.numel());
  const Tensor dense = as_contiguous(ids);
  check_below(dense, table);
  return dense;
}

std::tuple<Tensor, Tensor> word_pairs_rows(const Tensor& source, const OptionalTensor& factor, const Tensor& weight,
                                           const Tensor& ids_given, int64_t table, ScalarType dtype) {
  const Tensor ids = checked(source, ids_given, table);
  const Places places(ids, table);
  Tensor rows = empty({places.rows()}, ids.scalar_type());
  Tensor out = new_tensor({places.rows(), source.size(1)}, dtype);
  int64_t* row = rows.mutable_data_ptr<int64_t>();
  const int64_t* id = ids.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < places.rows(); r++) row[r] = id[places.place(places.begin(r))];
  write_sums(places, source, factor, weight, ids.size(1), out, [](int64_t r) { return r; });
  return {rows, out};
}

Tensor word_pairs_table(const Tensor& source, const OptionalTensor& factor, const Tensor& weight, const Tensor& ids_given,
                        int64_t table, ScalarType dtype) {
  const Tensor ids = checked(source, ids_given, table);
  const Places places(ids, table);
  Tensor out = zeros({table, source.size(1)}, dtype);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  write_sums(places, source, factor, weight, ids.size(1), out, [&](int64_t r) { return id[places.place(places.begin(r))]; });
  return out;
}

}  // namespace
}  // namespace fastssl::word_pairs

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("word_pairs_fwd", TORCH_BOX(&fastssl::word_pairs::word_pairs_fwd));
  m.impl("word_pairs_rows", TORCH_BOX(&fastssl::word_pairs::word_pairs_rows));
  m.impl("word_pairs_table", TORCH_BOX(&fastssl::word_pairs::word_pairs_table));
}
