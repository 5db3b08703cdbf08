#include "cpu/element_scales.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace gct {

namespace {

// Some threads flush denormal numbers to zero and others don't. From this mean on, a square that is
// one lies below the last bit of square / mean + floor.
constexpr double kLeastMean = 1e-28;

constexpr int kLanes = 16;
constexpr int64_t kSumInFloat = 1024;  // a multiple of kLanes

}  // namespace

bool ElementScales::exist(double mean) { return mean >= kLeastMean && std::isfinite(mean); }

ElementScales::ElementScales(double mean, float floor)
    : factor_(static_cast<float>(1 / (mean * (1.0 + floor)))),
      offset_(static_cast<float>(floor / (1.0 + floor))) {}

void ElementScales::divide(float* values, const float* squares, int64_t numel) const {
  for (int64_t i = 0; i < numel; ++i) values[i] /= std::sqrt(squares[i] * factor_ + offset_);
}

void ElementScales::multiply(float* values, const float* squares, int64_t numel) const {
  for (int64_t i = 0; i < numel; ++i) values[i] *= std::sqrt(squares[i] * factor_ + offset_);
}

void learn_squares(const float* values, float* squares, int64_t numel, float decay) {
  const float weight = 1 - decay;
  for (int64_t i = 0; i < numel; ++i) {
    const float square = values[i] * values[i];
    const float next = decay * squares[i] + weight * square;
    // A NaN compares false. What overflowed belongs to a step that is skipped.
    squares[i] = square <= std::numeric_limits<float>::max() ? next : squares[i];
  }
}

void SquareSum::add(const float* squares, int64_t numel) {
  for (int64_t begin = 0; begin < numel; begin += kSumInFloat) {
    const int64_t end = std::min(numel, begin + kSumInFloat);
    float lanes[kLanes] = {};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += squares[i + lane];
    }
    for (; i < end; ++i) lanes[0] += squares[i];
    for (const float lane : lanes) total_ += lane;
  }
}

}  // namespace gct
