// Eight lanes of 32 bits on AVX2, as vector_kernels.h wants them.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/rans.h"
#include "cpu/bytes_x86.h"
#include "cpu/code_places.h"
#include "cpu/shuffles.h"

namespace gct {
namespace {

struct Simd {
  static constexpr int kWidth = 8, kVectors = 4;
  static constexpr bool kPairs = true;  // two pieces at once hide the latency of table look-ups
  static constexpr bool kPackedEntries = true;  // two look-ups and some shifts instead of four
  static constexpr int kLeastTable = 8;
  static constexpr bool kShortRows =
      true;  // a look-up in more than kLeastTable takes twice as long
  static constexpr bool kPushesRows = false;     // no instruction packs so many words
  static constexpr bool kSignedLookUps = false;  // a table for both signs takes longer
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
  static Int load_words(const uint16_t* p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_words(uint16_t* p, Int x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), low_words(x));
  }
  // kWidth bytes as integers, and integers under 256 as bytes.
  static Int load_bytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_bytes(uint8_t* p, Int x) {
    const __m128i words = low_words(x);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }
  // Of a row of packed codes those of vector v. kCodeBytes bytes are loaded for as many codes.
  static constexpr int kCodeBytes = 8;
  template <int kBits>
  static Int load_codes(const uint8_t* row, int v) {
    const void* p = row + kBits * v;
    const Int bytes = _mm256_broadcastq_epi64(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
    const CodePlaces<kBits>& places = kCodePlaces<kBits>;
    const void* order = places.bytes;
    const Int both_bytes =
        _mm256_shuffle_epi8(bytes, _mm256_load_si256(static_cast<const __m256i*>(order)));
    return both(shift_right(both_bytes, load(places.shift)), set(places.kMask));
  }
  // Of a row: the low bytes of integers under 128, and all bits of a byte where a float is
  // negative. Packing saturates, so that signs stay.
  static Bytes::Row to_bytes(const Int (&x)[kVectors]) {
    return in_lane_order(
        _mm256_packs_epi16(_mm256_packs_epi32(x[0], x[1]), _mm256_packs_epi32(x[2], x[3])));
  }
  static Bytes::Row negative_bytes(const float* row) {
    Int x[kVectors];
    for (int v = 0; v < kVectors; ++v) x[v] = _mm256_castps_si256(load(row + v * kWidth));
    return _mm256_cmpgt_epi8(_mm256_setzero_si256(), to_bytes(x));
  }

  static Float abs(Float x) {
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
  }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static Float min_magnitude(Float x, Float limit) { return min(abs(x), limit); }
  static Int truncate(Float x) { return _mm256_cvttps_epi32(x); }
  static Float to_float(Int x) { return _mm256_cvtepi32_ps(x); }
  static Float as_float(Int bits) { return _mm256_castsi256_ps(bits); }
  static Int as_int(Float x) { return _mm256_castps_si256(x); }
  // Halves added until one lane is left: the last steps of the reference's order.
  static float sum(Float x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  static Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int subtract(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  static Int both(Int a, Int b) { return _mm256_and_si256(a, b); }
  static Int either(Int a, Int b) { return _mm256_or_si256(a, b); }
  static bool no_bits(Int x, uint32_t bits) { return _mm256_testz_si256(x, set(bits)) != 0; }
  static Int multiply(Int a, Int b) { return _mm256_mullo_epi32(a, b); }
  // High halves of the products.
  static Int multiply_high(Int a, Int b) {
    const Int even = _mm256_srli_epi64(_mm256_mul_epu32(a, b), 32);
    const Int odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
    return _mm256_blend_epi32(even, odd, 0xaa);
  }
  // The state after a symbol; see rans_push().
  static Int advance(Int x, Int quotient, Int freq, Int bias) {
    return add(add(x, bias), multiply(quotient, subtract(set(kProbTotal), freq)));
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
  // Where x is negative and k > 0; k isn't negative.
  static Mask negative_nonzero(Float x, Int k) {
    return negative(_mm256_sign_epi32(k, _mm256_castps_si256(x)));
  }
  static Mask without(Mask a, Mask b) { return _mm256_andnot_si256(b, a); }
  static Mask equal(Int a, Int b) { return _mm256_cmpeq_epi32(a, b); }
  static Mask less(Int a, Int b) { return _mm256_cmpgt_epi32(b, a); }  // as signed ones
  static uint32_t bits(Mask m) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m)));
  }
  // Of a row's lanes.
  static uint32_t row_bits(const Mask (&m)[kVectors]) { return row_signs(m); }
  static uint32_t row_signs(const Int (&x)[kVectors]) { return Bytes::bits(to_bytes(x)); }
  static Int select(Mask m, Int a, Int b) { return _mm256_blendv_epi8(b, a, m); }
  static Float select(Mask m, Float a, Float b) {
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(m));
  }
  static Float negate_where_positive(Float x, Float y) {
    return _mm256_xor_ps(y, _mm256_andnot_ps(x, set(-0.0f)));
  }
  static Int add_where(Mask m, Int a, Int b) { return add(a, both(m, b)); }

