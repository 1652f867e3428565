// The element functions of csrc/cpu, compiled alone, against double: a program that runs where torch does not, such as an ARM CPU
// under qemu. For each instruction set of the machine and each function it prints
//   set function error
// with the largest error in units of what the arithmetic may lose. u = 2^-24 is half a unit in the last place of a float near 1.
//   2^t         is 2 u off; its argument x log2(e) is |x| 2 u off
//   a sum of n  loses n u of the sum of the sizes of its terms
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <vector>

#include "cpu/isa.h"
#include "cpu/tile_rows.h"
#include "cpu/token_rows.h"

namespace {

using fastssl::Rows;
using Floats = std::vector<float>;
using Ids = std::vector<int32_t>;

constexpr double kU = 0x1p-24;
constexpr float kInf = std::numeric_limits<float>::infinity();
// A tile whose width is no multiple of 16 logits, padded to one with -inf, in rows that are further apart.
constexpr int kM = 37, kN = 45, kWide = 48, kLd = 64;

// The largest |got - want| / bound of one function.
class Worst {
 public:
  void see(double got, double want, double bound) {
    if (got == want || (std::isnan(got) && std::isnan(want))) return;
    const double error = std::fabs(got - want) / bound;
    worst_ = std::max(worst_, std::isnan(error) ? HUGE_VAL : error);
  }
  void exact(double got, double want) { see(got, want, 0); }
  void print(const char* function) const {
    std::printf("%s %s %.3g\n", fastssl::isa::name(fastssl::isa::current()), function, worst_);
  }

 private:
  double worst_ = 0;
};

// The same numbers on every machine.
class Random {
 public:
  float between(float low, float high) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * float(state_ >> 40) * 0x1p-24f;
  }
  Floats some(int count, float low, float high) {
    Floats values(count);
    for (float& each : values) each = between(low, high);
    return values;
  }
  // Logits of a tile; the padding is -inf.
  Floats tile(float low, float high) {
    Floats S = some(kM * kLd, low, high);
    for (int i = 0; i < kM; i++) std::fill_n(&S[i * kLd + kN], kWide - kN, -kInf);
    return S;
  }

 private:
  uint64_t state_ = 20;
};

template <class F>
void each_logit(const F& f) {
  for (int i = 0; i < kM; i++)
    for (int j = 0; j < kWide; j++) f(i, j, i * kLd + j);
}

Ids ids(int count, int period) {
  Ids found(count);
  for (int i = 0; i < count; i++) found[i] = i % period;
  return found;
}

double at_most_1(double s, double top) { return std::exp(std::min(0.0, s - top)); }

void excluded_and_biased(const Rows<float>& rows, Random& random) {
  Worst exclude, bias, drop, count, columns;
  const Floats S = random.tile(-3, 3), b = random.some(kWide, -1, 1), limit = random.some(kM, -2, 2);
  const Ids row = ids(kM, 7), column = ids(kWide, 5);
  Floats out = S;
  rows.exclude(out.data(), kM, kWide, kLd, row.data(), column.data());
  each_logit([&](int i, int j, int at) { exclude.exact(out[at], row[i] == column[j] ? -kInf : S[at]); });
  out = S;
  rows.add_bias(out.data(), kM, kWide, kLd, b.data());
  each_logit([&](int, int j, int at) { bias.exact(out[at], S[at] + b[j]); });
  out = S;
  out[3] = std::nanf("");
  rows.drop_above(out.data(), kM, kWide, kLd, limit.data());
  each_logit([&](int i, int, int at) { drop.exact(out[at], at == 3 ? std::nanf("") : S[at] > limit[i] ? -kInf : S[at]); });
  Ids above(kM, 5), expected(kM, 5);
  rows.count_above(S.data(), kM, kWide, kLd, 0.75f, limit.data(), above.data());
  each_logit([&](int i, int, int at) { expected[i] += S[at] > 0.75f * limit[i]; });
  for (int i = 0; i < kM; i++) count.exact(above[i], expected[i]);
  Floats finite = random.some(kM * kLd, -3, 3), sum(kWide);
  rows.column_sum(finite.data(), kM, kWide, kLd, sum.data());
  for (int j = 0; j < kWide; j++) {
    double want = 0, size = 0;
    for (int i = 0; i < kM; i++) want += finite[i * kLd + j], size += std::fabs(finite[i * kLd + j]);
    columns.see(sum[j], want, kM * kU * size);
  }
  exclude.print("exclude"), bias.print("add_bias"), drop.print("drop_above"), count.print("count_above"),
      columns.print("column_sum");
}

