#include "torch/element_scales.h"

#include <algorithm>
#include <cmath>

#include "cpu/element_scales.h"
#include "torch/float_ops.h"
#include "torch/require.h"

namespace gct {

namespace {

constexpr int64_t kInCache = 4096;  // elements: values and averages stay in the first cache
static_assert(kInCache % kSquareSumBlock == 0);

// Squares of a smaller mean are denormal numbers in part: a tensor of 1e-14 and less.
constexpr double kLeastMean = 1e-28;

// Calls body(float32 values, their averages, how many) for one block after the other. write: values
// of another dtype, too, become what the body has made of them.
template <typename Body>
void for_blocks(const at::Tensor& gradient, const at::Tensor& averages, bool write, Body body) {
  require(averages.is_contiguous() && averages.is_cpu() && averages.scalar_type() == at::kFloat,
          "the averages must be contiguous float32 on the CPU");
  require(gradient.is_contiguous() && gradient.is_cpu() && gradient.numel() == averages.numel(),
          "the gradient must be contiguous, on the CPU, and have as many elements as averages");
  const DType dtype = codec_dtype(gradient.scalar_type(), "gct: the gradient");
  auto* bytes = static_cast<uint8_t*>(gradient.data_ptr());
  float* average = averages.data_ptr<float>();
  float converted[kInCache];
  for (int64_t begin = 0; begin < gradient.numel(); begin += kInCache) {
    const int64_t count = std::min(kInCache, gradient.numel() - begin);
    uint8_t* place = bytes + begin * gradient.element_size();
    if (dtype == DType::kFloat32) {
      body(reinterpret_cast<float*>(place), average + begin, count);
    } else {
      to_float(dtype, place, converted, count);
      body(converted, average + begin, count);
      if (write) from_float(dtype, converted, place, count);
    }
  }
}

}  // namespace

void divide_by_scales(const at::Tensor& gradient, const at::Tensor& averages, double factor) {
  for_blocks(gradient, averages, true, [&](float* values, const float* average, int64_t count) {
    divide_by_scales(values, average, count, static_cast<float>(factor));
  });
}

void multiply_by_scales(const at::Tensor& gradient, const at::Tensor& averages, double factor) {
  for_blocks(gradient, averages, true, [&](float* values, const float* average, int64_t count) {
    multiply_by_scales(values, average, count, static_cast<float>(factor));
  });
}

bool learn_squares(const at::Tensor& gradient, const at::Tensor& averages, double decay) {
  SquareSum sum;
  for_blocks(gradient, averages, false,
             [&](const float* values, const float*, int64_t count) { sum.add(values, count); });
  const double mean = sum.total() / static_cast<double>(std::max<int64_t>(1, gradient.numel()));
  if (!(mean >= kLeastMean && std::isfinite(mean))) return false;
  const auto weight = static_cast<float>((1 - decay) / mean);
  for_blocks(gradient, averages, false, [&](const float* values, float* average, int64_t count) {
    learn_squares(values, average, count, static_cast<float>(decay), weight);
  });
  return true;
}

}  // namespace gct
