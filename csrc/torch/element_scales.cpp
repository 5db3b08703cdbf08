#include "torch/element_scales.h"

#include <algorithm>

#include "cpu/element_scales.h"
#include "torch/float_ops.h"
#include "torch/require.h"

namespace gct {

namespace {

constexpr int64_t kInCache = 4096;  // elements: values and squares stay in the first cache

void check_squares(const at::Tensor& squares) {
  require(squares.is_contiguous() && squares.is_cpu() && squares.scalar_type() == at::kFloat,
          "the squares must be contiguous float32 on the CPU");
}

// Calls body(float32 values, their squares, how many) for one block after the other. write: values
// of another dtype, too, become what the body has made of them.
template <typename Body>
void for_blocks(const at::Tensor& gradient, const at::Tensor& squares, bool write, Body body) {
  check_squares(squares);
  require(gradient.is_contiguous() && gradient.is_cpu() && gradient.numel() == squares.numel(),
          "the gradient must be contiguous, on the CPU, and have as many elements as squares");
  const DType dtype = codec_dtype(gradient.scalar_type(), "gct: the gradient");
  auto* bytes = static_cast<uint8_t*>(gradient.data_ptr());
  float* square = squares.data_ptr<float>();
  float converted[kInCache];
  for (int64_t begin = 0; begin < gradient.numel(); begin += kInCache) {
    const int64_t count = std::min(kInCache, gradient.numel() - begin);
    uint8_t* place = bytes + begin * gradient.element_size();
    if (dtype == DType::kFloat32) {
      body(reinterpret_cast<float*>(place), square + begin, count);
    } else {
      to_float(dtype, place, converted, count);
      body(converted, square + begin, count);
      if (write) from_float(dtype, converted, place, count);
    }
  }
}

double mean(const SquareSum& sum, int64_t numel) {
  return numel > 0 ? sum.total() / static_cast<double>(numel) : 0;
}

}  // namespace

double mean_of_squares(const at::Tensor& squares) {
  check_squares(squares);
  SquareSum sum;
  sum.add(squares.data_ptr<float>(), squares.numel());
  return mean(sum, squares.numel());
}

bool divide_by_scales(const at::Tensor& gradient, const at::Tensor& squares, double mean,
                      double floor) {
  if (!ElementScales::exist(mean)) return false;
  const ElementScales scales(mean, static_cast<float>(floor));
  for_blocks(gradient, squares, true, [&](float* values, const float* square, int64_t count) {
    scales.divide(values, square, count);
  });
  return true;
}

double multiply_by_scales(const at::Tensor& gradient, const at::Tensor& squares, double old_mean,
                          bool scaled, double floor, double decay) {
  const ElementScales scales(scaled ? old_mean : 1, static_cast<float>(floor));
  SquareSum sum;
  for_blocks(gradient, squares, scaled, [&](float* values, float* square, int64_t count) {
    if (scaled) scales.multiply(values, square, count);
    learn_squares(values, square, count, static_cast<float>(decay));
    sum.add(square, count);
  });
  return mean(sum, gradient.numel());
}

}  // namespace gct
