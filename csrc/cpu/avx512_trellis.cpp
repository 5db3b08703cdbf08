// The trellis on AVX-512: two vectors of 16 lanes. Compiled and chosen with avx512.cpp.
#include <cstddef>
#include <cstring>

#include "cpu/trellis.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__) && defined(__AVX512VBMI2__)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "cpu/trellis_steps.h"

namespace gct {
namespace {

constexpr int kHalf = kLanes / 2;

__m512i load_bytes(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

void store_bytes(__m512i v, uint8_t* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
}

__m512 lookup(const float* table, __m512i index) { return _mm512_i32gather_ps(index, table, 4); }

// Error and rate of magnitudes k; at: the places of their tables in costs.
__m512 price_of(__m512 steps, const float* costs, __m512i at, __m512i k) {
  const __m512i index = _mm512_add_epi32(at, k);
  const __m512 error = _mm512_sub_ps(steps, lookup(costs, index));
  return _mm512_add_ps(_mm512_mul_ps(error, error), lookup(costs + kRateAt, index));
}

// ScalarSteps of trellis.cpp, comparison by comparison.
struct VectorSteps {
  static void price(const float* steps, const float* costs, const int32_t* at, int quantizer,
                    Branches* out, int32_t* large) {
    const __m512 half = _mm512_set1_ps(0.5f * static_cast<float>(quantizer));
    const __m512 past = _mm512_set1_ps(static_cast<float>(tables::kMaxMagnitude + 1));
    const __m512i one = _mm512_set1_epi32(1);
    for (int l = 0; l < kLanes; l += kHalf) {
      const __m512 u = _mm512_load_ps(steps + l), v = _mm512_add_ps(u, half);
      const __m512i table =
          _mm512_add_epi32(_mm512_load_si512(at + l), _mm512_set1_epi32(quantizer * kCostStride));
      const __m512i m = _mm512_cvttps_epi32(_mm512_min_ps(v, past));
      const __m512i below = _mm512_mask_sub_epi32(one, _mm512_test_epi32_mask(m, m), m, one);
      const __m512i above = _mm512_add_epi32(m, one), far = _mm512_add_epi32(above, one);
      const __m512 p0 = price_of(u, costs, table, m), p1 = price_of(u, costs, table, below);
      const __m512 p2 = price_of(u, costs, table, above), p3 = price_of(u, costs, table, far);
      const __mmask16 take_far = _mm512_cmp_ps_mask(p3, p0, _CMP_LT_OQ);
      const __mmask16 take_above = _mm512_cmp_ps_mask(p2, p1, _CMP_LT_OQ);
      const __m512 same = _mm512_mask_mov_ps(p0, take_far, p3);
      const __m512 other = _mm512_mask_mov_ps(p1, take_above, p2);
      const __m512i same_k = _mm512_mask_mov_epi32(m, take_far, far);
      const __m512i other_k = _mm512_mask_mov_epi32(below, take_above, above);
      const __mmask16 odd = _mm512_test_epi32_mask(m, one);
      const int even_branch = 2 * quantizer, odd_branch = even_branch + 1;
      _mm512_store_ps(out->price[even_branch] + l, _mm512_mask_mov_ps(same, odd, other));
      _mm512_store_ps(out->price[odd_branch] + l, _mm512_mask_mov_ps(other, odd, same));
      _mm512_store_si512(out->magnitude[even_branch] + l,
                         _mm512_mask_mov_epi32(same_k, odd, other_k));
      _mm512_store_si512(out->magnitude[odd_branch] + l,
                         _mm512_mask_mov_epi32(other_k, odd, same_k));
      const __m512 top = lookup(costs + kTopAt, table);
      const __mmask16 over = _mm512_cmp_ps_mask(v, top, _CMP_GE_OQ);
      _mm512_mask_storeu_epi32(large + l, over, one);
    }
  }

  static void choose(const Branches& branches, int count, TrellisTotals totals, TrellisRow* row) {
    for (int l = 0; l < kLanes; l += kHalf) {
      const int left = count - l;
      const __mmask16 live =
          left >= kHalf ? 0xffff : static_cast<__mmask16>(left > 0 ? (1u << left) - 1 : 0);
      __m512 next[kTrellisStates];
      __m512i second = _mm512_setzero_si512();
      for (int s = 0; s < kTrellisStates; ++s) {
        __m512 way[2];
        for (int i = 0; i < 2; ++i) {
          way[i] = _mm512_add_ps(_mm512_loadu_ps(totals[kBefore.state[s][i]] + l),
                                 _mm512_load_ps(branches.price[kBefore.branch[s][i]] + l));
        }
        const __mmask16 take = _mm512_cmp_ps_mask(way[1], way[0], _CMP_LT_OQ);
        next[s] = _mm512_mask_mov_ps(way[0], take, way[1]);
        second = _mm512_mask_or_epi32(second, take, second, _mm512_set1_epi32(1 << s));
      }
      for (int s = 0; s < kTrellisStates; ++s) _mm512_mask_storeu_ps(totals[s] + l, live, next[s]);
      store_bytes(second, row->second + l);
      __m512i packed = _mm512_setzero_si512();
      for (int b = kBranches - 1; b >= 0; --b) {
        packed = _mm512_or_epi32(_mm512_slli_epi32(packed, 8),
                                 _mm512_load_si512(branches.magnitude[b] + l));
      }
      _mm512_storeu_si512(row->magnitudes + l, packed);
    }
  }
};

void forward(const float* x, int n, float inverse_step, const TrellisCosts* costs,
             const uint8_t* choice, TrellisTotals totals, TrellisRow* rows) {
  forward_block<VectorSteps>(x, n, inverse_step, costs, choice, totals, rows);
}

void backward(const TrellisRow* rows, int n, int32_t* states, uint8_t* symbols,
              uint8_t* quantizers) {
  const __m512i from = _mm512_loadu_si512(kBefore.state);
  const __m512i branches = _mm512_loadu_si512(kBefore.branch);
  const __m512i one = _mm512_set1_epi32(1);
  const int full = n / kLanes * kLanes;
  if (n > full)
    scalar_trellis()->backward(rows + full / kLanes, n - full, states, symbols + full,
                               quantizers + full);
  for (int i = full - kLanes; i >= 0; i -= kLanes) {
    const TrellisRow& row = rows[i / kLanes];
    for (int l = 0; l < kLanes; l += kHalf) {
      const __m512i state = _mm512_loadu_si512(states + l);
      const __m512i way =
          _mm512_and_epi32(_mm512_srlv_epi32(load_bytes(row.second + l), state), one);
      const __m512i index = _mm512_or_epi32(_mm512_slli_epi32(state, 1), way);
      const __m512i before = _mm512_permutexvar_epi32(index, from);
      const __m512i shift = _mm512_slli_epi32(_mm512_permutexvar_epi32(index, branches), 3);
      const __m512i k =
          _mm512_and_epi32(_mm512_srlv_epi32(_mm512_loadu_si512(row.magnitudes + l), shift),
                           _mm512_set1_epi32(0xff));
      const __mmask16 minus_one =
          static_cast<__mmask16>(_mm512_test_epi32_mask(k, k) &
                                 ~_mm512_test_epi32_mask(load_bytes(row.negative + l), one));
      const __m512i twice = _mm512_slli_epi32(k, 1);
      const __m512i symbol =
          _mm512_mask_mov_epi32(_mm512_mask_sub_epi32(twice, minus_one, twice, one),
                                _mm512_cmpeq_epi32_mask(k, _mm512_set1_epi32(kEscapeMagnitude)),
                                _mm512_set1_epi32(kEscapeSymbol));
      _mm512_storeu_si512(states + l, before);
      store_bytes(symbol, symbols + i + l);
      store_bytes(_mm512_and_epi32(before, one), quantizers + i + l);
    }
  }
}

// 16 lanes: their rANS states and their places in the trellis.
struct Half {
  __m512i lanes, states;
};

// One symbol on each of 16 lanes, as get16() in avx512.cpp. At least 16 words are readable.
void get16(Half* half, __m512i next_states, const DecodeTable* tables, const uint8_t* choice,
           const uint8_t** words, uint8_t* symbols, uint8_t* used) {
  const __m512i one = _mm512_set1_epi32(1);
  const __m512i low_bits = _mm512_set1_epi32(static_cast<int>(kProbTotal) - 1);
  const __m512i table = _mm512_or_epi32(_mm512_slli_epi32(load_bytes(choice), 1),
                                        _mm512_and_epi32(half->states, one));
  store_bytes(table, used);
  const __m512i slot =
      _mm512_or_epi32(_mm512_slli_epi32(table, kProbBits), _mm512_and_epi32(half->lanes, low_bits));
  const __m512i entry = _mm512_i32gather_epi32(slot, tables->slot, 4);
  const __m512i symbol =
      _mm512_and_epi32(_mm512_srli_epi32(entry, kEntrySymbolShift), _mm512_set1_epi32(0x7f));
  store_bytes(symbol, symbols);
  const __m512i parity = _mm512_and_epi32(_mm512_srli_epi32(_mm512_add_epi32(symbol, one), 1), one);
  half->states = _mm512_permutexvar_epi32(
      _mm512_or_epi32(_mm512_slli_epi32(half->states, 1), parity), next_states);
  const __m512i freq = _mm512_and_epi32(_mm512_srli_epi32(entry, kProbBits), low_bits);
  const __m512i x =
      _mm512_add_epi32(_mm512_mullo_epi32(freq, _mm512_srli_epi32(half->lanes, kProbBits)),
                       _mm512_and_epi32(entry, low_bits));
  const __mmask16 empty = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(kRansLow));
  const __m512i next =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(*words)));
  *words += 2 * __builtin_popcount(empty);
  half->lanes = _mm512_mask_or_epi32(x, empty, _mm512_slli_epi32(x, 16),
                                     _mm512_maskz_expand_epi32(empty, next));
}

