// Byte shuffles that move the words of chosen lanes together and apart, by the chosen lanes' bits:
// for instruction sets that have no instruction for it.
#pragma once

#include <cstdint>

namespace gct {
namespace {

constexpr uint8_t kNoByte = 0x80;  // such an index gives a zero byte

struct Shuffles {
  alignas(16) uint8_t gather_high[256][16];  // chosen words to the upper end, in order
  alignas(16) uint8_t spread[256][16];       // the first words to the chosen lanes

  constexpr Shuffles() : gather_high(), spread() {
    for (int lanes = 0; lanes < 256; ++lanes) {
      int count = 0;
      for (int i = 0; i < 8; ++i) count += lanes >> i & 1;
      int next = 0;
      for (int i = 0; i < 8; ++i) {
        gather_high[lanes][2 * i] = gather_high[lanes][2 * i + 1] = kNoByte;
        spread[lanes][2 * i] = spread[lanes][2 * i + 1] = kNoByte;
      }
      for (int i = 0; i < 8; ++i) {
        if ((lanes >> i & 1) == 0) continue;
        for (int byte = 0; byte < 2; ++byte) {
          gather_high[lanes][2 * (8 - count + next) + byte] = static_cast<uint8_t>(2 * i + byte);
          spread[lanes][2 * i + byte] = static_cast<uint8_t>(2 * next + byte);
        }
        ++next;
      }
    }
  }
};

constexpr Shuffles kShuffles;

}  // namespace
}  // namespace gct
