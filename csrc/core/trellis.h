// The trellis quantizer (effort "high"): two quantizers, one with levels at whole steps and one
// with levels at half steps and zero, and on each lane a state that says which of the two an
// element uses and moves by the parity of its magnitude (dependent quantization, Schwarz et al.
// 2019). The encoder takes the cheapest way through the states; the decoder just follows them.
#pragma once

#include "core/quantize.h"

namespace gct {
namespace tables {
#include "core/trellis_tables.inc"
}  // namespace tables

constexpr int kTrellisStates = 8;
constexpr int kQuantizers =
    2;  // a state's lowest bit is its quantizer: 0 whole steps, 1 half steps

// A table of the trellis, as an index among its shape's: those of one t stand side by side.
constexpr int kTrellisTablesPerShape = kQuantizers * tables::kTablesPerShape;
GCT_HD inline int trellis_table(int table_in_shape, int quantizer) {
  return kQuantizers * table_in_shape + quantizer;
}

// Alphabets are those of the plain tables (kTableStart); `table` is an index among all of these.
inline const uint16_t* trellis_freqs(int table, int quantizer) {
  return (quantizer == 0 ? tables::kWholeFreqs : tables::kHalfFreqs) + tables::kTableStart[table];
}

// Decoded magnitude in steps, in the place of level().
inline float trellis_level(int table, int quantizer, int k) {
  if (k == 0) return 0.0f;
  const int16_t* offsets = quantizer == 0 ? tables::kWholeOffsets : tables::kHalfOffsets;
  const int m = table_magnitudes(table);
  const int offset = offsets[tables::kTableStart[table] + (k <= m ? k : m + 1)];
  return static_cast<float>(k) - static_cast<float>(offset) * (1.0f / 4096.0f);
}

// An escape counts as even whatever its magnitude is, so that the state follows from symbols alone.
inline int symbol_parity(int symbol) { return symbol_magnitude(symbol) & 1; }
static_assert(((kEscapeSymbol + 1) / 2) % 2 == 0, "the escape must be even");

inline uint8_t trellis_next(int state, int parity) {
  return tables::kTrellisNext[2 * state + parity];
}

}  // namespace gct
