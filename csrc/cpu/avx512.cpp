// The kernels on AVX-512 (F, BW, VL, DQ, VBMI2): two vectors of 16 lanes hold the 32 interleaved
// states. Full rows of 32 elements are vectorized, the rest of a tail block goes through the scalar
// reference. This file alone is compiled for these instructions; nothing in it runs before
// avx512_kernels() has asked the processor.
#include <cstddef>

#include "cpu/kernels.h"
#include "cpu/matrix.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__) && defined(__AVX512VBMI2__)

// GCC 12's own intrinsics start from a deliberately uninitialized vector and warn about it when
// inlined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

namespace gct {
namespace {

constexpr int kHalf = kLanes / 2;

__m512 magnitudes_of(__m512 x) { return _mm512_abs_ps(x); }

// Lanes 0..15 and 16..31 to one sum, pairwise and halving as the reference does.
float sum_lanes(__m512 low, __m512 high) {
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, _mm512_add_ps(low, high));
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

BlockMoments moments(const float* x, int n) {
  if (n % kLanes != 0) return scalar_kernels()->moments(x, n);
  __m512 abs[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  __m512 square[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int i = 0; i < n; i += kLanes) {
    for (int h = 0; h < 2; ++h) {
      const __m512 v = magnitudes_of(_mm512_loadu_ps(x + i + h * kHalf));
      abs[h] = _mm512_add_ps(abs[h], v);
      square[h] = _mm512_add_ps(square[h], _mm512_mul_ps(v, v));
    }
  }
  return {sum_lanes(abs[0], abs[1]), sum_lanes(square[0], square[1])};
}

// 16 bytes as 32-bit integers.
__m512i load_bytes(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// Bias and number of magnitudes of 16 elements.
struct Bounds {
  __m512 bias;
  __m512i magnitudes;
};

Bounds bounds_at(const Quantizer& q, int i) {
  if (!q.tables) return {_mm512_set1_ps(q.bias), _mm512_set1_epi32(q.magnitudes)};
  const __m512i index = load_bytes(q.tables + i);
  return {_mm512_i32gather_ps(index, q.biases, 4), _mm512_i32gather_epi32(index, q.limits, 4)};
}

bool quantize(const float* x, int n, const Quantizer& q, uint8_t* symbols) {
  if (q.stochastic || n % kHalf != 0) return scalar_kernels()->quantize(x, n, q, symbols);
  const __m512 inverse = _mm512_set1_ps(q.inverse_step);
  const __m512i one = _mm512_set1_epi32(1), escape = _mm512_set1_epi32(kEscapeSymbol);
  __mmask16 escaped = 0;
  for (int i = 0; i < n; i += kHalf) {
    const Bounds bounds = bounds_at(q, i);
    const __m512i past = _mm512_add_epi32(bounds.magnitudes, one);
    const __m512 v = _mm512_loadu_ps(x + i);
    const __m512 scaled = _mm512_add_ps(_mm512_mul_ps(magnitudes_of(v), inverse), bounds.bias);
    // Past the alphabet all magnitudes are one, the escape; this one's double can't overflow.
    const __m512i k = _mm512_cvttps_epi32(_mm512_min_ps(scaled, _mm512_cvtepi32_ps(past)));
    // 2 k - 1 for positive values, 2 k for negative ones, 0 for k = 0.
    const __mmask16 negative = _mm512_movepi32_mask(_mm512_castps_si512(v));
    const __m512i twice = _mm512_add_epi32(k, k);
    const __m512i code =
        _mm512_mask_sub_epi32(twice, static_cast<__mmask16>(~negative), twice, one);
    const __mmask16 over = _mm512_cmpeq_epi32_mask(k, past);
    const __m512i symbol =
        _mm512_mask_mov_epi32(_mm512_max_epi32(code, _mm512_setzero_si512()), over, escape);
    escaped = static_cast<__mmask16>(escaped | over);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(symbols + i), _mm512_cvtepi32_epi8(symbol));
  }
  return escaped != 0;
}

// Index, in units of 4 bytes, of each element's table; its tables lie `stride` bytes apart.
template <size_t stride>
__m512i table_base(const uint8_t* choice) {
  static_assert(stride % 4 == 0, "gathers count in 4 bytes");
  return _mm512_mullo_epi32(load_bytes(choice), _mm512_set1_epi32(stride / 4));
}

// High 32 bits of the products of unsigned 32-bit lanes.
__m512i multiply_high(__m512i a, __m512i b) {
  const __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(a, b), 32);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
  return _mm512_mask_mov_epi32(even, 0xaaaa, odd);
}

// One symbol on each of 16 lanes; see rans_put().
__m512i put16(__m512i state, const uint8_t* symbols, const EncodeTable* table,
              const uint8_t* choice, uint16_t** words) {
  static_assert(offsetof(EncodeTable, entry) == 0 && sizeof(EncodeEntry) == 8, "gathered");
  const int* entries = reinterpret_cast<const int*>(table);
  __m512i index = _mm512_slli_epi32(load_bytes(symbols), 1);
  if (choice) index = _mm512_add_epi32(index, table_base<sizeof(EncodeTable)>(choice));
  const __m512i reciprocal = _mm512_i32gather_epi32(index, entries, 4);
  const __m512i packed = _mm512_i32gather_epi32(index, entries + 1, 4);
  const __m512i freq = _mm512_and_si512(packed, _mm512_set1_epi32(0xfff));
  const __mmask16 full = _mm512_cmpge_epu32_mask(state, _mm512_slli_epi32(freq, 19));
  const int count = __builtin_popcount(full);
  *words -= count;
  const __m256i low = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, state));
  _mm256_mask_storeu_epi16(*words, static_cast<__mmask16>((1u << count) - 1), low);
  state = _mm512_mask_srli_epi32(state, full, state, 16);
  const __m512i quotient =
      _mm512_srlv_epi32(multiply_high(state, reciprocal), _mm512_srli_epi32(packed, 25));
  const __m512i bias = _mm512_and_si512(_mm512_srli_epi32(packed, 12), _mm512_set1_epi32(0x1fff));
  const __m512i factor = _mm512_sub_epi32(_mm512_set1_epi32(static_cast<int>(kProbTotal)), freq);
  return _mm512_add_epi32(_mm512_add_epi32(state, bias), _mm512_mullo_epi32(quotient, factor));
}