const uint8_t* decode(uint32_t* lanes, uint8_t* states, const DecodeTable* tables,
                      const uint8_t* choice, int n, const uint8_t* words, uint8_t* symbols,
                      uint8_t* used) {
  static_assert(sizeof(DecodeTable) == 4 * kProbTotal, "tables lie side by side");
  const __m512i next_states = load_bytes(tables::kTrellisNext);
  Half low = {_mm512_loadu_si512(lanes), load_bytes(states)};
  Half high = {_mm512_loadu_si512(lanes + kHalf), load_bytes(states + kHalf)};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    get16(&low, next_states, tables, choice + i, &words, symbols + i, used + i);
    get16(&high, next_states, tables, choice + i + kHalf, &words, symbols + i + kHalf,
          used + i + kHalf);
  }
  _mm512_storeu_si512(lanes, low.lanes);
  _mm512_storeu_si512(lanes + kHalf, high.lanes);
  store_bytes(low.states, states);
  store_bytes(high.states, states + kHalf);
  if (i == n) return words;
  return scalar_trellis()->decode(lanes, states, tables, choice + i, n - i, words, symbols + i,
                                  used + i);
}

}  // namespace

const TrellisKernels* avx512_trellis() {
  static const TrellisKernels k = {forward, backward, decode};
  return &k;
}

}  // namespace gct

#else

namespace gct {
const TrellisKernels* avx512_trellis() { return nullptr; }
}  // namespace gct

#endif
