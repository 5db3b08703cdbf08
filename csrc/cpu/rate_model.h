// Rate and error of the quantizer under the generalized Gaussian model, from the committed tables.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/gg_tables.h"

namespace gct {

constexpr int kModelRatioMin = 4 * tables::kTableMin;  // in 1/16 octave, as class_ratio()
constexpr int kModelRatioMax = 4 * tables::kTableMax;

// Value of a table at a ratio between its entries.
template <typename T>
inline double interpolate(const T* values, double ratio) {
  const double at =
      std::min(std::max((ratio - kModelRatioMin) / 4, 0.0), double(tables::kTablesPerShape - 1));
  const int i = std::min(static_cast<int>(at), tables::kTablesPerShape - 2);
  return values[i] + (at - i) * (static_cast<double>(values[i + 1]) - values[i]);
}

// Bits an element at a ratio (in 1/16 octave): below the grid next to none, above it one more an
// octave.
inline double model_rate(int shape, double ratio) {
  const double above = std::max(0.0, (ratio - kModelRatioMax) / 16);
  return interpolate(tables::kModelRate + shape * tables::kTablesPerShape, ratio) / 4096 + above;
}

// Squared error an element in units of step^2; below the grid all of the signal is error.
inline double model_error_steps(int shape, double ratio) {
  const double below = std::min(0.0, (ratio - kModelRatioMin) / 16);
  return interpolate(tables::kModelDistortion + shape * tables::kTablesPerShape, ratio) / 16384 *
         std::exp2(2 * below);
}

}  // namespace gct
