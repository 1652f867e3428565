// Cross-entropy of student logits against soft targets, and its gradient, from two readings of each row.
//   q_m = softmax((x_m + b) / T),  Q_n = sum of the q_m that row n meets,  lse_n = log sum_k exp(s_nk / Ts)
//   loss_n = w_n sum_k Q_nk (lse_n - s_nk / Ts),   ds_nk = w_n / Ts (exp(s_nk / Ts - lse_n) sum_k Q_nk - Q_nk)
// A task is an image: the largest entry and the sum of each of its rows; then, in blocks of columns, the targets of its teacher
// rows, once for all its student rows. Where there are few images the columns are cut into parts, whose sums are joined in their
// order. With N = S B and M = T B rows of K elements of e bytes: 2 e (N + M) K read, the second time from a cache, and e N K
// written.
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/prototype_rows.h"
#include "cpu/tokens.h"

namespace fastssl::soft_cross_entropy {
namespace {

constexpr const char* kOp = "soft_cross_entropy";
// So many tasks are wanted, and a part of the columns is worth starting a thread from so many on.
constexpr int64_t kTasks = 16, kPart = 4096;

// What the ops have in common, in the order of their schemas.
struct Options {
  IntArrayRef heads;
  int64_t batch, inner;
  bool skip_diagonal, probabilities;
};

// Neighbouring columns of one head.
struct Part {
  int64_t head, begin, end;
};

// Every head in as many parts as make kTasks tasks, whatever the number of threads is.
std::vector<Part> parts_of(IntArrayRef heads, int64_t batch) {
  const int64_t wanted = batch >= kTasks ? 1 : (kTasks + batch - 1) / batch;
  std::vector<Part> parts;
  int64_t start = 0;
  for (int64_t head = 0; head < int64_t(heads.size()); start += heads[head++]) {
    const int64_t count = std::min(wanted, (heads[head] + kPart - 1) / kPart);
    const int64_t wide = (heads[head] + count - 1) / count;
    for (int64_t begin = 0; begin < heads[head]; begin += wide)
      parts.push_back({head, start + begin, start + std::min(begin + wide, heads[head])});
  }
  return parts;
}

Tensor with_dense_rows(const Tensor& rows) { return rows.stride(1) == 1 ? rows : as_contiguous(rows); }

template <class T>
class Call {
 public:
  Call(const Tensor& student_given, const Tensor& teacher_given, const OptionalTensor& bias, const OptionalTensor& weight,
       const Tensor& temperatures, const Options& options)
      : student_(with_dense_rows(student_given)),
        teacher_(with_dense_rows(teacher_given)),
        options_(options),
        parts_(parts_of(options.heads, options.batch)),
        batch_(options.batch),
        students_(student_.size(0) / batch_),
        teachers_(teacher_.size(0) / batch_),
        columns_(student_.size(1)) {
    const auto dtype = accumulator(student_.scalar_type());
    const Tensor divided = as_dtype(temperatures, ScalarType::Double);
    student_scale_ = 1.0 / divided.const_data_ptr<double>()[0];
    teacher_scale_ = 1.0 / divided.const_data_ptr<double>()[1];
    if (bias) bias_ = as_contiguous(as_dtype(*bias, dtype));
    if (weight) weight_ = as_contiguous(as_dtype(*weight, dtype));
    sums_.assign(parts_.size() * (student_.size(0) + teacher_.size(0)), RowSum<T>{-std::numeric_limits<T>::infinity(), T(0)});
    dots_.assign(parts_.size() * student_.size(0), 0.0);
  }

  // The loss of each row; the gradient where `out` is something, rows of `stride` elements.
  void run(T* loss, Array out, int64_t stride) {
    out_ = out, stride_ = stride;
    const int64_t tasks = batch_ * int64_t(parts_.size());
    const int64_t elements = (students_ + teachers_) * columns_ / int64_t(parts_.size());
    const auto each = [&](bool sums, bool finish) {
      parallel_for(tasks, 8 * elements, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; task++) {
          const int64_t image = task / int64_t(parts_.size()), part = task % int64_t(parts_.size());
          if (!counts(image)) continue;
          if (sums) this->sums(image, part);
          if (finish) this->finish(image, part);
        }
      });
    };
    if (parts_.size() == options_.heads.size()) each(true, true);
    else each(true, false), each(false, true);
    for (int64_t n = 0; n < student_.size(0); n++) loss[n] = loss_of(n);
  }

