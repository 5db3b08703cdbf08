// The generated numbers of the generalized Gaussian model (tools/generate_tables.py,
// tools/generate_gains.py) and plain accessors to them.
#pragma once

#include "core/common.h"

namespace gct {
namespace tables {
#include "core/gain_tables.inc"
#include "core/gg_tables.inc"
}  // namespace tables

#if defined(__CUDACC__)
// The same numbers once more in device memory: code for a GPU can't address the host's constants.
#pragma nv_diagnostic push
#pragma nv_diag_suppress 177  // not every kernel uses every array
namespace device_tables {
#define constexpr __device__ const
#include "core/gain_tables.inc"
#include "core/gg_tables.inc"
#undef constexpr
}  // namespace device_tables
#pragma nv_diagnostic pop
#endif

// What functions for host and device look arrays up in.
#if defined(__CUDA_ARCH__)
namespace model_tables = device_tables;
#else
namespace model_tables = tables;
#endif

constexpr int kProbBits = 12;
constexpr uint32_t kProbTotal = 1u << kProbBits;
constexpr int kNumTables = tables::kNumShapes * tables::kTablesPerShape;
// Room for zero, both signs of kMaxMagnitude magnitudes, and the escape, which is one number in all
// tables. Symbols fit 7 bits of a decoding entry.
constexpr int kMaxSymbols = 128;
constexpr int kEscapeSymbol = 127;
static_assert(2 * tables::kMaxMagnitude < kEscapeSymbol,
              "the escape must have a number of its own");

GCT_HD inline int table_index(int shape, int t) {
  return shape * tables::kTablesPerShape + t - tables::kTableMin;
}

// Largest magnitude with its own symbol in a table.
GCT_HD inline int table_magnitudes(int table) {
  return model_tables::kTableStart[table + 1] - model_tables::kTableStart[table] - 2;
}

inline const uint16_t* table_freqs(int table) {
  return tables::kFreqs + tables::kTableStart[table];
}

GCT_HD inline const int16_t* table_offsets(int table) {
  return model_tables::kCentroidOffsets + model_tables::kTableStart[table];
}

// What brings centroids to unit gain, E[x^2] / E[x centroid(x)] under the model, where
// log2(mean |x| / step) is so many sixteenths above the table's own.
GCT_HD inline float table_gain(int table, int above) {
  const int at = 4 * (table % tables::kTablesPerShape) + above;
  const int last = tables::kGainsPerShape - 1;
  const int within = at < 0 ? 0 : at > last ? last : at;
  const int shape = table / tables::kTablesPerShape;
  return static_cast<float>(model_tables::kGains[shape * tables::kGainsPerShape + within]) *
         (1.0f / 4096.0f);
}

// Symbols are magnitudes with the sign interleaved: 0, +1, -1, +2, -2, ...
GCT_HD inline int symbol_magnitude(int symbol) { return (symbol + 1) >> 1; }
GCT_HD inline bool symbol_negative(int symbol) { return symbol != 0 && (symbol & 1) == 0; }

// Levels of the `fixed` codebook: 2^(bits-1) magnitudes in units of mean |x|, ascending, as
// 1/65536.
GCT_HD inline const uint32_t* fixed_levels(int shape, int bits) {
  constexpr int kPerShape = 255;
  return model_tables::kFixedLevels + shape * kPerShape + (1 << (bits - 1)) - 1;
}

}  // namespace gct
