// Symbols of one block with what doesn't fit the alphabet: escapes and low bits, in the order of
// the elements.
#pragma once

#include "core/bit_io.h"
#include "cpu/kernels.h"

namespace gct {

// A block far above the table grid: k = (high << shift) + low - half; high goes through the table,
// low aside.
inline void quantize_shifted(const float* x, int n, const Quantizer& q, int shift, uint8_t* symbols,
                             BitWriter* extra, int order) {
  const int32_t half = 1 << (shift - 1);
  for (int i = 0; i < n; ++i) {
    const int32_t magnitude = quantize_magnitude(x[i], q, i);
    const int32_t k = (float_bits(x[i]) >> 31) != 0 ? -magnitude : magnitude;
    const int32_t high = (k + half) >> shift;
    const int32_t high_magnitude = high < 0 ? -high : high;
    const bool escape = high_magnitude > q.magnitudes;
    symbols[i] = static_cast<uint8_t>(escape ? escape_symbol(q.magnitudes)
                                             : 2 * high_magnitude - (high > 0 ? 1 : 0));
    if (escape) {
      extra->put(high < 0 ? 1 : 0, 1);
      put_golomb(extra, static_cast<uint32_t>(high_magnitude - q.magnitudes - 1), order);
    }
    extra->put(static_cast<uint32_t>(k + half) & ((1u << shift) - 1), shift);
  }
}

// Symbols of a block into symbols[0, n) and its extra bits.
inline void make_symbols(const float* x, int n, const Quantizer& q, const BlockCode& code,
                         uint8_t* symbols, BitWriter* extra) {
  const int order = escape_order(code.table);
  if (code.shift > 0) {
    quantize_shifted(x, n, q, code.shift, symbols, extra, order);
    return;
  }
  if (!kernels().quantize(x, n, q, symbols)) return;
  const uint8_t escape = static_cast<uint8_t>(escape_symbol(q.magnitudes));
  for (int i = 0; i < n; ++i) {
    if (symbols[i] != escape) continue;
    extra->put(float_bits(x[i]) >> 31, 1);
    put_golomb(extra, static_cast<uint32_t>(quantize_magnitude(x[i], q, i) - q.magnitudes - 1),
               order);
  }
}

}  // namespace gct
