// Element scales (cpu/element_scales.h) on gradients.
#pragma once

#include <ATen/ATen.h>

namespace gct {

// Gradients: CPU, contiguous, of a dtype of the codec. Squares: float32, as many. mean: that of the
// squares. Each throws std::invalid_argument for other tensors.

double mean_of_squares(const at::Tensor& squares);

// Divides by the elements' scales; false, and nothing is done, where the squares tell none.
bool divide_by_scales(const at::Tensor& gradient, const at::Tensor& squares, double mean,
                      double floor);

// Multiplies by the scales that divide_by_scales() used, if `scaled`, and lets the gradient's
// squares enter the averages. Returns their new mean.
double multiply_by_scales(const at::Tensor& gradient, const at::Tensor& squares, double mean,
                          bool scaled, double floor, double decay);

}  // namespace gct