  // By single loads: on AMD's Zen 3 the gather instruction takes 1.6 times as long
  // (docs/decisions.md), and Intel's has become slow where it used to leak (CVE-2022-40982).
  static Int gather(const uint32_t* base, Int index) {
    const __m128i low = gather_four(base, _mm256_castsi256_si128(index));
    const __m128i high = gather_four(base, _mm256_extracti128_si256(index, 1));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  }
  static Float gather(const float* base, Int index) {
    return _mm256_castsi256_ps(gather(reinterpret_cast<const uint32_t*>(base), index));
  }

  static Mask reached(Float a, Float b) {
    return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GE_OQ));
  }

  // A table of kSize numbers that is looked up by an index below kSize.
  template <int kSize>
  class Table {
   public:
    explicit Table(const uint32_t* p) : base_(p) {}
    Int operator[](Int i) const {
      return _mm256_castps_si256(look_up<kSize>(reinterpret_cast<const float*>(base_), i));
    }

   private:
    const uint32_t* base_;
  };
  // A number by the low bits of an index, among kSize.
  template <int kSize>
  static Float look_up(const float* numbers, Int index) {
    if constexpr (kSize > 32) {
      return gather(numbers, both(index, set(kSize - 1u)));
    } else if constexpr (kSize == kWidth) {
      return _mm256_permutevar8x32_ps(load(numbers), index);
    } else {
      constexpr int kHalf = kSize / 2;
      const Float low = look_up<kHalf>(numbers, index);
      const Float high = look_up<kHalf>(numbers + kHalf, index);
      // By the index's highest bit, which moves to the sign.
      const Int sign = shift_left<kSize == 32 ? 27 : 28>(index);
      return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(sign));
    }
  }

  // As LevelsBySymbol, but half as many numbers, by magnitude. kSize: of the LevelTable, in use,
  // rounded up; the escape's low bits point at zero.
  template <int kSize>
  class Levels {
   public:
    void load(const float* level) {
      for (int i = 0; i < kSize / 2; i += kWidth) {
        // Symbols 2 k, which stand for -k; 0, for zero.
        const Float even =
            _mm256_shuffle_ps(Simd::load(level + 2 * i), Simd::load(level + 2 * i + kWidth), 0x88);
        const __m256d in_order = _mm256_permute4x64_pd(_mm256_castps_pd(even), 0xd8);
        store(negative_ + i, _mm256_castpd_ps(in_order));
      }
    }
    Float negative(Int k) const { return look_up<kSize / 2>(negative_, k); }  // of -k
    Float operator[](Int entry) const {
      const Int k = shift_right<kEntrySymbolShift + 1>(add(entry, set(1u << kEntrySymbolShift)));
      const Float value = look_up<kSize / 2>(negative_, k);
      // Odd symbols, but for the escape, change its sign.
      const Int odd = _mm256_andnot_si256(entry, shift_left<31 - kEntrySymbolShift>(entry));
      return _mm256_xor_ps(value, _mm256_castsi256_ps(both(odd, set(0x80000000u))));
    }

   private:
    alignas(32) float negative_[kSize / 2];
  };

  // Of lanes that reach `limit` (both under 2^31): takes the low 16 bits away and puts them, in
  // lane order, below `end`; returns where they begin. Up to kWidth words below `end` may be
  // overwritten.
  static uint16_t* push(Int* state, Int limit, uint16_t* end) {
    const Mask kept = less(*state, limit);
    const uint32_t lanes = bits(kept) ^ 0xffu;
    const __m128i order =
        _mm_load_si128(reinterpret_cast<const __m128i*>(kShuffles.gather_high[lanes]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(end - kWidth),
                     _mm_shuffle_epi8(low_words(*state), order));
    *state = select(kept, *state, shift_right<16>(*state));
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
  static __m128i gather_four(const uint32_t* base, __m128i index) {
    const uint64_t a = static_cast<uint64_t>(_mm_cvtsi128_si64(index));
    const uint64_t b = static_cast<uint64_t>(_mm_extract_epi64(index, 1));
    const auto at = [base](uint64_t i) { return static_cast<int>(base[i]); };
    __m128i result = _mm_cvtsi32_si128(at(a & 0xffffffffu));
    result = _mm_insert_epi32(result, at(a >> 32), 1);
    result = _mm_insert_epi32(result, at(b & 0xffffffffu), 2);
    return _mm_insert_epi32(result, at(b >> 32), 3);
  }
  // Packing works within halves: a row's groups of four bytes come in the order 0 2 4 6 1 3 5 7.
  static Int in_lane_order(Int bytes) {
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
  // The low 16 bits of each lane.
  static __m128i low_words(Int x) {
    const Int low = both(x, set(0xffffu));
    return _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  }
};

}  // namespace
}  // namespace gct
