// The element functions of tile_rows.h for one instruction set; each_isa.h compiles this file for each of them.
// The loop over rows is the outer one and that over columns the inner one, so S is read in order, and sums of columns stay in a
// buffer as long as a tile is wide.

#include "cpu/row_values.inl"

template <class L>
struct RowFunctions {
  using T = typename L::T;
  using V = typename L::V;
  static constexpr int W = L::W;
  static constexpr T kInf = std::numeric_limits<T>::infinity();

  // A row that has no logit yet has the maximum -inf. Subtracting 0 instead gives e^(-inf) = 0, where -inf would give NaN.
  static inline T finite(T top) { return top == -kInf ? T(0) : top; }
  static inline V at_most_0(V a) { return a > L::all(0) ? L::all(0) : a; }  // a NaN stays

  // The first `count` entries of a vector, or all if there are more. What is not loaded is 0.
  static inline void store_first(T* to, V v, int count) {
    if (count >= W) return L::store(to, v);
    T all[W];
    L::store(all, v);
    for (int k = 0; k < count; k++) to[k] = all[k];
  }
  static inline V load_first(const T* from, int count) {
    if (count >= W) return L::load(from);
    T all[W] = {};
    for (int k = 0; k < count; k++) all[k] = from[k];
    return L::load(all);
  }

  static void exclude(T* S, int m, int n, int ld, const int32_t* row_id, const int32_t* column_id) {
    for (int i = 0; i < m; i++)
      for (int j = 0; j < n; j += W) {
        T* s = S + int64_t(i) * ld + j;
        L::store(s, L::replace_equal(L::load(s), L::load_id(column_id + j), row_id[i], -kInf));
      }
  }

  static void add_bias(T* S, int m, int n, int ld, const T* bias) {
    for (int i = 0; i < m; i++)
      for (int j = 0; j < n; j += W) {
        T* s = S + int64_t(i) * ld + j;
        L::store(s, L::load(s) + L::load(bias + j));
      }
  }

  template <bool kColumns, bool kKeep>
  static void sum_bounded_as(const T* S, int m, int n, int ld, const T* rw, const T* cw, T* row_sum, T* column_sum,
                             const Cells<T>& kept) {
    for (int i = 0; i < m; i++) {
      const T* s = S + int64_t(i) * ld;
      const V r = L::all(rw[i]);
      V total = L::all(0);
      for (int j = 0; j < n; j += W) {
        const V e = L::exp2(L::load(s + j));
        if (kKeep) store_first(kept.data + i * kept.ld + j, e, kept.columns - j);
        total = total + e * L::load(cw + j);
        if (kColumns) L::store(column_sum + j, L::load(column_sum + j) + e * r);
      }
      row_sum[i] += L::sum(total);
    }
  }
  static void sum_bounded(const T* S, int m, int n, int ld, const T* rw, const T* cw, T* row_sum, T* column_sum, Cells<T> kept) {
    constexpr decltype(&sum_bounded_as<true, true>) forms[2][2] = {{sum_bounded_as<false, false>, sum_bounded_as<false, true>},
                                                                   {sum_bounded_as<true, false>, sum_bounded_as<true, true>}};
    forms[column_sum != nullptr][kept.data != nullptr](S, m, n, ld, rw, cw, row_sum, column_sum, kept);
  }

  template <bool kColumns>
  static void sum_online_as(const T* S, int m, int n, int ld, int i0, int j0, const Running<T>& rows, const Running<T>& columns) {
    if (kColumns)
      for (int j = 0; j < n; j += W) {
        const V old = L::load(columns.top + j);
        V top = old;
        typename L::I peak = L::load_id(columns.peak + j);
        for (int i = 0; i < m; i++) {
          const V t = L::load(S + int64_t(i) * ld + j);
          peak = L::where_above(t, top, i0 + i, peak);
          top = L::max(top, t);
        }
        L::store(columns.top + j, top);
        L::store_id(columns.peak + j, peak);
        const V base = top == L::all(-kInf) ? L::all(0) : top;
        L::store(columns.sum + j, L::load(columns.sum + j) * L::exp(old - base));
      }
    for (int i = 0; i < m; i++) {
      const T* s = S + int64_t(i) * ld;
      V top_v = L::all(-kInf);
      for (int j = 0; j < n; j += W) top_v = L::max(top_v, L::load(s + j));
      const T tile_top = L::max(top_v), before = rows.top[i];
      const T top = before > tile_top ? before : tile_top;
      const V base = L::all(finite(top));
      V total = L::all(0);
      for (int j = 0; j < n; j += W) {
        const V t = L::load(s + j);
        total = total + L::exp(t - base);
        if (kColumns) {
          const V c = L::load(columns.top + j);
          L::store(columns.sum + j, L::load(columns.sum + j) + L::exp(t - (c == L::all(-kInf) ? L::all(0) : c)));
        }
      }
      rows.sum[i] = rows.sum[i] * std::exp(before - finite(top)) + L::sum(total);
      rows.top[i] = top;
      if (tile_top > before) rows.peak[i] = j0 + int(std::find(s, s + n, tile_top) - s);
    }
  }
  static void sum_online(const T* S, int m, int n, int ld, int i0, int j0, Running<T> rows, Running<T> columns) {
    (columns.top ? sum_online_as<true> : sum_online_as<false>)(S, m, n, ld, i0, j0, rows, columns);
  }

