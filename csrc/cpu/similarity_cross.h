// The ops of similarity_cross.cpp as functions, for the steps that are made of them.
#pragma once
#include <tuple>
#include <vector>

#include "cpu/tensor.h"

namespace fastssl::similarity {

// row, column, rank, kept, state and peak, as fastssl/ops/similarity_cross.py has them.
using CrossResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

CrossResults similarity_cross_fwd(const Tensor& x, const Tensor& y, double scale, const OptionalTensor& factor,
                                  const OptionalTensor& x_id, const OptionalTensor& y_id, const OptionalTensor& threshold,
                                  int64_t keep_rows);

// dx, dy and dscale, without elements where `need` does not want them.
std::tuple<Tensor, Tensor, Tensor> similarity_cross_bwd(const Tensor& drow, const Tensor& dcolumn, const Tensor& state,
                                                        const Tensor& peak, const Tensor& kept, const Tensor& x, const Tensor& y,
                                                        double scale, const OptionalTensor& factor, const OptionalTensor& x_id,
                                                        const OptionalTensor& y_id, const std::vector<bool>& need);

}  // namespace fastssl::similarity