void bounded(const Rows<float>& rows, Random& random) {
  Worst sum, weight, soft;
  const Floats S = random.tile(-30, 30), rw = random.some(kM, 0.5, 2), cw = random.some(kWide, 0.5, 2);
  const Floats u = random.some(kM, 0, 1), v = random.some(kWide, 0, 1);
  for (const bool both : {false, true}) {
    Floats row_sum(kM, 1), column_sum(kWide), out = S;
    rows.sum_bounded(S.data(), kM, kWide, kLd, rw.data(), cw.data(), row_sum.data(), both ? column_sum.data() : nullptr, {});
    std::vector<double> in_row(kM, 1), in_column(kWide);
    each_logit([&](int i, int j, int at) { in_row[i] += std::exp2(S[at]) * cw[j], in_column[j] += std::exp2(S[at]) * rw[i]; });
    for (int i = 0; i < kM; i++) sum.see(row_sum[i], in_row[i], (kWide + 4) * kU * in_row[i]);
    for (int j = 0; both && j < kWide; j++) sum.see(column_sum[j], in_column[j], (kM + 4) * kU * in_column[j]);
    rows.weight_bounded(out.data(), kM, kWide, kLd, rw.data(), cw.data(), u.data(), both ? v.data() : nullptr, {});
    each_logit([&](int i, int j, int at) {
      const double want = std::exp2(S[at]) * (double(u[i]) * cw[j] + both * double(rw[i]) * v[j]);
      weight.see(out[at], want, 6 * kU * want);
    });
  }
  Floats out = S, row_sum(kM, 1);
  rows.soft_bounded(out.data(), kM, kWide, kLd, cw.data(), row_sum.data());
  std::vector<double> want(kM, 1);
  each_logit([&](int i, int j, int at) {
    const double e = std::exp2(S[at]) * cw[j];
    soft.see(out[at], e, 4 * kU * e), want[i] += e;
  });
  for (int i = 0; i < kM; i++) soft.see(row_sum[i], want[i], (kWide + 4) * kU * want[i]);
  sum.print("sum_bounded"), weight.print("weight_bounded"), soft.print("soft_bounded");
}

// Exponentials that are kept give the weights their bits, and what lies behind their last column is left alone.
void kept(const Rows<float>& rows, Random& random) {
  Worst worst;
  const Floats S = random.tile(-30, 30), rw = random.some(kM, 0.5, 2), cw = random.some(kWide, 0.5, 2);
  const Floats u = random.some(kM, 0, 1), v = random.some(kWide, 0, 1);
  for (const bool both : {false, true}) {
    Floats sums[2][2] = {{Floats(kM), Floats(kWide)}, {Floats(kM), Floats(kWide)}}, e(kM * (kN + 1), -1);
    const fastssl::Cells<float> cells[2] = {{}, {e.data(), kN + 1, kN}};
    for (int k = 0; k < 2; k++)
      rows.sum_bounded(S.data(), kM, kWide, kLd, rw.data(), cw.data(), sums[k][0].data(), both ? sums[k][1].data() : nullptr,
                       cells[k]);
    for (int i = 0; i < kM; i++) worst.exact(sums[0][0][i], sums[1][0][i]), worst.exact(e[i * (kN + 1) + kN], -1);
    for (int j = 0; j < kWide; j++) worst.exact(sums[0][1][j], sums[1][1][j]);
    Floats computed = S, read(kM * kLd, 7);
    rows.weight_bounded(computed.data(), kM, kWide, kLd, rw.data(), cw.data(), u.data(), both ? v.data() : nullptr, cells[0]);
    rows.weight_bounded(read.data(), kM, kWide, kLd, rw.data(), cw.data(), u.data(), both ? v.data() : nullptr, cells[1]);
    each_logit([&](int, int, int at) { worst.exact(read[at], computed[at]); });
  }
  worst.print("kept");
}

