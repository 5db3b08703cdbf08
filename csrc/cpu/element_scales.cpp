#include "cpu/element_scales.h"

#include <algorithm>
#include <cmath>

namespace gct {

namespace {

constexpr int kLanes = 16;

// What is smaller changes no scale, and would end as a denormal number, which takes time and which
// some threads flush to zero and others don't.
constexpr float kLeastAverage = 1e-30f;

}  // namespace

void divide_by_scales(float* values, const float* averages, int64_t numel, float factor) {
  for (int64_t i = 0; i < numel; ++i) values[i] /= std::sqrt(averages[i] * factor + 1.0f);
}

void multiply_by_scales(float* values, const float* averages, int64_t numel, float factor) {
  for (int64_t i = 0; i < numel; ++i) values[i] *= std::sqrt(averages[i] * factor + 1.0f);
}

void learn_squares(const float* values, float* averages, int64_t numel, float decay, float weight) {
  for (int64_t i = 0; i < numel; ++i) {
    const float next = decay * averages[i] + weight * (values[i] * values[i]);
    averages[i] = next >= kLeastAverage ? next : 0.0f;
  }
}

void SquareSum::add(const float* values, int64_t numel) {
  for (int64_t begin = 0; begin < numel; begin += kSquareSumBlock) {
    const int64_t end = std::min(numel, begin + kSquareSumBlock);
    float lanes[kLanes] = {};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        lanes[lane] += values[i + lane] * values[i + lane];
      }
    }
    for (; i < end; ++i) lanes[0] += values[i] * values[i];
    for (const float lane : lanes) total_ += lane;
  }
}

}  // namespace gct
