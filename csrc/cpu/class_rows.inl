// The functions of class_rows.h for one instruction set, compiled by each_isa.h. The compiler makes vectors of these loops.

template <class T>
struct ClassRowFunctions {
  static void add(const T* __restrict x, int64_t n, double* __restrict sum) {
    for (int64_t d = 0; d < n; d++) sum[d] += double(x[d]);
  }
  static void without(const double* __restrict sum, const T* __restrict x, int64_t n, T* __restrict others) {
    for (int64_t d = 0; d < n; d++) others[d] = T(sum[d] - double(x[d]));
  }
  static void add_without(double factor, const double* __restrict sum, const T* __restrict x, int64_t n, T* __restrict to) {
    for (int64_t d = 0; d < n; d++) to[d] += T(factor * (sum[d] - double(x[d])));
  }
  static constexpr ClassRows<T> table = {add, without, add_without};
};

static const ClassRows<float>& float_rows = ClassRowFunctions<float>::table;
static const ClassRows<double>& double_rows = ClassRowFunctions<double>::table;