// A running maximum and sum, begun by an earlier tile or not, and what they must be after the logits s.
void see_running(Worst& worst, float top, float sum, float old_top, float old_sum, const std::vector<double>& s) {
  const double want_top = std::max<double>(old_top, *std::max_element(s.begin(), s.end()));
  worst.exact(top, want_top);
  double want = old_sum * std::exp(old_top - want_top), lost = want * 3 * std::fabs(old_top == -kInf ? 0 : old_top - want_top);
  for (const double each : s) {
    const double e = std::exp(each - want_top);
    want += e, lost += e == 0 ? 0 : e * 3 * std::fabs(each - want_top);
  }
  worst.see(sum, want, kU * ((double(s.size()) + 6) * want + lost));
}

void online(const Rows<float>& rows, Random& random) {
  Worst sum, peaks, weight, soft;
  const Floats S = random.tile(-60, 60), u = random.some(kM, 0, 1), v = random.some(kWide, 0, 1);
  Floats top = random.some(kM, 30, 80), total = random.some(kM, 1, 2), column_top(kWide, -kInf), column_total(kWide, 0);
  for (int i = 0; i < kM; i += 3) top[i] = -kInf, total[i] = 0;
  Ids peak(kM, -7), column_peak(kWide, -7);
  const Floats old_top = top, old_total = total;
  rows.sum_online(S.data(), kM, kWide, kLd, 100, 200, {top.data(), total.data(), peak.data()},
                  {column_top.data(), column_total.data(), column_peak.data()});
  for (int i = 0; i < kM; i++) {
    const std::vector<double> s(&S[i * kLd], &S[i * kLd + kWide]);
    see_running(sum, top[i], total[i], old_top[i], old_total[i], s);
    const auto largest = std::max_element(s.begin(), s.end());
    peaks.exact(peak[i], *largest > old_top[i] ? 200 + (largest - s.begin()) : -7);
  }
  for (int j = 0; j < kN; j++) {
    std::vector<double> s(kM);
    for (int i = 0; i < kM; i++) s[i] = S[i * kLd + j];
    see_running(sum, column_top[j], column_total[j], -kInf, 0, s);
    peaks.exact(column_peak[j], 100 + (std::max_element(s.begin(), s.end()) - s.begin()));
  }
  Floats alone = old_top, alone_total = old_total;
  rows.sum_online(S.data(), kM, kWide, kLd, 100, 200, {alone.data(), alone_total.data(), peak.data()}, {nullptr, nullptr, nullptr});
  for (int i = 0; i < kM; i++) sum.exact(alone[i], top[i]), sum.exact(alone_total[i], total[i]);
  std::fill(column_top.begin() + kN, column_top.end(), 0.0f);  // of the padding, where there is nothing
  for (const bool both : {false, true}) {
    Floats out = S, low = top;
    low[5] -= 3;  // a forward whose product gave a smaller logit: weights stay at most 1
    rows.weight_online(out.data(), kM, kWide, kLd, low.data(), column_top.data(), u.data(), both ? v.data() : nullptr);
    each_logit([&](int i, int j, int at) {
      const double a = u[i] * at_most_1(S[at], low[i]), b = both * v[j] * at_most_1(S[at], column_top[j]);
      const double far = a * std::fabs(a ? S[at] - low[i] : 0) + b * std::fabs(b ? S[at] - column_top[j] : 0);
      weight.see(out[at], a + b, kU * (5 * (a + b) + 3 * far) + 0x1p-125);
    });
  }
  Floats out = S, row_max = old_top, row_sum = old_total, factor(kM);
  rows.soft_online(out.data(), kM, kWide, kLd, row_max.data(), row_sum.data(), factor.data());
  for (int i = 0; i < kM; i++) {
    const double by = std::exp(double(old_top[i]) - row_max[i]);
    see_running(soft, row_max[i], row_sum[i], old_top[i], old_total[i], {&S[i * kLd], &S[i * kLd + kWide]});
    soft.see(factor[i], by, kU * by * (3 + (by ? 3 * std::fabs(old_top[i] - row_max[i]) : 0)));
  }
  each_logit([&](int i, int, int at) {
    const double e = std::exp(double(S[at]) - row_max[i]);
    soft.see(out[at], e, kU * e * (3 + (e ? 3 * std::fabs(S[at] - row_max[i]) : 0)) + 0x1p-125);
  });
  sum.print("sum_online"), peaks.print("peaks"), weight.print("weight_online"), soft.print("soft_online");
}

