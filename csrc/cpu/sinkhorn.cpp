// The two passes of Sinkhorn's iteration over logits x (M, K), which read each logit once from memory and store no plan.
//   start:  top_gk = max_m x_mk,  sum_gk = sum_m exp((x_mk - top_gk) / T)       over the rows m of group g = (m // inner) mod G
//   step:   c_gk = sum_m softmax((x_m + b_g) / T)_k         the exponentials of a row are kept in a cache until their sum is known
// The rows of a group are cut into parts, as many whatever the number of threads is, whose sums are joined in their order.
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/prototype_rows.h"
#include "cpu/tokens.h"

namespace fastssl::sinkhorn {
namespace {

constexpr const char* kOp = "sinkhorn";
// So many tasks are wanted. A part has at least kFewest rows, which repay its own sums, and at most kMost, so that sums in float32
// lose no digits.
constexpr int64_t kTasks = 16, kFewest = 8, kMost = 4096;
// The columns that the first pass takes at a time: their largest entries and sums stay in the first-level cache.
constexpr int64_t kStrip = 2048;

// Rows of a group, by their number in it: r is row ((r / inner) groups + g) inner + r % inner.
struct Rows {
  int64_t inner, groups, of_each, parts;

  Rows(const Tensor& logits, int64_t inner, int64_t groups, int64_t tasks)
      : inner(inner), groups(groups), of_each(logits.size(0) / groups) {
    const int64_t wanted = std::max<int64_t>((tasks + groups - 1) / groups, (of_each + kMost - 1) / kMost);
    parts = std::max<int64_t>(1, std::min(wanted, of_each / kFewest));
  }
  int64_t begin(int64_t part) const { return of_each * part / parts; }
  int64_t row(int64_t group, int64_t r) const { return (r / inner * groups + group) * inner + r % inner; }
};

Tensor checked(const Tensor& logits, int64_t inner, int64_t groups) {
  FASTSSL_CHECK(logits.dim() == 2 && inner > 0 && groups > 0 && logits.size(0) % (inner * groups) == 0, kOp, ": expected rows in ",
                groups, " groups of multiples of ", inner, ", got ", logits.sizes());
  return logits.stride(1) == 1 ? logits : as_contiguous(logits);
}

template <class T>
T scale_of(const Tensor& temperature) {
  return T(1.0 / as_double(as_dtype(temperature, ScalarType::Double)));
}

// Joins the largest entries and sums of the parts of one group, over columns begin .. end.
template <class T>
void join(const T* tops, const T* sums, int64_t parts, int64_t columns, int64_t begin, int64_t end, T scale, T* top, T* sum) {
  for (int64_t k = begin; k < end; k++) {
    T most = tops[k];
    for (int64_t part = 1; part < parts; part++)
      if (!(tops[part * columns + k] <= most)) most = tops[part * columns + k];
    double total = 0.0;
    for (int64_t part = 0; part < parts; part++) {
      const T each = sums[part * columns + k];
      if (each != T(0)) total += double(each) * std::exp(double(tops[part * columns + k] - most) * scale);
    }
    top[k] = most, sum[k] = T(total);
  }
}

std::tuple<Tensor, Tensor> sinkhorn_start(const Tensor& given, const Tensor& temperature, int64_t inner, int64_t groups) {
  const Tensor logits = checked(given, inner, groups);
  const int64_t columns = logits.size(1), strips = (columns + kStrip - 1) / kStrip;
  const Rows rows(logits, inner, groups, (kTasks + strips - 1) / strips);
  const ScalarType wide = accumulator(logits.scalar_type());
  Tensor top = empty({groups, columns}, wide), sum = empty({groups, columns}, wide);
  with_accumulator(logits.scalar_type(), [&]<class T>(T) {
    const T scale = scale_of<T>(temperature);
    std::vector<T> some_tops, some_sums;
    T *tops = top.mutable_data_ptr<T>(), *sums = sum.mutable_data_ptr<T>();
    if (rows.parts > 1) {
      some_tops.resize(groups * rows.parts * columns), some_sums.resize(some_tops.size());
      tops = some_tops.data(), sums = some_sums.data();
    }
    const int64_t tasks = groups * rows.parts * strips;
    parallel_for(tasks, 4 * kStrip * (rows.of_each / rows.parts + 1), [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; task++) {
        const int64_t at = task / strips, group = at / rows.parts, part = at % rows.parts;
        const int64_t k = task % strips * kStrip, wide = std::min(kStrip, columns - k);
        T *t = tops + at * columns + k, *s = sums + at * columns + k;
        std::fill_n(t, wide, -std::numeric_limits<T>::infinity());
        std::fill_n(s, wide, T(0));
        for (int64_t r = rows.begin(part); r < rows.begin(part + 1); r++)
          prototype_rows<T>().join_columns(array_of(logits), rows.row(group, r) * logits.stride(0) + k, wide, scale, t, s);
      }
    });
    if (rows.parts == 1) return;
    parallel_for(groups * strips, 16 * kStrip * rows.parts, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; task++) {
        const int64_t group = task / strips, k = task % strips * kStrip, from = group * rows.parts * columns;
        join(tops + from, sums + from, rows.parts, columns, k, std::min(k + kStrip, columns), scale,
             top.mutable_data_ptr<T>() + group * columns, sum.mutable_data_ptr<T>() + group * columns);
      }
    });
  });
  return {top, sum};
}