 private:
  T weight(int64_t n) const { return weight_.defined() ? weight_.template const_data_ptr<T>()[n] : T(1); }
  // Whether the student's row meets any teacher row with a weight.
  bool row_counts(int64_t n) const { return weight(n) != T(0) && met(n) > 0; }
  int64_t met(int64_t n) const { return teachers_ - (options_.skip_diagonal && n / batch_ < teachers_); }
  bool counts(int64_t image) {
    bool any = false;
    for (int64_t s = 0; s < students_; s++) any |= row_counts(s * batch_ + image);
    if (!any && out_.dtype != kNothing)
      for (int64_t s = 0; s < students_; s++) clear(out_, (s * batch_ + image) * stride_, columns_);
    return any;
  }
  const T* bias(int64_t m) const {
    return bias_.defined() ? bias_.template const_data_ptr<T>() + m / options_.inner % bias_.size(0) * columns_ : nullptr;
  }
  static const T* shifted(const T* row, int64_t by) { return row ? row + by : nullptr; }
  RowSum<T>& student_sum(int64_t n, int64_t part) { return sums_[n * parts_.size() + part]; }
  RowSum<T>& teacher_sum(int64_t m, int64_t part) { return sums_[(student_.size(0) + m) * parts_.size() + part]; }

  // The largest entry and the sum of each row of an image in one part; of given probabilities their sum.
  void sums(int64_t image, int64_t part) {
    const Part& p = parts_[part];
    for (int64_t t = 0; t < teachers_; t++) {
      const int64_t m = t * batch_ + image, i = m * teacher_.stride(0) + p.begin;
      if (options_.probabilities) teacher_sum(m, part).sum = f_.total(array_of(teacher_), i, p.end - p.begin);
      else f_.join(array_of(teacher_), i, p.end - p.begin, shifted(bias(m), p.begin), T(teacher_scale_), &teacher_sum(m, part));
    }
    for (int64_t s = 0; s < students_; s++) {
      const int64_t n = s * batch_ + image;
      if (row_counts(n))
        f_.join(array_of(student_), n * student_.stride(0) + p.begin, p.end - p.begin, nullptr, T(student_scale_),
                &student_sum(n, part));
    }
  }

  // Of the whole head, from `first`, its sum of the first of its parts.
  RowSum<T> joined(const RowSum<T>* sums, int64_t head, double scale) const {
    RowSum<T> all{-std::numeric_limits<T>::infinity(), T(0)};
    for (int64_t part = 0; part < int64_t(parts_.size()); part++)
      if (parts_[part].head == head && !(sums[part].top <= all.top)) all.top = sums[part].top;
    double sum = 0.0;
    for (int64_t part = 0; part < int64_t(parts_.size()); part++)
      if (parts_[part].head == head && sums[part].sum != T(0))
        sum += double(sums[part].sum) * std::exp((double(sums[part].top) - double(all.top)) * scale);
    return {all.top, T(sum)};
  }
  // The sum of the targets that a student row meets: their number, unless they are given.
  double target_sum(int64_t n, int64_t head) {
    if (!options_.probabilities) return double(met(n));
    double sum = 0.0;
    for (int64_t t = 0; t < teachers_; t++)
      for (int64_t part = 0; part < int64_t(parts_.size()); part++)
        if (parts_[part].head == head && !(options_.skip_diagonal && t == n / batch_))
          sum += teacher_sum(t * batch_ + n % batch_, part).sum;
    return sum;
  }

