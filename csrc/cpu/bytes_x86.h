// Rows of kLanes bytes on AVX2, for kernels that work on symbols; AVX-512 has these instructions
// too.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/code_places.h"
#include "cpu/codes.h"

namespace gct {
namespace {

struct Bytes {
  using Row = __m256i;

  static Row set(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
  static Row load(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void store(uint8_t* p, Row x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }

  static Row add(Row a, Row b) { return _mm256_add_epi8(a, b); }
  // a - b, or 0 where b is larger.
  static Row subtract_to_zero(Row a, Row b) { return _mm256_subs_epu8(a, b); }
  static Row half_up(Row x) { return _mm256_avg_epu8(x, _mm256_setzero_si256()); }  // (x + 1) / 2
  static Row min(Row a, Row b) { return _mm256_min_epu8(a, b); }
  // All bits of a byte where they are equal.
  static Row equal(Row a, Row b) { return _mm256_cmpeq_epi8(a, b); }
  static Row both(Row a, Row b) { return _mm256_and_si256(a, b); }
  static Row without(Row x, Row mask) { return _mm256_andnot_si256(mask, x); }
  static Row select(Row mask, Row a, Row b) { return _mm256_blendv_epi8(b, a, mask); }
  static uint32_t bits(Row mask) { return static_cast<uint32_t>(_mm256_movemask_epi8(mask)); }

  // Codes of kBits bits, least significant first, of each half of the row: 16 bytes at p and 16 at
  // p + 2 * kBits, behind the codes zeros.
  template <int kBits>
  static void store_packed(uint8_t* p, Row codes) {
    codes = join<8 - kBits>(codes, kBytes);
    codes = join<16 - 2 * kBits>(codes, kWords);
    codes = join<32 - 4 * kBits>(codes, kHalf);
    codes = _mm256_shuffle_epi8(codes, load(kUsedBytes<kBits>.place));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(codes));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 2 * kBits), _mm256_extracti128_si256(codes, 1));
  }

  // A table of kSize bytes that is looked up by an index below kSize.
  template <int kSize>
  class Table {
   public:
    explicit Table(const uint8_t* p) {
      for (int i = 0; i < kSize / 16; ++i)
        parts_[i] = _mm256_broadcastsi128_si256(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i)));
    }
    Row operator[](Row i) const { return look_up<kSize>(parts_, i); }

   private:
    template <int kCount>
    static Row look_up(const Row* parts, Row i) {
      if constexpr (kCount == 16) {
        return _mm256_shuffle_epi8(parts[0], i);
      } else {
        const Row low = look_up<kCount / 2>(parts, i);
        const Row high = look_up<kCount / 2>(parts + kCount / 32, i);
        // The index's highest bit moves to its byte's top; what comes from the byte below stays
        // under it.
        return _mm256_blendv_epi8(low, high, _mm256_slli_epi16(i, kCount == 32 ? 3 : 2));
      }
    }

    Row parts_[kSize / 16];
  };

  // As join() of words.
  template <int kUnused>
  static Row join(Row x, uint64_t low) {
    const Row mask = _mm256_set1_epi64x(static_cast<long long>(low));
    return _mm256_or_si256(both(x, mask), _mm256_srli_epi64(without(x, mask), kUnused));
  }

  class Sum {
   public:
    void add(Row x) { sums_ = _mm256_add_epi64(sums_, _mm256_sad_epu8(x, _mm256_setzero_si256())); }
    uint32_t total() const {
      const __m128i two =
          _mm_add_epi64(_mm256_castsi256_si128(sums_), _mm256_extracti128_si256(sums_, 1));
      return static_cast<uint32_t>(_mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 2));
    }

   private:
    __m256i sums_ = _mm256_setzero_si256();
  };
};

}  // namespace
}  // namespace gct
