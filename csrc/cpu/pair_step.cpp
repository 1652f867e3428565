// The kernels are those of similarity.cpp; pair_step.h has the equations.
#include "cpu/pair_step.h"

#include "cpu/similarity_problem.h"
#include "cpu/similarity_triangle.h"
#include "cpu/softplus.h"
#include "cpu/unit_pairs.h"

namespace fastssl::pair_step {
namespace {

using similarity::Problem;
using similarity::State;

// The numbers that the backward is left: of each row its norm, maximum, sum and lse, and of each pair its similarity.
template <class T>
struct Numbers {
  T *norm, *top, *sum, *lse, *dot;
  int32_t* peak;
  Numbers(const Tensor& lines, const Tensor& peaks) : peak(const_cast<int32_t*>(peaks.const_data_ptr<int32_t>())) {
    const int64_t B = lines.size(1);
    norm = const_cast<T*>(lines.const_data_ptr<T>());
    top = norm + 2 * B, sum = norm + 4 * B, lse = norm + 6 * B, dot = norm + 8 * B;
  }
  State<T> state() const { return {{top, sum, peak}}; }
  double u(int64_t i, int64_t B, double scale) const { return double(lse[i]) - scale * double(dot[i < B ? i : i - B]); }
};

// The views of one picture share an id.
template <class E>
Problem<E> problem_of(const Tensor& z, double scale) {
  auto p = similarity::problem<E>(z, std::nullopt, scale, std::nullopt, std::nullopt, std::nullopt);
  const int64_t N = z.size(0);
  p.x.id.assign(N + similarity::kPad, 0);
  for (int64_t i = 0; i < N; i++) p.x.id[i] = int32_t(i < N / 2 ? i : i - N / 2);
  p.y.id = p.x.id;
  return p;
}

// Whether all logits are small, which no infinite norm and no NaN allows.
template <class E>
bool bounded(const Sum<E>* norm, int64_t N, double scale) {
  constexpr double kLongest = similarity::kLongestUnit<E>;
  const bool finite = std::all_of(norm, norm + N, [](Sum<E> length) { return std::isfinite(length); });
  return finite && std::abs(scale) * kLongest * kLongest <= similarity::kBound;
}

double weight(int64_t N, bool mean) { return mean ? 1.0 / double(N) : 1.0; }

}  // namespace

Forward forward(const Tensor& a_given, const Tensor& b_given, double scale, bool mean, bool keep) {
  const Tensor a = as_contiguous(a_given), b = as_contiguous(b_given);
  const int64_t B = a.size(0), D = a.size(1), N = 2 * B;
  const ScalarType wide = similarity::compute_dtype(a);
  Forward out{empty({}, wide), {}, empty({9, B}, wide), empty({N}, ScalarType::Int), similarity::new_kept(keep ? N : 0, wide)};
  similarity::dispatch(a, [&](auto zero) {
    using E = decltype(zero);
    using T = Sum<E>;
    out.z = empty({N, D}, kScalarType<E>);
    const Numbers<T> left(out.numbers, out.peak);
    unit_pairs::forward<T>({read_only(a), read_only(b)}, B, D, T(unit_pairs::kEps), array_of(out.z), left.norm, left.dot);
    auto p = problem_of<E>(out.z, scale);
    p.bounded = bounded<E>(left.norm, N, scale);
    similarity::forward_triangle(p, left.state(), left.lse, similarity::kept_in<T>(out.kept, N));
    double sum = 0.0;
    for (int64_t i = 0; i < N; i++) sum += softplus(left.u(i, B, scale));
    *out.loss.mutable_data_ptr<T>() = T(sum * weight(N, mean));
  });
  return out;
}

std::pair<Tensor, Tensor> backward(const Tensor& dloss, const Forward& given, double scale, bool mean, ScalarType dtype) {
  const Tensor z = as_contiguous(given.z), lines = as_contiguous(given.numbers), peaks = as_contiguous(given.peak);
  const Tensor kept = as_contiguous(given.kept);
  const int64_t N = z.size(0), B = N / 2, D = z.size(1);
  const ScalarType wide = dtype;
  Tensor da = empty({B, D}, wide), db = empty({B, D}, wide), dz = empty(z.sizes(), lines.scalar_type());
  similarity::dispatch(z, [&](auto zero) {
    using E = decltype(zero);
    using T = Sum<E>;
    const Numbers<T> left(lines, peaks);
    auto p = problem_of<E>(z, scale);
    similarity::set_backward(p, left.state());
    const double upstream = double(*dloss.const_data_ptr<T>()) * weight(N, mean);
    std::vector<T> g(N), ddot(B);
    for (int64_t i = 0; i < B; i++) {
      const double of_a = upstream * sigmoid(left.u(i, B, scale)), of_b = upstream * sigmoid(left.u(B + i, B, scale));
      g[i] = T(of_a), g[B + i] = T(of_b), ddot[i] = T(-scale * (of_a + of_b));
    }
    T* sums = dz.mutable_data_ptr<T>();
    similarity::backward_triangle(p, left.state(), g.data(), T(scale), true, sums, similarity::kept_in<T>(kept, N));
    unit_pairs::backward<T>(read_only(dz), ddot.data(), read_only(z), left.norm, T(unit_pairs::kEps), B, D,
                            {array_of(da), array_of(db)});
  });
  return {da, db};
}

}  // namespace fastssl::pair_step