  struct StudentRow {
    int64_t n;
    T top, share, slope;
  };
  void finish(int64_t image, int64_t part) {
    const Part& p = parts_[part];
    std::vector<StudentRow> rows;
    std::vector<RowSum<T>> targets;
    for (int64_t s = 0; s < students_; s++) {
      const int64_t n = s * batch_ + image;
      if (!row_counts(n)) {
        if (out_.dtype != kNothing) clear(out_, n * stride_ + p.begin, p.end - p.begin);
        continue;
      }
      const RowSum<T> row = joined(&student_sum(n, 0), p.head, student_scale_);
      const double slope = double(weight(n)) * student_scale_;
      rows.push_back({n, row.top, T(slope * target_sum(n, p.head) / double(row.sum)), T(slope)});
    }
    for (int64_t t = 0; t < teachers_ && !options_.probabilities; t++)
      targets.push_back(joined(&teacher_sum(t * batch_ + image, 0), p.head, teacher_scale_));
    std::vector<T> q((teachers_ + 2) * kColumns);
    for (int64_t begin = p.begin; begin < p.end; begin += kColumns)
      block(image, part, begin, int(std::min<int64_t>(kColumns, p.end - begin)), rows, targets, q.data());
  }

  // Targets, dots and gradients of a block of columns. `q` has room for the targets of each teacher row, their sum, and a sum
  // without one of them.
  void block(int64_t image, int64_t part, int64_t begin, int count, const std::vector<StudentRow>& rows,
             const std::vector<RowSum<T>>& targets, T* q) {
    T *all = q + teachers_ * kColumns, *others = all + kColumns;
    for (int64_t t = 0; t < teachers_; t++) {
      const int64_t m = t * batch_ + image, i = m * teacher_.stride(0) + begin;
      T* out = q + t * kColumns;
      if (options_.probabilities) f_.values(array_of(teacher_), i, count, out);
      else f_.target(array_of(teacher_), i, count, shifted(bias(m), begin), T(teacher_scale_), targets[t], out);
    }
    const T* sum = summed(q, -1, count, all);
    for (const StudentRow& row : rows) {
      const int64_t s = row.n / batch_;
      const T* target = options_.skip_diagonal && s < teachers_ ? summed(q, s, count, others) : sum;
      dots_[row.n * parts_.size() + part] +=
          f_.student(array_of(student_), row.n * student_.stride(0) + begin, count, target, T(student_scale_), row.top, row.share,
                     row.slope, out_, row.n * stride_ + begin);
    }
  }
  // The sum of the targets but for one; where it is one of them, that one itself.
  const T* summed(const T* q, int64_t without, int count, T* out) const {
    const T* found = nullptr;
    for (int64_t t = 0; t < teachers_; t++) {
      if (t == without) continue;
      const T* each = q + t * kColumns;
      if (!found) {
        found = each;
        continue;
      }
      if (found != out) std::copy_n(found, count, out), found = out;
      f_.add(out, each, count);
    }
    return found;
  }

  T loss_of(int64_t n) {
    if (!row_counts(n)) return T(0);
    double loss = 0.0;
    for (int64_t head = 0; head < int64_t(options_.heads.size()); head++)
      loss += std::log(double(joined(&student_sum(n, 0), head, student_scale_).sum)) * target_sum(n, head);
    for (int64_t part = 0; part < int64_t(parts_.size()); part++) loss += dots_[n * parts_.size() + part] * student_scale_;
    return T(loss * double(weight(n)));
  }

  const PrototypeRows<T>& f_ = prototype_rows<T>();
  Tensor student_, teacher_, bias_, weight_;
  Options options_;
  std::vector<Part> parts_;
  int64_t batch_, students_, teachers_, columns_, stride_ = 0;
  double student_scale_, teacher_scale_;
  Array out_{nullptr, kNothing};
  std::vector<RowSum<T>> sums_;  // of each row and part, the student's rows first
  std::vector<double> dots_;     // sum q (top - s) of each student row and part
};

void check(const Tensor& student, const Tensor& teacher, const OptionalTensor& bias, const OptionalTensor& weight,
           const Tensor& temperatures, const Options& o) {
  FASTSSL_CHECK(student.dim() == 2 && teacher.dim() == 2, kOp, ": expected matrices, got ", student.sizes(), ", ", teacher.sizes());
  FASTSSL_CHECK(o.batch > 0 && o.inner > 0 && student.size(0) % o.batch == 0 && teacher.size(0) % o.batch == 0, kOp,
                ": expected multiples of ", o.batch, " rows, got ", student.sizes(), ", ", teacher.sizes());
  expect_shape(kOp, teacher, {teacher.size(0), student.size(1)});
  expect_shape(kOp, temperatures, {2});
  if (bias) expect_shape(kOp, *bias, {bias->size(0), student.size(1)});
  if (weight) expect_shape(kOp, *weight, {student.size(0)});
  int64_t columns = 0;
  for (int64_t size : o.heads) {
    FASTSSL_CHECK(size > 0, kOp, ": expected heads of at least 1 column, got ", o.heads);
    columns += size;
  }
  FASTSSL_CHECK(columns == student.size(1), kOp, ": expected heads of ", student.size(1), " columns, got ", o.heads);
  FASTSSL_CHECK((student.scalar_type() == ScalarType::Double) == (teacher.scalar_type() == ScalarType::Double), kOp,
                ": expected float64 on both sides or none");
}

