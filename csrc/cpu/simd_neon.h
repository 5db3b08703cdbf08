// Four lanes of 32 bits on NEON (part of every aarch64), as vector_kernels.h wants them.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "core/rans.h"
#include "cpu/bytes_neon.h"
#include "cpu/code_places.h"
#include "cpu/levels_by_symbol.h"
#include "cpu/shuffles.h"

namespace gct {
namespace {

struct Simd {
  static constexpr int kWidth = 4, kVectors = 8;
  static constexpr bool kPairs =
      false;  // a piece's eight states and their temporaries fill the registers
  static constexpr bool kPackedEntries = false;
  static constexpr int kLeastTable = 16;
  static constexpr bool kShortRows = false;
  static constexpr bool kPushesRows = false;     // no instruction packs so many words
  static constexpr bool kSignedLookUps = false;  // a table for both signs takes longer
  using Float = float32x4_t;
  // Not uint32x4_t itself: masks are of that type too.
  using Int = uint32x4_t;
  struct Mask {
    uint32x4_t lanes;  // all bits of a chosen one
  };

  static Float set(float x) { return vdupq_n_f32(x); }
  static Int set(uint32_t x) { return vdupq_n_u32(x); }
  static Float load(const float* p) { return vld1q_f32(p); }
  static Int load(const uint32_t* p) { return vld1q_u32(p); }
  static void store(float* p, Float x) { vst1q_f32(p, x); }
  static void store(uint32_t* p, Int x) { vst1q_u32(p, x); }
  static Int load_words(const uint16_t* p) { return vmovl_u16(vld1_u16(p)); }
  static void store_words(uint16_t* p, Int x) { vst1_u16(p, vmovn_u32(x)); }
  // kWidth bytes as integers, and integers under 256 as bytes.
  static Int load_bytes(const uint8_t* p) {
    uint32_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(bytes))));
  }
  static void store_bytes(uint8_t* p, Int x) {
    const uint16x4_t words = vmovn_u32(x);
    const uint8x8_t bytes = vmovn_u16(vcombine_u16(words, words));
    vst1_lane_u32(reinterpret_cast<uint32_t*>(p), vreinterpret_u32_u8(bytes), 0);
  }
  // Of a row of packed codes those of vector v. kCodeBytes bytes are loaded for as many codes.
  static constexpr int kCodeBytes = 16;
  template <int kBits>
  static Int load_codes(const uint8_t* row, int v) {
    const uint8x16_t bytes = vld1q_u8(row + v / 4 * 2 * kBits);
    const CodePlaces<kBits>& places = kCodePlaces<kBits>;
    const uint8x16_t order = vld1q_u8(places.bytes[v % 4 * kWidth]);
    const Int both_bytes = vreinterpretq_u32_u8(vqtbl1q_u8(bytes, order));
    return both(shift_right(both_bytes, load(places.shift + v % 4 * kWidth)), set(places.kMask));
  }
  // Of a row: the low bytes of integers under 128, and all bits of a byte where a float is
  // negative.
  static Bytes::Row to_bytes(const Int (&x)[kVectors]) {
    Bytes::Row result;
    for (int h = 0; h < 2; ++h) {
      const Int* half = x + 4 * h;
      result.half[h] = vcombine_u8(vmovn_u16(vcombine_u16(vmovn_u32(half[0]), vmovn_u32(half[1]))),
                                   vmovn_u16(vcombine_u16(vmovn_u32(half[2]), vmovn_u32(half[3]))));
    }
    return result;
  }
  static Bytes::Row negative_bytes(const float* row) {
    Int x[kVectors];
    for (int v = 0; v < kVectors; ++v) x[v] = negative(load(row + v * kWidth)).lanes;
    return to_bytes(x);
  }

  static Float abs(Float x) { return vabsq_f32(x); }
  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float multiply(Float a, Float b) { return vmulq_f32(a, b); }
  static Float min(Float a, Float b) { return vminq_f32(a, b); }
  static Float min_magnitude(Float x, Float limit) { return min(abs(x), limit); }
  static Int truncate(Float x) { return vreinterpretq_u32_s32(vcvtq_s32_f32(x)); }
  static Float to_float(Int x) { return vcvtq_f32_s32(vreinterpretq_s32_u32(x)); }
  static Float as_float(Int bits) { return vreinterpretq_f32_u32(bits); }
  static Int as_int(Float x) { return vreinterpretq_u32_f32(x); }
  // Halves added until one lane is left: the last steps of the reference's order.
  static float sum(Float x) {
    const float32x2_t two = vadd_f32(vget_low_f32(x), vget_high_f32(x));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }

  static Int add(Int a, Int b) { return vaddq_u32(a, b); }
  static Int subtract(Int a, Int b) { return vsubq_u32(a, b); }
  static Int both(Int a, Int b) { return vandq_u32(a, b); }
  static Int either(Int a, Int b) { return vorrq_u32(a, b); }
  static bool no_bits(Int x, uint32_t bits) { return vmaxvq_u32(vandq_u32(x, set(bits))) == 0; }
  static Int multiply(Int a, Int b) { return vmulq_u32(a, b); }
  // High halves of the products.
  static Int multiply_high(Int a, Int b) {
    const uint32x4_t low = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a), vget_low_u32(b)));
    const uint32x4_t high = vreinterpretq_u32_u64(vmull_u32(vget_high_u32(a), vget_high_u32(b)));
    return vuzp2q_u32(low, high);
  }
  // The state after a symbol; see rans_push().
  static Int advance(Int x, Int quotient, Int freq, Int bias) {
    return add(add(x, bias), multiply(quotient, subtract(set(kProbTotal), freq)));
  }
  template <int bits>
  static Int shift_left(Int x) {
    return vshlq_n_u32(x, bits);
  }
  template <int bits>
  static Int shift_right(Int x) {
    return vshrq_n_u32(x, bits);
  }
  static Int shift_right(Int x, Int bits) {
    return vshlq_u32(x, vnegq_s32(vreinterpretq_s32_u32(bits)));
  }

  static Mask negative(Float x) { return negative(vreinterpretq_u32_f32(x)); }
  static Mask negative(Int x) { return {vcltzq_s32(vreinterpretq_s32_u32(x))}; }
  // Where x is negative and k > 0; k isn't negative.
  static Mask negative_nonzero(Float x, Int k) {
    return {vandq_u32(negative(x).lanes, vtstq_u32(k, k))};
  }
  static Mask without(Mask a, Mask b) { return {vbicq_u32(a.lanes, b.lanes)}; }
  static Mask equal(Int a, Int b) { return {vceqq_u32(a, b)}; }
  static Mask less(Int a, Int b) {  // as signed ones
    return {vcltq_s32(vreinterpretq_s32_u32(a), vreinterpretq_s32_u32(b))};
  }
  static uint32_t bits(Mask m) {
    const uint32_t weights[] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(m.lanes, vld1q_u32(weights)));
  }
  // Of a row's lanes.
  static uint32_t row_bits(const Mask (&m)[kVectors]) {
    uint32_t result = 0;
    for (int v = 0; v < kVectors; ++v) result |= bits(m[v]) << (v * kWidth);
    return result;
  }
  static uint32_t row_signs(const Int (&x)[kVectors]) {
    Mask m[kVectors];
    for (int v = 0; v < kVectors; ++v) m[v] = negative(x[v]);
    return row_bits(m);
  }
  static Int select(Mask m, Int a, Int b) { return vbslq_u32(m.lanes, a, b); }
  static Float select(Mask m, Float a, Float b) { return vbslq_f32(m.lanes, a, b); }
  static Float negate_where_positive(Float x, Float y) {
    const uint32x4_t sign = vbicq_u32(vdupq_n_u32(0x80000000u), vreinterpretq_u32_f32(x));
    return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(y), sign));
  }
  static Int add_where(Mask m, Int a, Int b) { return vaddq_u32(a, vandq_u32(m.lanes, b)); }

  static Int gather(const uint32_t* base, Int index) {
    Int result = vdupq_n_u32(base[vgetq_lane_u32(index, 0)]);
    result = vld1q_lane_u32(base + vgetq_lane_u32(index, 1), result, 1);
    result = vld1q_lane_u32(base + vgetq_lane_u32(index, 2), result, 2);
    return vld1q_lane_u32(base + vgetq_lane_u32(index, 3), result, 3);
  }
  static Float gather(const float* base, Int index) {
    Float result = vdupq_n_f32(base[vgetq_lane_u32(index, 0)]);
    result = vld1q_lane_f32(base + vgetq_lane_u32(index, 1), result, 1);
    result = vld1q_lane_f32(base + vgetq_lane_u32(index, 2), result, 2);
    return vld1q_lane_f32(base + vgetq_lane_u32(index, 3), result, 3);
  }

  static Mask reached(Float a, Float b) { return {vcgeq_f32(a, b)}; }

  // A table of kSize numbers that is looked up by an index below kSize.
  template <int kSize>
  class Table {
   public:
    explicit Table(const uint32_t* p) : base_(p) {}
    Int operator[](Int i) const { return gather(base_, i); }

   private:
    const uint32_t* base_;
  };
  // A number by the low bits of an index, among kSize.
  template <int kSize>
  static Float look_up(const float* numbers, Int index) {
    return gather(numbers, both(index, set(kSize - 1u)));
  }

  template <int kSize>
  using Levels = LevelsBySymbol<Simd, kSize>;

  // Of lanes that reach `limit` (both under 2^31): takes the low 16 bits away and puts them, in
  // lane order, below `end`; returns where they begin. Up to kWidth words below `end` may be
  // overwritten.
  static uint16_t* push(Int* state, Int limit, uint16_t* end) {
    const Mask full = {vcgeq_u32(*state, limit)};
    const uint32_t lanes = bits(full);
    // Rows for eight lanes: the upper four are in the upper half.
    const uint8x8_t order = vsub_u8(vld1_u8(kShuffles.gather_high[lanes << 4] + 8), vdup_n_u8(8));
    const uint8x8_t words = vreinterpret_u8_u16(vmovn_u32(*state));
    vst1_u8(reinterpret_cast<uint8_t*>(end - kWidth), vtbl1_u8(words, order));
    *state = select(full, shift_right<16>(*state), *state);
    return end - __builtin_popcount(lanes);
  }
  // State and a word for the chosen lanes, in lane order. kWidth words are readable at *words.
  static Int pull(Int state, Mask chosen, const uint8_t** words) {
    const uint32_t lanes = bits(chosen);
    const uint8x8_t next = vtbl1_u8(vld1_u8(*words), vld1_u8(kShuffles.spread[lanes]));
    *words += 2 * __builtin_popcount(lanes);
    const Int refill = vmovl_u16(vreinterpret_u16_u8(next));
    return select(chosen, vorrq_u32(shift_left<16>(state), refill), state);
  }
};

}  // namespace
}  // namespace gct
