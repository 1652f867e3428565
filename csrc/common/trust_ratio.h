// Computes the ratio and the weight decay of a tensor's LARS step from its norms, in float64, for the CPU and for CUDA. The
// including file defines FASTSSL_FN; there is no include guard, for the reason that elements.h gives.

struct LarsOptions {
  int form;  // 0 moco_v3, 1 larc, 2 paper
  double lr, trust_coefficient, eps;
  bool clip;
};

// d = g + weight_decay p,  s = ratio d.
struct LarsScale {
  double ratio, weight_decay;
};

// p_squares is |p|^2; d_squares is |g + weight_decay p|^2 in form moco_v3, |g|^2 in the others. A norm of NaN is not above 0.
FASTSSL_FN LarsScale lars_scale(bool adapt, double p_squares, double d_squares, double weight_decay, const LarsOptions& o) {
  LarsScale scale = {1.0, weight_decay};
  if (adapt && p_squares > 0.0 && d_squares > 0.0) {
    const double p = sqrt(p_squares), d = sqrt(d_squares);
    scale.ratio = o.trust_coefficient * p / (o.form == 0 ? d : d + weight_decay * p + o.eps);
    if (o.clip) scale.ratio = scale.ratio < o.lr ? scale.ratio / o.lr : 1.0;
  } else if (adapt && o.form == 1) {
    scale.weight_decay = 0.0;
  }
  if (o.form == 2) scale.ratio *= o.lr;
  return scale;
}