  template <bool kBoth, bool kKept>
  static void weight_bounded_as(T* S, int m, int n, int ld, const T* rw, const T* cw, const T* u, const T* v,
                                const Cells<T>& kept) {
    for (int i = 0; i < m; i++) {
      T* s = S + int64_t(i) * ld;
      const V own = L::all(u[i]), r = L::all(rw[i]);
      for (int j = 0; j < n; j += W) {
        V factor = own * L::load(cw + j);
        if (kBoth) factor = factor + r * L::load(v + j);
        const V e = kKept ? load_first(kept.data + i * kept.ld + j, kept.columns - j) : L::exp2(L::load(s + j));
        L::store(s + j, e * factor);
      }
    }
  }
  static void weight_bounded(T* S, int m, int n, int ld, const T* rw, const T* cw, const T* u, const T* v, Cells<T> kept) {
    constexpr decltype(&weight_bounded_as<true, true>) forms[2][2] = {
        {weight_bounded_as<false, false>, weight_bounded_as<false, true>},
        {weight_bounded_as<true, false>, weight_bounded_as<true, true>}};
    forms[v != nullptr][kept.data != nullptr](S, m, n, ld, rw, cw, u, v, kept);
  }

  template <bool kBoth>
  static void weight_online_as(T* S, int m, int n, int ld, const T* row_top, const T* column_top, const T* u, const T* v) {
    for (int i = 0; i < m; i++) {
      T* s = S + int64_t(i) * ld;
      const V own = L::all(u[i]), top = L::all(row_top[i]);
      for (int j = 0; j < n; j += W) {
        const V t = L::load(s + j);
        V w = own * L::exp(at_most_0(t - top));
        if (kBoth) w = w + L::load(v + j) * L::exp(at_most_0(t - L::load(column_top + j)));
        L::store(s + j, w);
      }
    }
  }
  static void weight_online(T* S, int m, int n, int ld, const T* row_top, const T* column_top, const T* u, const T* v) {
    (v ? weight_online_as<true> : weight_online_as<false>)(S, m, n, ld, row_top, column_top, u, v);
  }

  static void soft_bounded(T* S, int m, int n, int ld, const T* cw, T* row_sum) {
    for (int i = 0; i < m; i++) {
      T* s = S + int64_t(i) * ld;
      V total = L::all(0);
      for (int j = 0; j < n; j += W) {
        const V e = L::exp2(L::load(s + j)) * L::load(cw + j);
        L::store(s + j, e);
        total = total + e;
      }
      row_sum[i] += L::sum(total);
    }
  }

  static void soft_online(T* S, int m, int n, int ld, T* row_max, T* row_sum, T* factor) {
    for (int i = 0; i < m; i++) {
      T* s = S + int64_t(i) * ld;
      V top_v = L::all(-kInf);
      for (int j = 0; j < n; j += W) top_v = L::max(top_v, L::load(s + j));
      const T tile_top = L::max(top_v);
      const T top = row_max[i] > tile_top ? row_max[i] : tile_top;
      const V base = L::all(finite(top));
      V total = L::all(0);
      for (int j = 0; j < n; j += W) {
        const V e = L::exp(L::load(s + j) - base);
        L::store(s + j, e);
        total = total + e;
      }
      factor[i] = std::exp(row_max[i] - finite(top));
      row_sum[i] = row_sum[i] * factor[i] + L::sum(total);
      row_max[i] = top;
    }
  }