uint16_t* encode(uint32_t* states, const uint8_t* symbols, int n, const EncodeTable* table,
                 const uint8_t* choice, uint16_t* end) {
  const int full = n / kLanes * kLanes;
  if (n > full) {
    const uint8_t* rest = choice ? choice + full : nullptr;
    end = scalar_kernels()->encode(states, symbols + full, n - full, table, rest, end);
  }
  __m512i low = _mm512_loadu_si512(states), high = _mm512_loadu_si512(states + kHalf);
  for (int i = full - kLanes; i >= 0; i -= kLanes) {
    const uint8_t* upper = choice ? choice + i + kHalf : nullptr;
    high = put16(high, symbols + i + kHalf, table, upper, &end);
    low = put16(low, symbols + i, table, choice ? choice + i : nullptr, &end);
  }
  _mm512_storeu_si512(states, low);
  _mm512_storeu_si512(states + kHalf, high);
  return end;
}

// One symbol of each of 16 lanes. At least 16 words are readable at *words.
__m512i get16(__m512i state, const DecodeTable* table, const uint8_t* choice,
              const uint16_t** words, uint8_t* symbols) {
  __m512i slot = _mm512_and_si512(state, _mm512_set1_epi32(kProbTotal - 1));
  if (choice) slot = _mm512_add_epi32(slot, table_base<sizeof(DecodeTable)>(choice));
  const __m512i entry = _mm512_i32gather_epi32(slot, table->slot, 4);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(symbols),
                   _mm512_cvtepi32_epi8(_mm512_and_si512(entry, _mm512_set1_epi32(0x7f))));
  const __m512i freq = _mm512_and_si512(_mm512_srli_epi32(entry, 7), _mm512_set1_epi32(0xfff));
  state = _mm512_add_epi32(_mm512_mullo_epi32(freq, _mm512_srli_epi32(state, kProbBits)),
                           _mm512_srli_epi32(entry, 19));
  const __mmask16 empty = _mm512_cmplt_epu32_mask(state, _mm512_set1_epi32(kRansLow));
  const __m512i next =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(*words)));
  const __m512i refill = _mm512_maskz_expand_epi32(empty, next);
  *words += __builtin_popcount(empty);
  return _mm512_mask_or_epi32(state, empty, _mm512_slli_epi32(state, 16), refill);
}

const uint16_t* decode(uint32_t* states, const DecodeTable* table, const uint8_t* choice, int n,
                       const uint16_t* words, const uint16_t* words_end, uint8_t* symbols) {
  __m512i low = _mm512_loadu_si512(states), high = _mm512_loadu_si512(states + kHalf);
  int i = 0;
  for (; i + kLanes <= n && words_end - words >= kLanes; i += kLanes) {
    const uint8_t* upper = choice ? choice + i + kHalf : nullptr;
    low = get16(low, table, choice ? choice + i : nullptr, &words, symbols + i);
    high = get16(high, table, upper, &words, symbols + i + kHalf);
  }
  _mm512_storeu_si512(states, low);
  _mm512_storeu_si512(states + kHalf, high);
  if (i == n) return words;
  return scalar_kernels()->decode(states, table, choice ? choice + i : nullptr, n - i, words,
                                  words_end, symbols + i);
}

void dequantize(const uint8_t* symbols, int n, const LevelTable* levels, const uint8_t* choice,
                float step, bool accumulate, float* out) {
  const __m512 scale = _mm512_set1_ps(step);
  int i = 0;
  for (; i + kHalf <= n; i += kHalf) {
    __m512i index = load_bytes(symbols + i);
    if (choice) index = _mm512_add_epi32(index, table_base<sizeof(LevelTable)>(choice + i));
    __m512 value = _mm512_mul_ps(scale, _mm512_i32gather_ps(index, levels->level, 4));
    if (accumulate) value = _mm512_add_ps(_mm512_loadu_ps(out + i), value);
    _mm512_storeu_ps(out + i, value);
  }
  if (i == n) return;
  scalar_kernels()->dequantize(symbols + i, n - i, levels, choice ? choice + i : nullptr, step,
                               accumulate, out + i);
}

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vbmi2");
}

}  // namespace

const Kernels* avx512_kernels() {
  static const Kernels k = {"avx512",   moments, quantize,  encode,     decode,
                            dequantize, project, add_outer, row_product};
  static const bool usable = supported();
  return usable ? &k : nullptr;
}

}  // namespace gct

#else

namespace gct {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace gct

#endif
