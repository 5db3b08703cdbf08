// Element scales (cpu/element_scales.h) on gradients.
#pragma once

#include <ATen/ATen.h>

namespace gct {

// Gradients: CPU, contiguous, of a dtype of the codec. Averages: float32, as many. Each throws
// std::invalid_argument for other tensors.

// Divides by the elements' scales.
void divide_by_scales(const at::Tensor& gradient, const at::Tensor& averages, double factor);

// Multiplies by them.
void multiply_by_scales(const at::Tensor& gradient, const at::Tensor& averages, double factor);

// Lets the gradient's squares enter the averages; false, and nothing is done, where there is a NaN
// or an infinity, or where the squares are zeros or next to it.
bool learn_squares(const at::Tensor& gradient, const at::Tensor& averages, double decay);

}  // namespace gct
