// What a run's shape follows from: moments of its blocks, each divided by the scale of its class.
#pragma once

#include "core/gg_tables.h"

namespace gct {

// 2^(-scale_class / 2): what a block's values are divided by the scale of their class with.
GCT_HD inline double inverse_scale(int scale_class) {
  const uint64_t exponent = static_cast<uint64_t>(1023 - (scale_class >> 1)) << 52;
  double power;
  memcpy(&power, &exponent, sizeof power);
  return (scale_class & 1) != 0 ? 0.70710678118654752 * power : power;
}

// Index of the table grid's shape with the nearest E x^2 / (E|x|)^2 (Mallat 1989), from sums.
GCT_HD inline uint8_t shape_of_moments(double numel, double abs, double square) {
  if (numel == 0) return tables::kNumShapes - 1;
  const double rho = square * numel / (abs * abs);
  int i = 0;
  while (i < tables::kNumShapes - 1 && rho < static_cast<double>(model_tables::kRhoLimits[i])) ++i;
  return static_cast<uint8_t>(i);
}

}  // namespace gct
