// The scalar reference: the definition of what every other implementation must return.
#include "core/convert.h"
#include "cpu/codes.h"
#include "cpu/kernels.h"
#include "cpu/matrix.h"

namespace gct {
namespace {

float sum_lanes(float* lanes) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

void widen(const uint16_t* halves, int64_t n, bool bfloat16, float* out) {
  for (int64_t i = 0; i < n; ++i)
    out[i] = bfloat16 ? bfloat16_to_float(halves[i]) : float16_to_float(halves[i]);
}

void narrow(const float* x, int64_t n, bool bfloat16, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i)
    out[i] = bfloat16 ? float_to_bfloat16(x[i]) : float_to_float16(x[i]);
}

BlockMoments moments(const float* x, int n) {
  float sum_abs[kLanes] = {}, sum_square[kLanes] = {};
  for (int i = 0; i < n; ++i) {
    const float magnitude = bits_float(float_bits(x[i]) & 0x7fffffffu);
    sum_abs[i % kLanes] += magnitude;
    sum_square[i % kLanes] += magnitude * magnitude;
  }
  return {sum_lanes(sum_abs), sum_lanes(sum_square)};
}

bool quantize(const float* x, int n, const Quantizer& q, uint8_t* symbols) {
  bool escaped = false;
  for (int i = 0; i < n; ++i) {
    const bool negative = float_bits(x[i]) >> 31;
    symbols[i] = static_cast<uint8_t>(
        magnitude_symbol(quantize_magnitude(x[i], q, i), negative, q.magnitudes_at(i)));
    escaped = escaped || symbols[i] == kEscapeSymbol;
  }
  return escaped;
}

SymbolCost cost(const uint8_t* symbols, int n, const MagnitudeTable& table, int magnitudes,
                uint32_t* escapes) {
  SymbolCost result;
  for (int i = 0; i < n; ++i) {
    const bool escape = symbols[i] > 2 * magnitudes;
    const int k = escape ? magnitudes + 1 : symbol_magnitude(symbols[i]);
    result.sum += table.cost_low[k] + (uint32_t{table.cost_high[k]} << 8);
    uint32_t& row = escapes[i / kLanes];
    row = (i % kLanes == 0 ? 0 : row) | uint32_t{escape} << (i % kLanes);
    result.any_escape |= row;
  }
  return result;
}

uint16_t* encode(uint32_t* states, const uint8_t* symbols, int n, const EncodeTable* table,
                 const uint8_t* choice, uint16_t* end) {
  for (int i = n - 1; i >= 0; --i)
    rans_put(&states[i % kLanes], table[choice ? choice[i] : 0].entry[symbols[i]], &end);
  return end;
}

uint16_t* encode_values(uint32_t* states, const float* x, int n, const Quantizer& q,
                        const MagnitudeTable& table, uint16_t* end, uint32_t* escapes) {
  for (int row = (n - 1) / kLanes; row >= 0; --row) {
    escapes[row] = 0;
    const int begin = row * kLanes;
    for (int i = (n < begin + kLanes ? n : begin + kLanes) - 1; i >= begin; --i) {
      const int32_t magnitude = quantize_magnitude(x[i], q, i);
      const bool escape = magnitude > q.magnitudes;
      const int k = escape ? q.magnitudes + 1 : magnitude;
      const bool minus = k > 0 && !escape && (float_bits(x[i]) >> 31) != 0;
      const uint32_t freq = table.freq[k], bias = table.bias[k] + (minus ? freq : 0);
      rans_put(&states[i % kLanes],
               {table.reciprocal[k], freq | (bias << 12) | (table.shift[k] << 25)}, &end);
      if (escape) escapes[row] |= 1u << (i - begin);
    }
  }
  return end;
}

const uint8_t* decode(uint32_t* states, const DecodeTable* table, const uint8_t* choice, int n,
                      const uint8_t* words, uint8_t* symbols) {
  for (int i = 0; i < n; ++i) {
    const uint32_t* slots = table[choice ? choice[i] : 0].slot;
    symbols[i] = static_cast<uint8_t>(rans_get(&states[i % kLanes], slots, &words));
  }
  return words;
}

void dequantize(const uint8_t* symbols, int n, const LevelTable* levels, const uint8_t* choice,
                float step, bool accumulate, float* out) {
  for (int i = 0; i < n; ++i) {
    const float value = step * levels[choice ? choice[i] : 0].level[symbols[i]];
    out[i] = accumulate ? out[i] + value : value;
  }
}

void decode_values(BlockDecode* block, bool accumulate) {
  for (int i = 0; i < block->n; ++i) {
    const uint32_t symbol = rans_get(&block->states[i % kLanes], block->table->slot, &block->words);
    const float value = block->step * block->levels->level[symbol];
    block->out[i] = accumulate ? block->out[i] + value : value;
    const uint32_t bit = 1u << (i % kLanes);
    uint32_t& escapes = block->escapes[i / kLanes];
    escapes = (i % kLanes == 0 ? 0 : escapes) | (symbol == kEscapeSymbol ? bit : 0);
    block->any_escape |= escapes;
  }
}

void decode_pair(BlockDecode* blocks, bool accumulate) {
  decode_values(&blocks[0], accumulate);
  decode_values(&blocks[1], accumulate);
}

void restore(const float* x, int n, const Quantizer& q, const LevelTable& levels, float step,
             float* out, uint32_t* escapes) {
  for (int i = 0; i < n; ++i) {
    const float value = x[i];
    const bool negative = float_bits(value) >> 31;
    const int symbol = magnitude_symbol(quantize_magnitude(value, q, i), negative, q.magnitudes);
    const bool escape = symbol == kEscapeSymbol;
    out[i] = escape ? value : step * levels.level[symbol];
    uint32_t& row = escapes[i / kLanes];
    row = (i % kLanes == 0 ? 0 : row) | uint32_t{escape} << (i % kLanes);
  }
}

void split_low(const float* x, int n, const Quantizer& q, int shift, float* high, uint32_t* low) {
  const int32_t half = 1 << (shift - 1);
  for (int i = 0; i < n; ++i) {
    const int32_t magnitude = quantize_magnitude(x[i], q, i);
    const int32_t k = (float_bits(x[i]) >> 31) != 0 ? -magnitude : magnitude;
    high[i] = static_cast<float>((k + half) >> shift);
    low[i] = static_cast<uint32_t>(k + half) & ((1u << shift) - 1);
  }
}

void join_low(const float* high, const uint32_t* low, int n, int shift, float step, bool accumulate,
              float* out) {
  const float scale = static_cast<float>(1 << shift);
  const int32_t half = 1 << (shift - 1);
  for (int i = 0; i < n; ++i) {
    const float k = high[i] * scale + static_cast<float>(static_cast<int32_t>(low[i]) - half);
    const float value = step * k;
    out[i] = accumulate ? out[i] + value : value;
  }
}

void fixed_codes(const float* x, int n, float inverse, const Codebook& book, uint8_t* codes) {
  for (int i = 0; i < n; ++i) {
    const float magnitude = bits_float(float_bits(x[i]) & 0x7fffffffu) * inverse;
    uint32_t index = 0;
    for (uint32_t first = 1; first < 1u << (book.bits - 1); first *= 2)
      index = 2 * index + (magnitude >= book.thresholds[first + index] ? 1 : 0);
    codes[i] = static_cast<uint8_t>((float_bits(x[i]) >> 31) << (book.bits - 1) | index);
  }
}

void pack(const uint8_t* codes, int n, int bits, uint8_t* out) {
  static constexpr void (*widths[])(const uint8_t*, int, uint8_t*) = {
      pack_bits<1>, pack_bits<2>, pack_bits<3>, pack_bits<4>,
      pack_bits<5>, pack_bits<6>, pack_bits<7>, pack_bits<8>};
  widths[bits - 1](codes, n, out);
}

void fixed_values(const uint8_t* packed, const uint8_t*, int n, float scale, const Codebook& book,
                  bool accumulate, float* out) {
  uint8_t codes[kBlock];
  unpack(packed, n, book.bits, codes);
  for (int i = 0; i < n; ++i) {
    const float value = scale * book.signed_levels[codes[i]];
    out[i] = accumulate ? out[i] + value : value;
  }
}

}  // namespace

const Kernels* scalar_kernels() {
  static const Kernels k = {"scalar",      widen,        narrow,        moments,   quantize,
                            cost,          encode,       encode_values, decode,    dequantize,
                            decode_values, decode_pair,  restore,       split_low, join_low,
                            fixed_codes,   fixed_values, pack,          unpack,    project,
                            add_outer,     row_product};
  return &k;
}

}  // namespace gct