void sigmoid(const Rows<float>& rows, Random& random) {
  Worst worst;
  const Floats S = random.tile(-20, 20), row_weight = random.some(kM, 0, 1), column_weight = random.some(kWide, 0, 1);
  const Ids row = ids(kM, 7), column = ids(kWide, 5);
  const fastssl::PairIds<float> pairs{row.data(), column.data(), row_weight.data(), column_weight.data()};
  constexpr float kBias = -1.25f;
  for (const bool positives : {false, true}) {
    Floats out = S, loss(kM, 0), weight(kM, 0);
    rows.sigmoid(out.data(), kM, kN, kWide, kLd, kBias, positives ? &pairs : nullptr, loss.data(), weight.data());
    for (int i = 0; i < kM; i++) {
      double all = 0, all_lost = 0, slopes = 0, slopes_size = 0;
      for (int j = 0; j < kN; j++) {
        const bool same = positives && row[i] == column[j];
        const double l = double(S[i * kLd + j]) + kBias, t = same ? 1 : -1, x = -t * l;
        const double pair = same ? double(row_weight[i]) + column_weight[j] : 1, share = 1 / (1 + std::exp(-x));
        const double slope = -t * pair * share, term = pair * (std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))));
        worst.see(out[i * kLd + j], slope, kU * std::fabs(slope) * (10 + 4 * std::fabs(l)));
        all += term, all_lost += term * (kN + 6) + pair * share * std::fabs(l);
        slopes += slope, slopes_size += std::fabs(slope) * (kN + 10 + 4 * std::fabs(l));
      }
      worst.see(loss[i], all, kU * all_lost), worst.see(weight[i], slopes, kU * slopes_size);
      for (int j = kN; j < kWide; j++) worst.exact(out[i * kLd + j], 0);
    }
  }
  worst.print("sigmoid");
}

void dots(const Rows<float>& rows, Random& random) {
  Worst dot, squares;
  constexpr int kLong = 1003;
  Floats a = random.some(kLong, -1, 1);  // an Array is of numbers that may change
  const Floats b = random.some(kLong, -1, 1);
  double want = 0, size = 0;
  for (int i = 0; i < kLong; i++) want += double(a[i]) * b[i], size += std::fabs(double(a[i]) * b[i]);
  dot.see(rows.dot(a.data(), b.data(), kLong), want, kU * kLong * size);
  Floats sum = b;
  const fastssl::Array x{a.data(), fastssl::kFloat32};
  dot.see(rows.dot_with(x, 0, b.data(), kLong), want, kU * kLong * size);
  rows.add_squares(x, 0, kLong, sum.data());
  for (int i = 0; i < kLong; i++) squares.see(sum[i], b[i] + double(a[i]) * a[i], 2 * kU * (std::fabs(b[i]) + double(a[i]) * a[i]));
  dot.print("dot"), squares.print("add_squares");
}

// Every 16-bit float widened and rounded back to itself, and floats rounded to 16 bits, which ldexp and nearbyint do in double.
double rounded_to(double x, int digits, int least) {
  int exponent;
  std::frexp(x, &exponent);
  const int last = std::max(exponent - digits, least);
  return std::ldexp(std::nearbyint(std::ldexp(x, -last)), last);
}

