#include "cpu/fixed.h"

#include <algorithm>
#include <limits>

#include "core/convert.h"
#include "cpu/kernels.h"

namespace gct {
namespace {

int64_t block_bytes(int n, int bits) { return div_up(int64_t{n} * bits, 8); }

}  // namespace

Codebook::Codebook(int shape, int bits) : bits(bits) {
  const int count = 1 << (bits - 1);
  const uint32_t* source = fixed_levels(shape, bits);
  for (int i = 0; i < count; ++i) {
    signed_levels[i] = static_cast<float>(source[i]) * (1.0f / 65536.0f);
    signed_levels[count + i] = -signed_levels[i];
  }
  for (float& threshold : thresholds) threshold = std::numeric_limits<float>::infinity();
  for (int first = 1; first < count; first *= 2) {
    const int stride = count / first;  // between the levels that neighbours on this step divide
    for (int path = 0; path < first; ++path) {
      const float* above = &signed_levels[path * stride + stride / 2];
      thresholds[first + path] = 0.5f * (above[-1] + above[0]);
    }
  }
}

void encode_fixed_run(const Run& run, DType dtype, const RunHeader& header, int bits,
                      const float* means, uint8_t* out) {
  const Codebook book(header.code.shape, bits);
  const int64_t blocks = num_blocks(header.numel);
  uint8_t* codes_out = out + 2 * blocks;
  float scratch[kBlock];
  uint8_t codes[kBlock];
  for (int64_t b = 0; b < blocks; ++b) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, header.numel - b * kBlock));
    const uint16_t scale = scale_class(means[b]) < kMinClass ? 0 : float_to_bfloat16(means[b]);
    store_le<uint16_t>(out + 2 * b, scale);
    const float inverse = scale == 0 ? 0.0f : 1.0f / bfloat16_to_float(scale);
    const float* x = load_floats(run, dtype, b * kBlock, n, scratch);
    kernels().fixed_codes(x, n, inverse, book, codes);
    kernels().pack(codes, n, bits, codes_out);
    codes_out += block_bytes(n, bits);
  }
}

void decode_fixed_run(const RunHeader& header, int bits, const uint8_t* data, bool accumulate,
                      float factor, float* out) {
  const Codebook book(header.code.shape, bits);
  const int64_t blocks = num_blocks(header.numel);
  const uint8_t* codes = data + 2 * blocks;
  const uint8_t* end = data + fixed_run_bytes(header.numel, bits);
  for (int64_t b = 0; b < blocks; ++b) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, header.numel - b * kBlock));
    const float scale = factor * bfloat16_to_float(load_le<uint16_t>(data + 2 * b));
    kernels().fixed_values(codes, end, n, scale, book, accumulate, out);
    codes += block_bytes(n, bits);
    out += n;
  }
}

}  // namespace gct
