#include "cpu/fixed.h"

#include <algorithm>

#include "core/convert.h"

namespace gct {
namespace {

// Levels in units of mean |x| and the midpoints between them.
struct Codebook {
  int count;
  float levels[128], thresholds[128];

  Codebook(int shape, int bits) : count(1 << (bits - 1)) {
    const uint32_t* source = fixed_levels(shape, bits);
    for (int i = 0; i < count; ++i) levels[i] = static_cast<float>(source[i]) * (1.0f / 65536.0f);
    for (int i = 0; i + 1 < count; ++i) thresholds[i] = 0.5f * (levels[i] + levels[i + 1]);
  }

  // Index of the nearest level; a value on a threshold takes the upper one.
  uint32_t index(float magnitude) const {
    return static_cast<uint32_t>(std::upper_bound(thresholds, thresholds + count - 1, magnitude) -
                                 thresholds);
  }
};

// Codes of a block, least significant bit first.
void pack_block(const uint32_t* codes, int n, int bits, uint8_t* out) {
  uint32_t pending = 0;
  int filled = 0;
  for (int i = 0; i < n; ++i) {
    pending |= codes[i] << filled;
    for (filled += bits; filled >= 8; filled -= 8, pending >>= 8)
      *out++ = static_cast<uint8_t>(pending);
  }
  if (filled > 0) *out = static_cast<uint8_t>(pending);
}

void unpack_block(const uint8_t* data, int n, int bits, uint32_t* codes) {
  uint32_t pending = 0;
  int filled = 0;
  for (int i = 0; i < n; ++i) {
    if (filled < bits) {
      pending |= static_cast<uint32_t>(*data++) << filled;
      filled += 8;
    }
    codes[i] = pending & ((1u << bits) - 1);
    pending >>= bits;
    filled -= bits;
  }
}

int64_t block_bytes(int n, int bits) { return div_up(int64_t{n} * bits, 8); }

}  // namespace

void encode_fixed_run(const Run& run, DType dtype, const RunHeader& header, int bits,
                      const float* means, uint8_t* out) {
  const Codebook book(header.code.shape, bits);
  const int64_t blocks = num_blocks(header.numel);
  uint8_t* codes_out = out + 2 * blocks;
  float scratch[kBlock];
  uint32_t codes[kBlock];
  for (int64_t b = 0; b < blocks; ++b) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, header.numel - b * kBlock));
    const uint16_t scale = scale_class(means[b]) < kMinClass ? 0 : float_to_bfloat16(means[b]);
    store_le<uint16_t>(out + 2 * b, scale);
    const float inverse = scale == 0 ? 0.0f : 1.0f / bfloat16_to_float(scale);
    const float* x = load_floats(run, dtype, b * kBlock, n, scratch);
    for (int i = 0; i < n; ++i) {
      const uint32_t sign = float_bits(x[i]) >> 31;
      const float magnitude = bits_float(float_bits(x[i]) & 0x7fffffffu) * inverse;
      codes[i] = (sign << (bits - 1)) | book.index(magnitude);
    }
    pack_block(codes, n, bits, codes_out);
    codes_out += block_bytes(n, bits);
  }
}

void decode_fixed_run(const RunHeader& header, int bits, const uint8_t* data, bool accumulate,
                      float* out) {
  const Codebook book(header.code.shape, bits);
  const int64_t blocks = num_blocks(header.numel);
  const uint8_t* codes_in = data + 2 * blocks;
  uint32_t codes[kBlock];
  for (int64_t b = 0; b < blocks; ++b) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, header.numel - b * kBlock));
    const float scale = bfloat16_to_float(load_le<uint16_t>(data + 2 * b));
    unpack_block(codes_in, n, bits, codes);
    codes_in += block_bytes(n, bits);
    for (int i = 0; i < n; ++i) {
      const float magnitude = scale * book.levels[codes[i] & ((1u << (bits - 1)) - 1)];
      const float value = (codes[i] >> (bits - 1)) != 0 ? -magnitude : magnitude;
      out[i] = accumulate ? out[i] + value : value;
    }
    out += n;
  }
}

}  // namespace gct
