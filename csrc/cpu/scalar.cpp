// The scalar reference: the definition of what every other implementation must return.
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

uint16_t* encode(uint32_t* states, const uint8_t* symbols, int n, const EncodeTable* table,
                 const uint8_t* choice, uint16_t* end) {
  for (int i = n - 1; i >= 0; --i)
    rans_put(&states[i % kLanes], table[choice ? choice[i] : 0].entry[symbols[i]], &end);
  return end;
}

const uint16_t* decode(uint32_t* states, const DecodeTable* table, const uint8_t* choice, int n,
                       const uint16_t* words, const uint16_t* words_end, uint8_t* symbols) {
  for (int i = 0; i < n; ++i) {
    uint32_t& x = states[i % kLanes];
    const uint32_t entry = table[choice ? choice[i] : 0].slot[x & (kProbTotal - 1)];
    symbols[i] = static_cast<uint8_t>(entry & 0x7fu);
    x = rans_advance(x, entry);
    if (x < kRansLow) {
      if (words == words_end) return nullptr;
      x = (x << 16) | *words++;
    }
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

}  // namespace

const Kernels* scalar_kernels() {
  static const Kernels k = {"scalar",   moments, quantize,  encode,     decode,
                            dequantize, project, add_outer, row_product};
  return &k;
}

}  // namespace gct
