// Sixteen lanes of 32 bits on AVX-512 (F, BW, VL, DQ, VBMI2), as vector_kernels.h wants them.
#pragma once

// GCC 12's own intrinsics start from a deliberately uninitialized vector and warn about it when
// inlined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

#include "core/rans.h"
#include "cpu/bytes_x86.h"
#include "cpu/code_places.h"
#include "cpu/levels_by_symbol.h"

namespace gct {
namespace {

// Numbers of two vectors' even words.
struct EvenWords {
  alignas(64) uint32_t place[16];
  constexpr EvenWords() : place() {
    for (uint32_t i = 0; i < 16; ++i) place[i] = 4 * i | (4 * i + 2) << 16;
  }
};
constexpr EvenWords kEvenWords;

struct Simd {
  static constexpr int kWidth = 16, kVectors = 2;
  static constexpr bool kPairs = true;  // two pieces at once hide the latency of table look-ups
  static constexpr bool kPackedEntries = false;  // a look-up is an instruction
  static constexpr int kLeastTable = 16;
  static constexpr bool kShortRows = false;
  static constexpr bool kPushesRows = true;     // one instruction packs the words of a row
  static constexpr bool kSignedLookUps = true;  // among 32 numbers, a table for each sign
  using Float = __m512;
  using Int = __m512i;
  using Mask = __mmask16;