// Adds the softmaxes of a row's heads to `sums`. The exponentials of a head stay in `kept` until their sum is known.
template <class T>
void add_row(Array logits, int64_t i, IntArrayRef heads, const T* bias, T scale, std::vector<T>& kept, T* sums) {
  const PrototypeRows<T>& f = prototype_rows<T>();
  int64_t start = 0;
  for (int64_t size : heads) {
    RowSum<T> row{-std::numeric_limits<T>::infinity(), T(0)};
    T* tops = kept.data() + size;
    f.join_and_keep(logits, i + start, size, bias + start, scale, &row, kept.data(), tops);
    if (row.sum != T(0)) f.add_kept(kept.data(), tops, size, scale, row, sums + start);
    start += size;
  }
}

Tensor sinkhorn_step(const Tensor& given, const Tensor& bias_given, const Tensor& temperature, IntArrayRef heads, int64_t inner) {
  const int64_t groups = bias_given.size(0), columns = given.size(1);
  const Tensor logits = checked(given, inner, groups);
  expect_shape(kOp, bias_given, {groups, columns});
  int64_t in_heads = 0;
  for (int64_t size : heads) in_heads += size;
  FASTSSL_CHECK(in_heads == columns && std::all_of(heads.begin(), heads.end(), [](int64_t size) { return size > 0; }), kOp,
                ": expected heads of ", columns, " columns, got ", heads);
  const Rows rows(logits, inner, groups, kTasks);
  const Tensor bias = as_contiguous(as_dtype(bias_given, accumulator(logits.scalar_type())));
  Tensor sum = empty(bias.sizes(), bias.scalar_type());
  with_accumulator(logits.scalar_type(), [&]<class T>(T) {
    const T scale = scale_of<T>(temperature);
    std::vector<T> some;
    T* sums = sum.mutable_data_ptr<T>();
    if (rows.parts > 1) some.resize(groups * rows.parts * columns), sums = some.data();
    parallel_for(groups * rows.parts, 8 * columns * (rows.of_each / rows.parts + 1), [&](int64_t first, int64_t last) {
      std::vector<T> kept(columns + columns / kColumns + 1);
      for (int64_t task = first; task < last; task++) {
        const int64_t group = task / rows.parts, part = task % rows.parts;
        T* own = sums + task * columns;
        std::fill_n(own, columns, T(0));
        for (int64_t r = rows.begin(part); r < rows.begin(part + 1); r++)
          add_row(array_of(logits), rows.row(group, r) * logits.stride(0), heads, bias.const_data_ptr<T>() + group * columns, scale,
                  kept, own);
      }
    });
    if (rows.parts == 1) return;
    T* out = sum.mutable_data_ptr<T>();
    parallel_for(groups * columns, rows.parts, [&](int64_t first, int64_t last) {
      for (int64_t at = first; at < last; at++) {
        double total = 0.0;
        for (int64_t part = 0; part < rows.parts; part++)
          total += sums[(at / columns * rows.parts + part) * columns + at % columns];
        out[at] = T(total);
      }
    });
  });
  return sum;
}

}  // namespace
}  // namespace fastssl::sinkhorn

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("sinkhorn_start", TORCH_BOX(&fastssl::sinkhorn::sinkhorn_start));
  m.impl("sinkhorn_step", TORCH_BOX(&fastssl::sinkhorn::sinkhorn_step));
}