void sixteen_bits(Random& random) {
  using fastssl::Array;
  Worst worst;
  constexpr int kAll = 1 << 16;
  for (const auto dtype : {fastssl::kBFloat16, fastssl::kFloat16}) {
    const bool half = dtype == fastssl::kFloat16;
    const int fraction = half ? 10 : 7, bias = half ? 15 : 127;
    std::vector<uint16_t> bits(kAll), again(kAll);
    for (int i = 0; i < kAll; i++) bits[i] = uint16_t(i);
    Floats wide(kAll);
    const auto& tokens = fastssl::token_rows<float>();
    tokens.copy(Array{bits.data(), dtype}, 0, Array{wide.data(), fastssl::kFloat32}, 0, kAll);
    tokens.copy(Array{wide.data(), fastssl::kFloat32}, 0, Array{again.data(), dtype}, 0, kAll);
    for (int i = 0; i < kAll; i++) {
      const int exponent = (i & 0x7FFF) >> fraction, mantissa = i & ((1 << fraction) - 1), most = 2 * bias + 1;
      double want = exponent == most
                        ? (mantissa ? NAN : HUGE_VAL)
                        : std::ldexp(mantissa + (exponent ? 1 << fraction : 0), std::max(exponent, 1) - bias - fraction);
      worst.exact(wide[i], i & 0x8000 ? -want : want);
      if (!std::isnan(want)) worst.exact(again[i], i);
    }
    Floats values = random.some(4099, -1, 1);
    for (size_t i = 0; i < values.size(); i++) values[i] = std::ldexp(values[i], int(i % 40) - 26);
    std::vector<uint16_t> narrow(values.size());
    Floats back(values.size());
    tokens.copy(Array{values.data(), fastssl::kFloat32}, 0, Array{narrow.data(), dtype}, 0, int64_t(values.size()));
    tokens.copy(Array{narrow.data(), dtype}, 0, Array{back.data(), fastssl::kFloat32}, 0, int64_t(values.size()));
    for (size_t i = 0; i < values.size(); i++) worst.exact(back[i], rounded_to(values[i], fraction + 1, 1 - bias - fraction));
  }
  worst.print("16_bits");
}

// A patch of 3 x 5 x 6 pixels, its mean and scale, and the error of a prediction.
void tokens(Random& random) {
  using fastssl::Array;
  Worst worst;
  const auto& rows = fastssl::token_rows<float>();
  constexpr int kPatch = 90;
  Floats image = random.some(3 * 20 * 16, -1, 3), patch(kPatch), pred = random.some(kPatch, -1, 1), slope(kPatch);
  const fastssl::PatchShape shape{3, 5, 6, 20 * 16, 16, false};
  rows.patch(Array{image.data(), fastssl::kFloat32}, 33, shape, patch.data());
  double mean = 0, squares = 0, error = 0;
  for (int c = 0, e = 0; c < 3; c++)
    for (int p = 0; p < 5; p++)
      for (int q = 0; q < 6; q++, e++) worst.exact(patch[e], image[33 + c * 320 + p * 16 + q]), mean += patch[e] / double(kPatch);
  for (const float each : patch) squares += (each - mean) * (each - mean);
  const double scale = 1 / std::sqrt(squares / (kPatch - 1) + 1e-6);
  const auto found = rows.scaling(patch.data(), kPatch, 1e-6);
  worst.see(found.mean, mean, kU * kPatch * 3), worst.see(found.scale, scale, kU * (kPatch + 8) * scale);
  const Array predicted{pred.data(), fastssl::kFloat32};
  for (int e = 0; e < kPatch; e++) error += std::pow(pred[e] - (double(patch[e]) - found.mean) * found.scale, 2);
  worst.see(rows.error(predicted, 0, kPatch, patch.data(), found, false), error, kU * (kPatch + 8) * 4 * error);
  rows.slope(predicted, 0, kPatch, patch.data(), found, false, 0.5f, Array{slope.data(), fastssl::kFloat32}, 0);
  for (int e = 0; e < kPatch; e++) {
    const double target = (double(patch[e]) - found.mean) * found.scale;
    worst.see(slope[e], 0.5 * (pred[e] - target), kU * 4 * (std::fabs(pred[e]) + std::fabs(target)));
  }
  worst.print("tokens");
}

}  // namespace

int main() {
  for (const std::string& set : fastssl::isa::available()) {
    fastssl::isa::use(set);
    Random random;
    const auto& rows = fastssl::rows<float>();
    excluded_and_biased(rows, random);
    bounded(rows, random);
    kept(rows, random);
    online(rows, random);
    sigmoid(rows, random);
    dots(rows, random);
    sixteen_bits(random);
    tokens(random);
  }
  return 0;
}
