// The functions that compute one element of an optimizer's step, for every instruction set of the CPU and for CUDA. The including
// file first includes elements.h, whose header says more. Products are rounded where the code says so; on the CPU the including
// file forbids contraction to fused multiply-add.

// a b, which is rounded before anything is added to it.
FASTSSL_FN float product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
FASTSSL_FN double product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

FASTSSL_FN float square_root(float x) { return sqrtf(x); }
FASTSSL_FN double square_root(double x) { return sqrt(x); }

// d = g + weight_decay p,  s = ratio d,  mu = momentum mu + s,  p = p - rate mu, or with nesterov p = p - rate (s + momentum mu).
template <class T>
struct LarsRates {
  T weight_decay, ratio, momentum, rate;
  bool nesterov;
};
template <class T>
FASTSSL_FN void lars_element(T& p, T g, T& mu, const LarsRates<T>& r) {
  const T s = product(r.ratio, multiply_add(r.weight_decay, p, g));
  mu = product(mu, r.momentum) + s;
  p = multiply_add(-r.rate, r.nesterov ? multiply_add(r.momentum, mu, s) : mu, p);
}

// p = kept p - size m / (sqrt(v) / root + eps) after m and v have moved, which is the order of torch.optim.AdamW.
template <class T>
struct AdamRates {
  T kept;           // 1 - lr weight_decay
  T first, second;  // 1 - beta1, 1 - beta2
  T beta2;
  T size, root;  // lr / (1 - beta1^t), sqrt(1 - beta2^t)
  T eps;
};
template <class T>
FASTSSL_FN void adamw_element(T& p, T g, T& m, T& v, const AdamRates<T>& r) {
  m = r.first < T(0.5) ? lerp_near_first(m, g, r.first) : lerp_near_second(m, g, r.first - T(1));
  v = multiply_add(product(r.second, g), g, product(v, r.beta2));
  p = product(p, r.kept) - product(m, r.size) / (square_root(v) / r.root + r.eps);
}