  static Float set(float x) { return _mm512_set1_ps(x); }
  static Int set(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static Int load(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static void store(float* p, Float x) { _mm512_storeu_ps(p, x); }
  static void store(uint32_t* p, Int x) { _mm512_storeu_si512(p, x); }
  static Int load_words(const uint16_t* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store_words(uint16_t* p, Int x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x));
  }
  // kWidth bytes as integers, and integers under 256 as bytes.
  static Int load_bytes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_bytes(uint8_t* p, Int x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
  }
  // Of a row of packed codes those of vector v. kCodeBytes bytes are loaded for as many codes.
  static constexpr int kCodeBytes = 16;
  template <int kBits>
  static Int load_codes(const uint8_t* row, int v) {
    const void* p = row + 2 * kBits * v;
    const Int bytes = _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    const CodePlaces<kBits>& places = kCodePlaces<kBits>;
    const Int both_bytes = _mm512_shuffle_epi8(bytes, _mm512_load_si512(places.bytes));
    return both(shift_right(both_bytes, load(places.shift)), set(places.kMask));
  }
  // Of a row: the low bytes of integers under 128, and all bits of a byte where a float is
  // negative.
  static Bytes::Row to_bytes(const Int (&x)[kVectors]) {
    return _mm256_set_m128i(_mm512_cvtepi32_epi8(x[1]), _mm512_cvtepi32_epi8(x[0]));
  }
  static Bytes::Row negative_bytes(const float* row) {
    return _mm256_movm_epi8(row_bits({negative(load(row)), negative(load(row + kWidth))}));
  }

  static Float abs(Float x) { return _mm512_abs_ps(x); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  // The one nearer to zero, without its sign.
  static Float min_magnitude(Float x, Float limit) { return _mm512_range_ps(x, limit, 0b1010); }
  static Int truncate(Float x) { return _mm512_cvttps_epi32(x); }
  static Float to_float(Int x) { return _mm512_cvtepi32_ps(x); }
  static Float as_float(Int bits) { return _mm512_castsi512_ps(bits); }
  static Int as_int(Float x) { return _mm512_castps_si512(x); }
  // Halves added until one lane is left: the last steps of the reference's order.
  static float sum(Float x) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int subtract(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  static Int both(Int a, Int b) { return _mm512_and_si512(a, b); }
  static Int either(Int a, Int b) { return _mm512_or_si512(a, b); }
  static bool no_bits(Int x, uint32_t bits) { return _mm512_test_epi32_mask(x, set(bits)) == 0; }
  static Int multiply(Int a, Int b) { return _mm512_mullo_epi32(a, b); }
  // High halves of the products.
  static Int multiply_high(Int a, Int b) {
    const Int even = _mm512_mul_epu32(a, b);
    const Int odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
    return _mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_CDAB);
  }
  // The state after a symbol; see rans_push(). As quotient * kProbTotal + remainder, which fits in
  // 16 bits, whose products are quicker.
  static Int advance(Int x, Int quotient, Int freq, Int bias) {
    const Int rest = _mm512_maskz_sub_epi16(0x55555555, x, _mm512_mullo_epi16(quotient, freq));
    return add(add(shift_left<kProbBits>(quotient), bias), rest);
  }
  template <int bits>
  static Int shift_left(Int x) {
    return _mm512_slli_epi32(x, bits);
  }
  template <int bits>
  static Int shift_right(Int x) {
    return _mm512_srli_epi32(x, bits);
  }
  static Int shift_right(Int x, Int bits) { return _mm512_srlv_epi32(x, bits); }

  static Mask negative(Float x) { return _mm512_movepi32_mask(_mm512_castps_si512(x)); }
  static Mask negative(Int x) { return _mm512_movepi32_mask(x); }
  // Where x is negative and k > 0; k isn't negative.
  static Mask negative_nonzero(Float x, Int k) {
    return _mm512_mask_test_epi32_mask(negative(x), k, k);
  }
  static Mask without(Mask a, Mask b) { return static_cast<Mask>(a & ~b); }
  static Mask equal(Int a, Int b) { return _mm512_cmpeq_epi32_mask(a, b); }
  static Mask less(Int a, Int b) { return _mm512_cmplt_epi32_mask(a, b); }  // signed
  // Of a row's lanes.
  static uint32_t row_bits(const Mask (&m)[kVectors]) {
    return m[0] | static_cast<uint32_t>(m[1]) << kWidth;
  }
  static uint32_t row_signs(const Int (&x)[kVectors]) {
    return row_bits({negative(x[0]), negative(x[1])});
  }
  static Int select(Mask m, Int a, Int b) { return _mm512_mask_mov_epi32(b, m, a); }
  static Float select(Mask m, Float a, Float b) { return _mm512_mask_mov_ps(b, m, a); }
  static Float negate_where_positive(Float x, Float y) {
    return _mm512_xor_ps(y, _mm512_andnot_ps(x, set(-0.0f)));
  }
  static Int add_where(Mask m, Int a, Int b) { return _mm512_mask_add_epi32(a, m, a, b); }

  static Int gather(const uint32_t* base, Int index) {
    return _mm512_i32gather_epi32(index, base, 4);
  }
  static Float gather(const float* base, Int index) { return _mm512_i32gather_ps(index, base, 4); }

  static Mask reached(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }

  // A table of kSize numbers that is looked up by the low bits of an index.
  template <int kSize>
  class Table {
   public:
    explicit Table(const uint32_t* p) {
      for (int i = 0; i < kVectors; ++i) values_[i] = load(p + i * kWidth);
    }
    Int operator[](Int i) const {
      if (kVectors == 1) return _mm512_permutexvar_epi32(i, values_[0]);
      const Int low = _mm512_permutex2var_epi32(values_[0], i, values_[1 % kVectors]);
      if (kVectors == 2) return low;
      const Int high = _mm512_permutex2var_epi32(values_[2 % kVectors], i, values_[3 % kVectors]);
      return _mm512_mask_mov_epi32(low, _mm512_test_epi32_mask(i, set(2u * kWidth)), high);
    }

   private:
    static constexpr int kVectors = kSize / kWidth;
    static_assert(kVectors == 1 || kVectors == 2 || kVectors == 4, "look-ups are for these sizes");
    Int values_[kVectors];
  };
  // A number by the low bits of an index, among kSize.
  template <int kSize>
  static Float look_up(const float* numbers, Int index) {
    if (kSize > 64) return gather(numbers, both(index, set(kSize - 1u)));
    if (kSize <= 16) return _mm512_permutexvar_ps(index, load(numbers));
    const Float low = _mm512_permutex2var_ps(load(numbers), index, load(numbers + kWidth));
    if (kSize == 32) return low;
    const Float high =
        _mm512_permutex2var_ps(load(numbers + 2 * kWidth), index, load(numbers + 3 * kWidth));
    return _mm512_mask_mov_ps(low, _mm512_test_epi32_mask(index, set(32u)), high);
  }

  template <int kSize>
  using Levels = LevelsBySymbol<Simd, kSize>;

  // Of lanes that reach `limit` (both under 2^31): takes the low 16 bits away and puts them, in
  // lane order, below `end`; returns where they begin. Up to kWidth words below `end` may be
  // overwritten.
  static uint16_t* push(Int* state, Int limit, uint16_t* end) {
    const Mask full = _mm512_cmpge_epi32_mask(*state, limit);
    const int count = __builtin_popcount(full);
    const __m256i low = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, *state));
    end -= count;
    _mm256_mask_storeu_epi16(end, static_cast<__mmask16>((1u << count) - 1), low);
    *state = _mm512_mask_srli_epi32(*state, full, *state, 16);
    return end;
  }
  // The same of a row's lanes.
  static uint16_t* push_row(Int* states, const Int* limits, uint16_t* end) {
    const Mask low = _mm512_cmpge_epi32_mask(states[0], limits[0]);
    const Mask high = _mm512_cmpge_epi32_mask(states[1], limits[1]);
    const __mmask32 full = _mm512_kunpackw(high, low);
    const Int even = load(kEvenWords.place);
    const Int words = _mm512_permutex2var_epi16(states[0], even, states[1]);
    const int count = __builtin_popcount(full);
    end -= count;
    _mm512_mask_storeu_epi16(end, _bzhi_u32(~0u, static_cast<uint32_t>(count)),
                             _mm512_maskz_compress_epi16(full, words));
    states[0] = _mm512_mask_srli_epi32(states[0], low, states[0], 16);
    states[1] = _mm512_mask_srli_epi32(states[1], high, states[1], 16);
    return end;
  }
  // State and a word for the chosen lanes, in lane order. kWidth words are readable at *words.
  static Int pull(Int state, Mask chosen, const uint8_t** words) {
    const Int next =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(*words)));
    *words += 2 * __builtin_popcount(chosen);
    return _mm512_mask_or_epi32(state, chosen, _mm512_slli_epi32(state, 16),
                                _mm512_maskz_expand_epi32(chosen, next));
  }
};

}  // namespace
}  // namespace gct
