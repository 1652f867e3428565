// The cross-entropy of a positive whose logit lies u below the log-sum-exp of the negatives, and its derivative, in float64.
#pragma once
#include <cmath>

namespace fastssl {

inline double softplus(double u) { return (u > 0.0 || std::isnan(u) ? u : 0.0) + std::log1p(std::exp(-std::abs(u))); }

inline double sigmoid(double u) {
  const double e = std::exp(-std::abs(u));
  return (u > 0.0 ? 1.0 : e) / (1.0 + e);
}

}  // namespace fastssl
