// Symbols of one block with what doesn't fit the alphabet: escapes and low bits, in the order of
// the elements.
#pragma once

#include "core/bit_io.h"
#include "cpu/block_setup.h"
#include "cpu/escapes.h"
#include "cpu/kernels.h"
#include "cpu/low_bits.h"

namespace gct {

template <typename Sink>
GCT_HD inline void put_escape(BasicBitWriter<Sink>* extra, bool negative, int32_t excess,
                              int table) {
  extra->put(negative ? 1 : 0, 1);
  put_golomb(extra, static_cast<uint32_t>(excess), escape_order(table));
}

// A block's values and quantizer as the alphabet has them: with shift > 0, for a block far above
// the table grid, those of the high parts of its integers (see Kernels::split_low).
struct BlockView {
  BlockView(const float* values, int numel, const Quantizer& quantizer, int low_bits)
      : x(values), n(numel), q(quantizer), shift(low_bits) {
    if (shift == 0) return;
    kernels().split_low(x, n, q, shift, high, low);
    static constexpr float kNoBias[tables::kTablesPerShape] = {};
    x = high;
    q.inverse_step = 1;
    q.bias = 0;
    q.biases = kNoBias;
    q.stochastic = false;
  }
  BlockView(const BlockView&) = delete;  // x may point into it
  BlockView& operator=(const BlockView&) = delete;

  const float* x;
  int n;
  Quantizer q;
  int shift;
  float high[kBlock];
  uint32_t low[kBlock];
};

// Calls body with a block's values and quantizer as the alphabet has them. Without low bits, as
// nearly always, nothing is copied.
template <typename Body>
void with_high_parts(const float* x, int n, const Quantizer& q, int shift, Body body) {
  if (shift == 0) {
    body(x, q);
  } else {
    const BlockView view(x, n, q, shift);
    body(view.x, view.q);
  }
}

// Extra bits of a block; an element's bit in escapes as in Kernels::encode_values. table: of an
// element, by its number.
template <typename Table>
void put_extra(const BlockView& block, const uint32_t* escapes, Table table, BitWriter* extra) {
  int begin = 0;
  const auto put_low_up_to = [&](int end) {
    if (block.shift > 0) put_low(block.low + begin, end - begin, block.shift, extra);
    begin = end;
  };
  for (const int i : Escapes(escapes, block.n)) {
    const int32_t magnitude = quantize_magnitude(block.x[i], block.q, i);
    put_low_up_to(i);
    put_escape(extra, float_bits(block.x[i]) >> 31, magnitude - block.q.magnitudes_at(i) - 1,
               table(i));
  }
  put_low_up_to(block.n);
}

// Symbols of a block into symbols[0, n) and its extra bits.
inline void make_symbols(const float* x, int n, const BlockSetup& setup, uint8_t* symbols,
                         BitWriter* extra) {
  const BlockView block(x, n, setup.quantizer, setup.code.shift);
  if (!kernels().quantize(block.x, n, block.q, symbols) && block.shift == 0) return;
  uint32_t escapes[kBlock / kLanes];
  find_escapes(symbols, n, escapes);
  put_extra(block, escapes, [&](int i) { return setup.table(i); }, extra);
}

}  // namespace gct
