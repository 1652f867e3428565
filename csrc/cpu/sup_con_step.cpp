// The kernels are those of similarity.cpp; sup_con_step.h has the equations.
#include "cpu/sup_con_step.h"

#include <numeric>

#include "cpu/class_rows.h"
#include "cpu/similarity_problem.h"
#include "cpu/similarity_triangle.h"
#include "cpu/softplus.h"
#include "cpu/unit_pairs.h"

namespace fastssl::sup_con_step {
namespace {

using similarity::Problem;
using similarity::State;

// The samples in the order of their classes: class c has those from start[c] to start[c + 1].
struct Classes {
  const int32_t* sample;
  std::vector<int64_t> start;

  explicit Classes(const Tensor& classes) : sample(classes.const_data_ptr<int32_t>()) {
    const int64_t B = classes.size(1);
    const int32_t* of = sample + B;
    for (int64_t k = 0; k < B; k++)
      if (k == 0 || of[k] != of[k - 1]) start.push_back(k);
    start.push_back(B);
  }
  int64_t count() const { return int64_t(start.size()) - 1; }
  int64_t size(int64_t c) const { return start[c + 1] - start[c]; }

  // Calls visit(row) for the V rows of each sample of class c, in a fixed order.
  template <class Visit>
  void rows_of(int64_t c, int64_t V, const Visit& visit) const {
    const int64_t B = start.back();
    for (int64_t k = start[c]; k < start[c + 1]; k++)
      for (int64_t view = 0; view < V; view++) visit(view * B + sample[k]);
  }
};

Tensor classes_of(const Tensor& labels, int64_t B) {
  Tensor classes = empty({2, B}, ScalarType::Int);
  int32_t *sample = classes.mutable_data_ptr<int32_t>(), *of = sample + B;
  std::iota(sample, sample + B, 0);
  if (!labels.defined()) {
    std::iota(of, of + B, 0);
    return classes;
  }
  const Tensor wide = as_contiguous(as_dtype(labels, ScalarType::Long));
  const int64_t* label = wide.const_data_ptr<int64_t>();
  if (!std::is_sorted(label, label + B)) std::stable_sort(sample, sample + B, [&](int a, int b) { return label[a] < label[b]; });
  for (int64_t k = 0, c = 0; k < B; k++) {
    c += k > 0 && label[sample[k]] != label[sample[k - 1]];
    of[k] = int32_t(c);
  }
  return classes;
}

template <class T>
struct Numbers {
  T *norm, *top, *sum, *lse, *mean;
  int32_t* peak;
  explicit Numbers(const Forward& left) : peak(const_cast<int32_t*>(left.peak.const_data_ptr<int32_t>())) {
    const int64_t N = left.peak.numel();
    norm = const_cast<T*>(left.numbers.const_data_ptr<T>());
    top = norm + N, sum = norm + 2 * N, lse = norm + 3 * N, mean = norm + 4 * N;
  }
  State<T> state() const { return {{top, sum, peak}}; }
};

// A class of two rows, of one sample or of two. Each is the one positive of the other.
bool is_pair(const Classes& classes, int64_t c, int64_t V) { return V <= 2 && V * classes.size(c) == 2; }

// Each row has an id of its own, except that the rows of a pair share one.
template <class E>
Problem<E> problem_of(const Tensor& z, const Classes& classes, int64_t V, double scale) {
  auto p = similarity::problem<E>(z, std::nullopt, scale, std::nullopt, std::nullopt, std::nullopt);
  p.x.id.assign(z.size(0) + similarity::kPad, 0);
  std::iota(p.x.id.begin(), p.x.id.begin() + z.size(0), 0);
  for (int64_t c = 0; c < classes.count(); c++) {
    int32_t first = -1;
    if (!is_pair(classes, c, V)) continue;
    classes.rows_of(c, V, [&](int64_t row) { p.x.id[row] = first = first < 0 ? int32_t(row) : first; });
  }
  p.y.id = p.x.id;
  return p;
}

// The sum of the rows of class c, in float64. Rows that have another dtype than T go through `buffer`.
template <class T>
void class_sum(const Classes& classes, int64_t c, int64_t V, const Array& z, int64_t D, T* buffer, std::vector<double>& sum) {
  std::fill(sum.begin(), sum.end(), 0.0);
  classes.rows_of(c, V,
                  [&](int64_t row) { class_rows<T>().add(neighbour_rows<T>().values(z, row * D, D, buffer), D, sum.data()); });
}

// z, the norms, and the mean similarity of each row's positives.
template <class T>
void positives(const Array& features, const Classes& classes, int64_t V, int64_t D, bool normalize, const Array& z,
               const Numbers<T>& left) {
  const auto& f = rows<T>();
  const auto& g = neighbour_rows<T>();
  const int64_t B = classes.start.back();
  parallel_for(classes.count(), 4 * V * D * B / classes.count(), [&](int64_t begin, int64_t end) {
    std::vector<double> sum(D);
    std::vector<T> others(D), buffer(D);
    for (int64_t c = begin; c < end; c++) {
      classes.rows_of(c, V, [&](int64_t row) {
        const int64_t from = (row % B * V + row / B) * D;
        if (normalize) {
          unit_pairs::unit_row(features, from, D, T(unit_pairs::kEps), z, row * D, buffer.data(), left.norm + row);
        } else {
          const T* x = g.values(features, from, D, buffer.data());
          g.store(x, D, z, row * D);
          left.norm[row] = std::sqrt(f.dot(x, x, D));
        }
      });
      class_sum(classes, c, V, z, D, buffer.data(), sum);
      const int64_t count = V * classes.size(c) - 1;
      classes.rows_of(c, V, [&](int64_t row) {
        const T* x = g.values(z, row * D, D, buffer.data());
        class_rows<T>().without(sum.data(), x, D, others.data());
        left.mean[row] = f.dot(x, others.data(), D) / T(std::max<int64_t>(count, 1));
      });
    }
  });
}

// Whether all logits are small, which no infinite norm and no NaN allows.
template <class E>
bool bounded(const Sum<E>* norm, int64_t N, double scale, bool normalize) {
  const double longest = std::accumulate(norm, norm + N, 0.0, [](double a, double b) { return similarity::larger(a, b); });
  const double length = normalize && std::isfinite(longest) ? similarity::kLongestUnit<E> : longest;
  return std::abs(scale) * length * length <= similarity::kBound;
}

// Calls visit(class, row, u_i, number of positives).
template <class T, class Visit>
void each_anchor(const Classes& classes, int64_t V, const Numbers<T>& left, double scale, const Visit& visit) {
  for (int64_t c = 0; c < classes.count(); c++)
    classes.rows_of(
        c, V, [&](int64_t row) { visit(c, row, double(left.lse[row]) - scale * double(left.mean[row]), V * classes.size(c) - 1); });
}

double weight(int64_t N, bool mean) { return mean ? 1.0 / double(N) : 1.0; }

}  // namespace

Forward forward(const Tensor& given, const Tensor& labels, double scale, bool normalize, bool mean, bool keep) {
  const Tensor features = as_contiguous(given);
  const int64_t B = features.size(0), V = features.size(1), D = features.size(2), N = V * B;
  const ScalarType wide = similarity::compute_dtype(features);
  Forward out{empty({}, wide),       {},
              empty({5, N}, wide),   empty({N}, ScalarType::Int),
              classes_of(labels, B), similarity::new_kept(keep ? N : 0, wide)};
  const Classes classes(out.classes);
  similarity::dispatch(features, [&](auto zero) {
    using E = decltype(zero);
    using T = Sum<E>;
    out.z = empty({N, D}, kScalarType<E>);
    const Numbers<T> left(out);
    positives(read_only(features), classes, V, D, normalize, array_of(out.z), left);
    auto p = problem_of<E>(out.z, classes, V, scale);
    p.bounded = bounded<E>(left.norm, N, scale, normalize);
    similarity::forward_triangle(p, left.state(), left.lse, similarity::kept_in<T>(out.kept, N));
    double total = 0.0;
    each_anchor(classes, V, left, scale, [&](int64_t c, int64_t, double u, int64_t count) {
      if (count > 0 || std::isnan(u)) total += is_pair(classes, c, V) ? softplus(u) : u;
    });
    *out.loss.mutable_data_ptr<T>() = T(total * weight(N, mean));
  });
  return out;
}

bool each_sample_once(const Tensor& given) {
  const Tensor classes = as_contiguous(given);
  const int64_t B = classes.size(1);
  const int32_t* sample = classes.const_data_ptr<int32_t>();
  std::vector<bool> seen(B);
  return std::all_of(sample, sample + B, [&](int32_t k) {
    if (k < 0 || k >= B || seen[k]) return false;
    return bool(seen[k] = true);
  });
}

Tensor backward(const Tensor& dloss, const Forward& given, double scale, bool normalize, bool mean, ScalarType dtype) {
  const Forward saved{{},
                      as_contiguous(given.z),
                      as_contiguous(given.numbers),
                      as_contiguous(given.peak),
                      as_contiguous(given.classes),
                      as_contiguous(given.kept)};
  const int64_t N = saved.z.size(0), D = saved.z.size(1), B = saved.classes.size(1), V = N / B;
  const Classes classes(saved.classes);
  Tensor dfeatures = empty({B, V, D}, dtype), dz = empty({N, D}, saved.numbers.scalar_type());
  similarity::dispatch(saved.z, [&](auto zero) {
    using E = decltype(zero);
    using T = Sum<E>;
    const Numbers<T> left(saved);
    auto p = problem_of<E>(saved.z, classes, V, scale);
    similarity::set_backward(p, left.state());
    const double upstream = double(*dloss.const_data_ptr<T>()) * weight(N, mean);
    std::vector<T> g(N);
    std::vector<double> of_class(classes.count(), 0.0);  // the factor of P_i in G_i
    each_anchor(classes, V, left, scale, [&](int64_t c, int64_t row, double u, int64_t count) {
      const double share = count == 0 && !std::isnan(u) ? 0.0 : upstream * (is_pair(classes, c, V) ? sigmoid(u) : 1.0);
      g[row] = T(share);
      of_class[c] -= 2.0 * scale * share / double(std::max<int64_t>(count, 1) * (count + 1));
    });
    T* G = dz.mutable_data_ptr<T>();
    similarity::backward_triangle(p, left.state(), g.data(), T(scale), true, G, similarity::kept_in<T>(saved.kept, N));
    const Array z = read_only(saved.z), out = array_of(dfeatures);
    const auto& f = neighbour_rows<T>();
    parallel_for(classes.count(), 4 * N * D / classes.count(), [&](int64_t begin, int64_t end) {
      std::vector<double> sum(D);
      std::vector<T> buffer(D);
      for (int64_t c = begin; c < end; c++) {
        class_sum(classes, c, V, z, D, buffer.data(), sum);
        classes.rows_of(c, V, [&](int64_t row) {
          const T* x = f.values(z, row * D, D, buffer.data());
          T* of_row = G + row * D;
          class_rows<T>().add_without(of_class[c], sum.data(), x, D, of_row);
          const bool project = normalize && left.norm[row] > T(unit_pairs::kEps);
          const T factor = normalize ? T(1) / left.norm[row] : T(1);
          f.write(x, of_row, D, T(0), project, factor, out, (row % B * V + row / B) * D);
        });
      }
    });
  });
  return dfeatures;
}

}  // namespace fastssl::sup_con_step
