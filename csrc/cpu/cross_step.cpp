// What lies around similarity_cross; cross_step.h has the equations.
#include "cpu/cross_step.h"

#include <numeric>

#include "cpu/similarity_cross.h"
#include "cpu/similarity_problem.h"
#include "cpu/softplus.h"
#include "cpu/unit_pairs.h"

namespace fastssl::cross_step {
namespace {

using similarity::OptTensor;

constexpr int64_t kKeepElements = 1 << 24;  // as in fastssl/ops/similarity_cross.py

template <class T>
struct Numbers {
  T *norm, *row, *column, *dot;
  int64_t N;
  explicit Numbers(const Tensor& numbers) : norm(const_cast<T*>(numbers.const_data_ptr<T>())), N(numbers.size(1)) {
    row = norm + 2 * N, column = norm + 3 * N, dot = norm + 4 * N;
  }
};

Tensor numbered(int64_t N) {
  const Tensor ids = empty({N}, ScalarType::Int);
  std::iota(ids.mutable_data_ptr<int32_t>(), ids.mutable_data_ptr<int32_t>() + N, 0);
  return ids;
}

double weight(int64_t N, const How& how) { return (how.mean ? 1.0 / double(N) : 1.0) / (how.both ? 2.0 : 1.0); }

}  // namespace

Forward forward(const Tensor& a_given, const Tensor& b_given, const OptTensor& factor, const How& how, bool keep) {
  const Tensor a = as_contiguous(a_given), b = as_contiguous(b_given);
  const int64_t N = a.size(0), D = a.size(1);
  const ScalarType wide = similarity::compute_dtype(a);
  Forward out{.loss = empty({}, wide), .numbers = empty({5, N}, wide)};
  similarity::dispatch(a, [&](auto zero) {
    using E = decltype(zero);
    using T = Sum<E>;
    constexpr auto dtype = kScalarType<E>;
    const Numbers<T> left(out.numbers);
    if (how.normalize) {
      const Tensor z = empty({2 * N, D}, dtype);
      unit_pairs::forward<T>({read_only(a), read_only(b)}, N, D, T(unit_pairs::kEps), array_of(z), left.norm, left.dot);
      out.x = narrowed(z, 0, 0, N), out.y = narrowed(z, 0, N, N);
    } else {
      out.x = as_dtype(a, dtype), out.y = as_dtype(b, dtype);
      const Array x = read_only(out.x), y = read_only(out.y);
      std::fill_n(left.norm, 2 * N, T(1));
      parallel_for(N, D, [&](int64_t begin, int64_t end) {
        std::vector<T> buffer(D);
        for (int64_t i = begin; i < end; i++)
          left.dot[i] = rows<T>().dot_with(x, i * D, neighbour_rows<T>().values(y, i * D, D, buffer.data()), D);
      });
    }
    const Tensor ids = numbered(N);
    const int64_t keep_rows = keep ? std::min(N, kKeepElements / N) : 0;
    Tensor row, column, rank;
    std::tie(row, column, rank, out.kept, out.state, out.peak) =
        similarity::similarity_cross_fwd(out.x, out.y, how.scale, factor, ids, ids, std::nullopt, keep_rows);
    std::copy_n(row.const_data_ptr<T>(), N, left.row), std::copy_n(column.const_data_ptr<T>(), N, left.column);
    const double scale = similarity::effective(how.scale, factor);
    double sum = 0.0;
    for (int64_t i = 0; i < N; i++) sum += softplus(double(left.row[i]) - scale * double(left.dot[i]));
    for (int64_t i = 0; how.both && i < N; i++) sum += softplus(double(left.column[i]) - scale * double(left.dot[i]));
    *out.loss.mutable_data_ptr<T>() = T(sum * weight(N, how));
  });
  return out;
}

namespace {

// Adds -scale e_i times the partner to dx and dy, which have no elements where they are not wanted; brings them back through the
// norms where rows were normalised. Leaves them in `dtype`.
template <class T>
void finish(const Forward& left, const How& how, const T* ddot, ScalarType dtype, Tensor& dx, Tensor& dy) {
  const Numbers<T> of(left.numbers);
  const int64_t N = left.x.size(0), D = left.x.size(1);
  const auto& f = neighbour_rows<T>();
  const Array unit[2] = {read_only(left.x), read_only(left.y)};
  Tensor made[2] = {dx, dy};
  T* const sums[2] = {similarity::data_or_null<T>(made[0]), similarity::data_or_null<T>(made[1])};
  if (dx.scalar_type() != dtype) dx = empty(dx.sizes(), dtype), dy = empty(dy.sizes(), dtype);
  const Array out[2] = {array_of(dx), array_of(dy)};
  parallel_for(N, 2 * D, [&](int64_t begin, int64_t end) {
    std::vector<T> wide(2 * D);
    for (int side = 0; side < 2; side++)
      for (int64_t i = begin; sums[side] && i < end; i++) {
        T *G = sums[side] + i * D, norm = of.norm[side * N + i];
        const T *own = f.values(unit[side], i * D, D, wide.data()), *partner = f.values(unit[1 - side], i * D, D, &wide[D]);
        for (int64_t d = 0; d < D; d++) G[d] += ddot[i] * partner[d];
        const bool project = how.normalize && norm > T(unit_pairs::kEps);
        f.write(own, G, D, T(0), project, T(1) / norm, out[side], i * D);
      }
  });
}

}  // namespace

std::array<Tensor, 3> backward(const Tensor& dloss, const Forward& given, const OptTensor& factor, const How& how,
                               const std::vector<bool>& wanted, ScalarType dtype) {
  Forward left = given;
  left.x = as_contiguous(given.x), left.y = as_contiguous(given.y), left.numbers = as_contiguous(given.numbers);
  const int64_t N = left.x.size(0);
  std::array<Tensor, 3> gradients;
  similarity::dispatch(left.x, [&](auto zero) {
    using T = Sum<decltype(zero)>;
    const Numbers<T> of(left.numbers);
    const double scale = similarity::effective(how.scale, factor);
    const double upstream = double(*dloss.const_data_ptr<T>()) * weight(N, how);
    const Tensor drow = empty({N}, left.numbers.scalar_type()), dcolumn = empty({N}, left.numbers.scalar_type());
    T *g = drow.mutable_data_ptr<T>(), *h = dcolumn.mutable_data_ptr<T>();
    std::vector<T> ddot(N);
    double of_pairs = 0.0;
    for (int64_t i = 0; i < N; i++) {
      const double dot = double(of.dot[i]), one = upstream * sigmoid(double(of.row[i]) - scale * dot);
      const double other = how.both ? upstream * sigmoid(double(of.column[i]) - scale * dot) : 0.0;
      g[i] = T(one), h[i] = T(other), ddot[i] = T(-scale * (one + other)), of_pairs += (one + other) * dot;
    }
    const Tensor ids = numbered(N);
    auto [dx, dy, dscale] = similarity::similarity_cross_bwd(drow, dcolumn, left.state, left.peak, left.kept, left.x, left.y,
                                                             how.scale, factor, ids, ids, wanted);
    finish<T>(left, how, ddot.data(), dtype, dx, dy);
    gradients = {wanted[0] ? dx : Tensor(), wanted[1] ? dy : Tensor(), Tensor()};
    if (wanted[2]) {  // rounded as a cast does it: a number beyond the factor's dtype becomes infinite
      const double dfactor = how.scale * (as_double(dscale) - of_pairs);
      const Tensor exact = empty(factor->sizes(), ScalarType::Double);
      *exact.mutable_data_ptr<double>() = dfactor;
      gradients[2] = as_dtype(exact, factor->scalar_type());
    }
  });
  return gradients;
}

}  // namespace fastssl::cross_step
