// Rows of kLanes bytes on NEON, as bytes_x86.h has them.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "cpu/code_places.h"
#include "cpu/codes.h"

namespace gct {
namespace {

struct Bytes {
  struct Row {
    uint8x16_t half[2];
  };

  static Row set(int x) {
    const uint8x16_t half = vdupq_n_u8(static_cast<uint8_t>(x));
    return {{half, half}};
  }
  static Row load(const uint8_t* p) { return {{vld1q_u8(p), vld1q_u8(p + 16)}}; }
  static void store(uint8_t* p, Row x) {
    vst1q_u8(p, x.half[0]);
    vst1q_u8(p + 16, x.half[1]);
  }

  static Row add(Row a, Row b) {
    return {{vaddq_u8(a.half[0], b.half[0]), vaddq_u8(a.half[1], b.half[1])}};
  }
  // a - b, or 0 where b is larger.
  static Row subtract_to_zero(Row a, Row b) {
    return {{vqsubq_u8(a.half[0], b.half[0]), vqsubq_u8(a.half[1], b.half[1])}};
  }
  static Row half_up(Row x) {  // (x + 1) / 2
    const uint8x16_t zero = vdupq_n_u8(0);
    return {{vrhaddq_u8(x.half[0], zero), vrhaddq_u8(x.half[1], zero)}};
  }
  static Row min(Row a, Row b) {
    return {{vminq_u8(a.half[0], b.half[0]), vminq_u8(a.half[1], b.half[1])}};
  }
  // All bits of a byte where they are equal.
  static Row equal(Row a, Row b) {
    return {{vceqq_u8(a.half[0], b.half[0]), vceqq_u8(a.half[1], b.half[1])}};
  }
  static Row both(Row a, Row b) {
    return {{vandq_u8(a.half[0], b.half[0]), vandq_u8(a.half[1], b.half[1])}};
  }
  static Row without(Row x, Row mask) {
    return {{vbicq_u8(x.half[0], mask.half[0]), vbicq_u8(x.half[1], mask.half[1])}};
  }
  static Row select(Row mask, Row a, Row b) {
    return {{vbslq_u8(mask.half[0], a.half[0], b.half[0]),
             vbslq_u8(mask.half[1], a.half[1], b.half[1])}};
  }
  static uint32_t bits(Row mask) { return bits(mask.half[0]) | bits(mask.half[1]) << 16; }

  // Codes of kBits bits, least significant first, of each half of the row: 16 bytes at p and 16 at
  // p + 2 * kBits, behind the codes zeros.
  template <int kBits>
  static void store_packed(uint8_t* p, Row codes) {
    for (int h = 0; h < 2; ++h) {
      uint64x2_t words = vreinterpretq_u64_u8(codes.half[h]);
      words = join<8 - kBits>(words, kBytes);
      words = join<16 - 2 * kBits>(words, kWords);
      words = join<32 - 4 * kBits>(words, kHalf);
      const uint8x16_t used = vld1q_u8(kUsedBytes<kBits>.place);
      vst1q_u8(p + h * 2 * kBits, vqtbl1q_u8(vreinterpretq_u8_u64(words), used));
    }
  }

  // A table of kSize bytes that is looked up by an index below kSize.
  template <int kSize>
  class Table {
   public:
    explicit Table(const uint8_t* p) {
      for (int i = 0; i < kSize / 16; ++i) parts_[i] = vld1q_u8(p + 16 * i);
    }
    Row operator[](Row i) const { return {{look_up(i.half[0]), look_up(i.half[1])}}; }

   private:
    uint8x16_t look_up(uint8x16_t i) const {
      uint8x16_t result = vqtbl1q_u8(parts_[0], i);  // 0 beyond a part's 16
      for (int part = 1; part < kSize / 16; ++part)
        result = vqtbx1q_u8(result, parts_[part],
                            vsubq_u8(i, vdupq_n_u8(static_cast<uint8_t>(16 * part))));
      return result;
    }

    uint8x16_t parts_[kSize / 16];
  };

  // As join() of words.
  template <int kUnused>
  static uint64x2_t join(uint64x2_t x, uint64_t low) {
    const uint64x2_t mask = vdupq_n_u64(low);
    const uint64x2_t high = vbicq_u64(x, mask);
    if constexpr (kUnused == 0) return vorrq_u64(vandq_u64(x, mask), high);
    return vorrq_u64(vandq_u64(x, mask), vshlq_u64(high, vdupq_n_s64(-kUnused)));
  }

  class Sum {
   public:
    void add(Row x) {
      for (const uint8x16_t half : x.half) sums_ = vpadalq_u16(sums_, vpaddlq_u8(half));
    }
    uint32_t total() const { return vaddvq_u32(sums_); }

   private:
    uint32x4_t sums_ = vdupq_n_u32(0);
  };

 private:
  static uint32_t bits(uint8x16_t mask) {
    constexpr uint8_t kWeights[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t weighed = vandq_u8(mask, vld1q_u8(kWeights));
    return static_cast<uint32_t>(vaddv_u8(vget_low_u8(weighed))) |
           static_cast<uint32_t>(vaddv_u8(vget_high_u8(weighed))) << 8;
  }
};

}  // namespace
}  // namespace gct
