// Symbols of scale classes in kind gg: zero block, escape, or the difference to the predicted
// class.
#pragma once

#include "core/gg_tables.h"

namespace gct {

constexpr int kZeroBlock = 0;
constexpr int kClassEscape = 1;
constexpr int kFirstDelta = 2;
constexpr int kClassSymbols = 2 * tables::kClassDeltaMax + 3;

GCT_HD inline int class_symbol(int scale_class, int predicted) {
  const int delta = scale_class - predicted;
  if (delta < -tables::kClassDeltaMax || delta > tables::kClassDeltaMax) return kClassEscape;
  return kFirstDelta + tables::kClassDeltaMax + delta;
}

}  // namespace gct
