// Error of the quantizer under the generalized Gaussian model, from the committed tables.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/rate_target.h"

namespace gct {

// Squared error an element in units of step^2; below the grid all of the signal is error.
inline double model_error_steps(int shape, double ratio) {
  const double below = std::min(0.0, (ratio - kModelRatioMin) / 16);
  return interpolate(tables::kModelDistortion + shape * tables::kTablesPerShape, ratio) / 16384 *
         std::exp2(2 * below);
}

}  // namespace gct