Tensor run(const Tensor& student, const Tensor& teacher, const OptionalTensor& bias, const OptionalTensor& weight,
           const Tensor& temperatures, const Options& options, const Tensor* out) {
  check(student, teacher, bias, weight, temperatures, options);
  Tensor loss = empty({student.size(0)}, accumulator(student.scalar_type()));
  with_accumulator(student.scalar_type(), [&]<class T>(T) {
    Call<T>(student, teacher, bias, weight, temperatures, options)
        .run(loss.mutable_data_ptr<T>(), out ? array_of(*out) : Array{nullptr, kNothing}, out ? out->stride(0) : 0);
  });
  return loss;
}

std::tuple<Tensor, Tensor> soft_cross_entropy_fwd(const Tensor& student, const Tensor& teacher, const OptionalTensor& bias,
                                                  const OptionalTensor& weight, const Tensor& temperatures, IntArrayRef heads,
                                                  int64_t batch, int64_t inner, bool skip_diagonal, bool probabilities,
                                                  bool gradient) {
  Tensor dstudent = gradient ? new_tensor(student.sizes(), student.scalar_type()) : empty({0}, student.scalar_type());
  Tensor loss = run(student, teacher, bias, weight, temperatures, {heads, batch, inner, skip_diagonal, probabilities},
                    gradient ? &dstudent : nullptr);
  return {loss, dstudent};
}

Tensor soft_cross_entropy_in_place(const Tensor& student, const Tensor& teacher, const OptionalTensor& bias,
                                   const OptionalTensor& weight, const Tensor& temperatures, IntArrayRef heads, int64_t batch,
                                   int64_t inner, bool skip_diagonal, bool probabilities) {
  FASTSSL_CHECK(student.dim() == 2 && student.stride(1) == 1, kOp, ": expected a matrix with dense rows");
  return run(student, teacher, bias, weight, temperatures, {heads, batch, inner, skip_diagonal, probabilities}, &student);
}

void soft_cross_entropy_scale(const Tensor& dstudent, const Tensor& upstream) {
  FASTSSL_CHECK(dstudent.dim() == 2 && dstudent.stride(1) == 1, kOp, ": expected a matrix with dense rows");
  const int64_t rows = dstudent.size(0), columns = dstudent.size(1);
  FASTSSL_CHECK(upstream.numel() == 1 || upstream.numel() == rows, kOp, ": expected an upstream gradient for each of ", rows,
                " rows");
  with_accumulator(dstudent.scalar_type(), [&]<class T>(T) {
    const Tensor dense = as_contiguous(as_dtype(upstream, accumulator(dstudent.scalar_type())));
    const T* factor = dense.const_data_ptr<T>();
    const bool one = dense.numel() == 1;
    if (std::all_of(factor, factor + dense.numel(), [](T each) { return each == T(1); })) return;
    const Array array = array_of(dstudent);
    parallel_for(rows, columns, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++)
        if (factor[one ? 0 : n] != T(1)) prototype_rows<T>().multiply(array, n * dstudent.stride(0), columns, factor[one ? 0 : n]);
    });
  });
}

}  // namespace
}  // namespace fastssl::soft_cross_entropy

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("soft_cross_entropy_fwd", TORCH_BOX(&fastssl::soft_cross_entropy::soft_cross_entropy_fwd));
  m.impl("soft_cross_entropy_in_place", TORCH_BOX(&fastssl::soft_cross_entropy::soft_cross_entropy_in_place));
  m.impl("soft_cross_entropy_scale", TORCH_BOX(&fastssl::soft_cross_entropy::soft_cross_entropy_scale));
}