  static void count_above(const T* S, int m, int n, int ld, T unit, const T* threshold, int32_t* count) {
    for (int i = 0; i < m; i++) {
      const V bar = L::all(unit * threshold[i]);
      V total = L::all(0);
      for (int j = 0; j < n; j += W) total = total + (L::load(S + int64_t(i) * ld + j) > bar ? L::all(1) : L::all(0));
      count[i] += int32_t(L::sum(total));
    }
  }

  static void drop_above(T* S, int m, int n, int ld, const T* limit) {
    for (int i = 0; i < m; i++) {
      T* s = S + int64_t(i) * ld;
      const V most = L::all(limit[i]);
      for (int j = 0; j < n; j += W) {
        const V t = L::load(s + j);
        L::store(s + j, t > most ? L::all(-kInf) : t);
      }
    }
  }

  // The padding has logits of -inf. It is taken as negative pairs, which then add nothing, whatever its ids are.
  template <bool kIds>
  static void sigmoid_as(T* S, int m, int n, int wide, int ld, T bias, const PairIds<T>* positives, T* loss, T* weight) {
    const V zero = L::all(0), one = L::all(1);
    for (int i = 0; i < m; i++) {
      T* s = S + int64_t(i) * ld;
      V loss_sum = zero, weight_sum = zero;
      for (int j = 0; j < wide; j += W) {
        const V l = L::load(s + j) + L::all(bias);
        V u = l, v = one;  // softplus(u) and v sigmoid(u)
        if (kIds) {
          const V pair = L::all(positives->row_weight[i]) + L::load(positives->column_weight + j);
          u = L::select_equal(L::load_id(positives->column_id + j), positives->row_id[i], -l, l);
          v = L::select_equal(L::load_id(positives->column_id + j), positives->row_id[i], pair, one);
          if (j + W > n) u = L::first(n - j, u, l), v = L::first(n - j, v, one);
        }
        const V e = L::exp(u < zero ? u : -u), share = one / (one + e);
        loss_sum = loss_sum + v * ((u < zero ? zero : u) + L::log1p(e));
        V w = v * (u < zero ? e * share : share);
        if (kIds) w = L::select_equal(L::load_id(positives->column_id + j), positives->row_id[i], -w, w);
        if (kIds && j + W > n) w = L::first(n - j, w, zero);
        L::store(s + j, w);
        weight_sum = weight_sum + w;
      }
      loss[i] += L::sum(loss_sum);
      weight[i] += L::sum(weight_sum);
    }
  }
  static void sigmoid(T* S, int m, int n, int wide, int ld, T bias, const PairIds<T>* positives, T* loss, T* weight) {
    (positives ? sigmoid_as<true> : sigmoid_as<false>)(S, m, n, wide, ld, bias, positives, loss, weight);
  }

  static void add_squares(const Array& x, int64_t first, int n, T* sum) {
    for_each_block(n, [&](int64_t begin, int count) {
      T buffer[kBlock];
      const T* row = values_of(x, first + begin, count, buffer);
      for (int j = 0; j < count; j++) sum[begin + j] += row[j] * row[j];
    });
  }

  static void column_sum(const T* S, int m, int n, int ld, T* sum) {
    for (int i = 0; i < m; i++)
      for (int j = 0; j < n; j += W) L::store(sum + j, L::load(sum + j) + L::load(S + int64_t(i) * ld + j));
  }

  static T dot(const T* a, const T* b, int64_t n) {
    V total = L::all(0);
    int64_t k = 0;
    for (; k + W <= n; k += W) total = total + L::load(a + k) * L::load(b + k);
    T sum = L::sum(total);
    for (; k < n; k++) sum += a[k] * b[k];
    return sum;
  }
  static T dot_with(const Array& x, int64_t first, const T* b, int64_t n) {
    T sum = 0;
    for_each_block(n, [&](int64_t begin, int count) {
      T buffer[kBlock];
      const T* a = values_of(x, first + begin, count, buffer);
      sum += dot(a, b ? b + begin : a, count);
    });
    return sum;
  }

  static constexpr Rows<T> table = {
      W,           exclude,     add_bias,   sum_bounded, sum_online, weight_bounded, weight_online, soft_bounded,
      soft_online, count_above, drop_above, column_sum,  sigmoid,    add_squares,    dot,           dot_with};
};

static const Rows<float>& float_rows = RowFunctions<FloatLane>::table;
