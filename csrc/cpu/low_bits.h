// The low bits of blocks far above the table grid, which go past the entropy coder: `shift` of each
// element, one after the other.
#pragma once

#include "core/bit_io.h"
#include "cpu/kernels.h"

namespace gct {

constexpr int kPackedShift = 8;  // up to which kernels take them; more are for over 13 bits a value

inline void put_low(const uint32_t* low, int n, int shift, BitWriter* extra) {
  if (shift > kPackedShift) {
    for (int i = 0; i < n; ++i) extra->put(low[i], shift);
    return;
  }
  uint8_t codes[kBlock], packed[kBlock];
  for (int i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>(low[i]);
  kernels().pack(codes, n, shift, packed);
  extra->put_all(packed, n * shift);
}

inline void get_low(BitReader* extra, int n, int shift, uint32_t* low) {
  if (shift > kPackedShift) {
    for (int i = 0; i < n; ++i) low[i] = extra->get(shift);
    return;
  }
  uint8_t codes[kBlock], packed[kBlock];
  extra->get_all(n * shift, packed);
  kernels().unpack(packed, n, shift, codes);
  for (int i = 0; i < n; ++i) low[i] = codes[i];
}

}  // namespace gct
