// Eight lanes of 32 bits on AVX2, as vector_kernels.h wants them.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/shuffles.h"

namespace gct {
namespace {

struct Simd {
  static constexpr int kWidth = 8;
  static constexpr bool kPairs = false;  // two pieces' states don't fit the 16 registers
  using Float = __m256;
  using Int = __m256i;
  using Mask = __m256i;  // all bits of a chosen lane

  static Float set(float x) { return _mm256_set1_ps(x); }
  static Int set(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static Int load(const uint32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void store(float* p, Float x) { _mm256_storeu_ps(p, x); }
  static void store(uint32_t* p, Int x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
  // kWidth bytes as integers, and integers under 256 as bytes.
  static Int load_bytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_bytes(uint8_t* p, Int x) {
    const __m128i words = low_words(x);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }
  static constexpr int kStoredAtOnce = 4;  // vectors, for a third of the instructions each
  static void store_bytes(uint8_t* p, const Int (&x)[kStoredAtOnce]) {
    // Packing works within halves: eight groups of four bytes are in the order 0 2 4 6 1 3 5 7.
    const Int bytes =
        _mm256_packus_epi16(_mm256_packs_epi32(x[0], x[1]), _mm256_packs_epi32(x[2], x[3]));
    const Int order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    store(reinterpret_cast<uint32_t*>(p), _mm256_permutevar8x32_epi32(bytes, order));
  }

  static Float abs(Float x) {
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
  }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static Int truncate(Float x) { return _mm256_cvttps_epi32(x); }
  static Float to_float(Int x) { return _mm256_cvtepi32_ps(x); }
  // Halves added until one lane is left: the last steps of the reference's order.
  static float sum(Float x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  static Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int subtract(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  static Int both(Int a, Int b) { return _mm256_and_si256(a, b); }
  static Int multiply(Int a, Int b) { return _mm256_mullo_epi32(a, b); }
  // High halves of the products.
  static Int multiply_high(Int a, Int b) {
    const Int even = _mm256_srli_epi64(_mm256_mul_epu32(a, b), 32);
    const Int odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
    return _mm256_blend_epi32(even, odd, 0xaa);
  }
  template <int bits>
  static Int shift_left(Int x) {
    return _mm256_slli_epi32(x, bits);
  }
  template <int bits>
  static Int shift_right(Int x) {
    return _mm256_srli_epi32(x, bits);
  }
  static Int shift_right(Int x, Int bits) { return _mm256_srlv_epi32(x, bits); }

  static Mask negative(Float x) { return negative(_mm256_castps_si256(x)); }
  static Mask negative(Int x) { return _mm256_srai_epi32(x, 31); }
  static Mask equal(Int a, Int b) { return _mm256_cmpeq_epi32(a, b); }
  // Of numbers as unsigned ones.
  static Mask below(Int a, Int b) {
    const Int bias = set(0x80000000u);
    return _mm256_cmpgt_epi32(_mm256_xor_si256(b, bias), _mm256_xor_si256(a, bias));
  }
  static Mask reached(Int a, Int b) { return equal(_mm256_max_epu32(a, b), a); }
  static uint32_t bits(Mask m) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m)));
  }
  static Int select(Mask m, Int a, Int b) { return _mm256_blendv_epi8(b, a, m); }
  static Int add_where(Mask m, Int a, Int b) { return add(a, both(m, b)); }

  static Int gather(const uint32_t* base, Int index) {
    return _mm256_i32gather_epi32(reinterpret_cast<const int*>(base), index, 4);
  }
  static Float gather(const float* base, Int index) { return _mm256_i32gather_ps(base, index, 4); }

  static Mask reached(Float a, Float b) {
    return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GE_OQ));
  }

  // A table of kSize numbers that is looked up by an index below kSize.
  template <int kSize>
  class Table {
   public:
    explicit Table(const uint32_t* p) : base_(p) {}
    Int operator[](Int i) const {
      if (kSize > 16) return gather(base_, i);
      return _mm256_castps_si256(look_up<16>(reinterpret_cast<const float*>(base_), i));
    }

   private:
    const uint32_t* base_;
  };
  // A number by the low bits of an index, among kSize.
  template <int kSize>
  static Float look_up(const float* numbers, Int index) {
    if (kSize > 16) return gather(numbers, both(index, set(kSize - 1u)));
    const Float low = _mm256_permutevar8x32_ps(load(numbers), index);
    if (kSize == 8) return low;
    const Float high = _mm256_permutevar8x32_ps(load(numbers + kWidth), index);
    // By bit 3 of the index, which moves to the sign.
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(shift_left<28>(index)));
  }

  // Chosen lanes without their low 16 bits.
  static Int drop_word(Mask chosen, Int state) {
    return select(chosen, shift_right<16>(state), state);
  }
  // Puts the low 16 bits of the chosen lanes, in lane order, below `end`; returns where they begin.
  // Up to kWidth words below `end` may be overwritten.
  static uint16_t* push(Int state, Mask chosen, uint16_t* end) {
    const uint32_t lanes = bits(chosen);
    const __m128i order =
        _mm_load_si128(reinterpret_cast<const __m128i*>(kShuffles.gather_high[lanes]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(end - kWidth),
                     _mm_shuffle_epi8(low_words(state), order));
    return end - __builtin_popcount(lanes);
  }
  // State and a word for the chosen lanes, in lane order. kWidth words are readable at *words.
  static Int pull(Int state, Mask chosen, const uint8_t** words) {
    const uint32_t lanes = bits(chosen);
    const __m128i order = _mm_load_si128(reinterpret_cast<const __m128i*>(kShuffles.spread[lanes]));
    const __m128i next = _mm_loadu_si128(reinterpret_cast<const __m128i*>(*words));
    *words += 2 * __builtin_popcount(lanes);
    const Int refill = _mm256_cvtepu16_epi32(_mm_shuffle_epi8(next, order));
    return select(chosen, _mm256_or_si256(shift_left<16>(state), refill), state);
  }

 private:
  // The low 16 bits of each lane.
  static __m128i low_words(Int x) {
    const Int low = both(x, set(0xffffu));
    return _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  }
};

}  // namespace
}  // namespace gct
