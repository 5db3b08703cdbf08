// Symbols of one block with what doesn't fit the alphabet: escapes and low bits, in the order of
// the elements.
#pragma once

#include "core/bit_io.h"
#include "cpu/block_setup.h"
#include "cpu/kernels.h"

namespace gct {

template <typename Sink>
GCT_HD inline void put_escape(BasicBitWriter<Sink>* extra, bool negative, int32_t excess,
                              int table) {
  extra->put(negative ? 1 : 0, 1);
  put_golomb(extra, static_cast<uint32_t>(excess), escape_order(table));
}

// Extra bits of the elements whose bit is set in escapes[0, rows), in a block with one table.
inline void put_escapes(const float* x, const uint32_t* escapes, int rows, const Quantizer& q,
                        int table, BitWriter* extra) {
  for (int row = 0; row < rows; ++row) {
    for (uint32_t left = escapes[row]; left != 0; left &= left - 1) {
      const int i = row * kLanes + __builtin_ctz(left);
      const int32_t excess = quantize_magnitude(x[i], q, i) - q.magnitudes - 1;
      put_escape(extra, float_bits(x[i]) >> 31, excess, table);
    }
  }
}

// A block far above the table grid: k = (high << shift) + low - half; high goes through the table,
// low aside.
inline void quantize_shifted(const float* x, int n, const BlockSetup& setup, uint8_t* symbols,
                             BitWriter* extra) {
  const Quantizer& q = setup.quantizer;
  const int shift = setup.code.shift;
  const int32_t half = 1 << (shift - 1);
  for (int i = 0; i < n; ++i) {
    const int32_t magnitude = quantize_magnitude(x[i], q, i), limit = q.magnitudes_at(i);
    const int32_t k = (float_bits(x[i]) >> 31) != 0 ? -magnitude : magnitude;
    const int32_t high = (k + half) >> shift;
    const int32_t high_magnitude = high < 0 ? -high : high;
    symbols[i] = static_cast<uint8_t>(magnitude_symbol(high_magnitude, high < 0, limit));
    if (symbols[i] == kEscapeSymbol)
      put_escape(extra, high < 0, high_magnitude - limit - 1, setup.table(i));
    extra->put(static_cast<uint32_t>(k + half) & ((1u << shift) - 1), shift);
  }
}

// Symbols of a block into symbols[0, n) and its extra bits.
inline void make_symbols(const float* x, int n, const BlockSetup& setup, uint8_t* symbols,
                         BitWriter* extra) {
  const Quantizer& q = setup.quantizer;
  if (setup.code.shift > 0) {
    quantize_shifted(x, n, setup, symbols, extra);
    return;
  }
  if (!kernels().quantize(x, n, q, symbols)) return;
  for (int i = 0; i < n; ++i) {
    if (symbols[i] != kEscapeSymbol) continue;
    const int32_t excess = quantize_magnitude(x[i], q, i) - q.magnitudes_at(i) - 1;
    put_escape(extra, float_bits(x[i]) >> 31, excess, setup.table(i));
  }
}

}  // namespace gct
