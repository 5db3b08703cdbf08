// How closely encoders keep to a target in bits, and the model's rate.
#pragma once

#include "core/gg_tables.h"

namespace gct {

// Share of the target that the rate control aims at: its estimate is off by about 1 %, and a
// segment over the slot has to be encoded again.
constexpr double kAim = 0.986;
// A segment under this share of its target is encoded again with a finer step.
constexpr double kAcceptFrom = 0.972;
constexpr double kPatience = 0.006;  // and a little less is asked each time

// Blocks this far under their step usually quantize to zeros; finding out costs more than it saves
// above.
constexpr int kSkipBelow = -8;  // table t, in quarter octaves

constexpr int kModelRatioMin = 4 * tables::kTableMin;  // in 1/16 octave, as class_ratio()
constexpr int kModelRatioMax = 4 * tables::kTableMax;

// Value of a table at a ratio between its entries.
template <typename T>
GCT_HD inline double interpolate(const T* values, double ratio) {
  constexpr double kLast = tables::kTablesPerShape - 1;
  double at = (ratio - kModelRatioMin) / 4;
  at = at < 0 ? 0 : at > kLast ? kLast : at;
  int i = static_cast<int>(at);
  if (i > tables::kTablesPerShape - 2) i = tables::kTablesPerShape - 2;
  return values[i] + (at - i) * (static_cast<double>(values[i + 1]) - values[i]);
}

// Bits an element at a ratio (in 1/16 octave): below the grid next to none, above it one more an
// octave.
GCT_HD inline double model_rate(int shape, double ratio) {
  const double above = ratio > kModelRatioMax ? (ratio - kModelRatioMax) / 16 : 0;
  return interpolate(model_tables::kModelRate + shape * tables::kTablesPerShape, ratio) / 4096 +
         above;
}

}  // namespace gct
