// The frame of the encoder's way through the trellis, with what differs between implementations as
// a parameter. All of it has internal linkage: avx512_trellis.cpp is compiled for other
// instructions, and nothing of that may end up in a function that others share.
#pragma once

#include "cpu/trellis.h"

namespace gct {
namespace {

constexpr int kCostStride = sizeof(TrellisCosts) / sizeof(float);
constexpr int kRateAt = kTrellisCandidates, kTopAt = 2 * kTrellisCandidates + 1;
constexpr int kBranches = 4;  // 2 * quantizer + parity

// The two (state, parity) before each state.
struct Predecessors {
  int32_t state[kTrellisStates][2] = {};
  int32_t branch[kTrellisStates][2] = {};
};

constexpr Predecessors find_predecessors() {
  Predecessors found;
  int count[kTrellisStates] = {};
  for (int from = 0; from < kTrellisStates; ++from) {
    for (int parity = 0; parity < 2; ++parity) {
      const int to = tables::kTrellisNext[2 * from + parity];
      found.state[to][count[to]] = from;
      found.branch[to][count[to]++] = 2 * (from & 1) + parity;
    }
  }
  return found;
}

constexpr Predecessors kBefore = find_predecessors();

struct alignas(64) Branches {
  float price[kBranches][kLanes];
  int32_t magnitude[kBranches][kLanes];
};

inline void price_large_lanes(const float* steps, const TrellisCosts* costs, const uint8_t* choice,
                              const int32_t* large, int count, Branches* out) {
  for (int l = 0; l < count; ++l) {
    if (large[l] == 0) continue;
    for (int q = 0; q < kQuantizers; ++q) {
      const TrellisCosts& table = costs[kQuantizers * choice[l] + q];
      if (steps[l] + 0.5f * static_cast<float>(q) < table.top) continue;
      const LargePrices prices = price_large(steps[l], table, choice[l]);
      for (int parity = 0; parity < 2; ++parity) {
        out->price[2 * q + parity][l] = prices.price[parity];
        out->magnitude[2 * q + parity][l] = prices.magnitude[parity];
      }
    }
  }
}

// Totals count from the least of each lane, or they would outgrow their precision.
inline void level_totals(TrellisTotals totals) {
  for (int l = 0; l < kLanes; ++l) {
    float least = totals[0][l];
    for (int s = 1; s < kTrellisStates; ++s) least = totals[s][l] < least ? totals[s][l] : least;
    for (int s = 0; s < kTrellisStates; ++s) totals[s][l] -= least;
  }
}

// Steps has price(), which fills the branches of one quantizer and marks the lanes past its
// alphabet, and choose(), which takes each state's cheaper way in.
template <typename Steps>
void forward_block(const float* x, int n, float inverse_step, const TrellisCosts* costs,
                   const uint8_t* choice, TrellisTotals totals, TrellisRow* rows) {
  static_assert(offsetof(TrellisCosts, rate) == kRateAt * sizeof(float), "looked up as one array");
  static_assert(offsetof(TrellisCosts, top) == kTopAt * sizeof(float), "looked up as one array");
  level_totals(totals);
  for (int i = 0; i < n; i += kLanes, ++rows) {
    const int count = n - i < kLanes ? n - i : kLanes;
    alignas(64) float steps[kLanes] = {};
    alignas(64) int32_t at[kLanes] = {}, large[kLanes] = {};
    for (int l = 0; l < count; ++l) {
      const uint32_t bits = float_bits(x[i + l]);
      const float magnitude = bits_float(bits & 0x7fffffffu) * inverse_step;
      steps[l] = magnitude < kMagnitudeLimit ? magnitude : kMagnitudeLimit;
      at[l] = choice[i + l] * (kQuantizers * kCostStride);
      rows->negative[l] = static_cast<uint8_t>(bits >> 31);
    }
    Branches branches;
    const float* flat = costs->level;
    for (int q = 0; q < kQuantizers; ++q) Steps::price(steps, flat, at, q, &branches, large);
    int32_t any = 0;
    for (int l = 0; l < kLanes; ++l) any |= large[l];
    if (any != 0) price_large_lanes(steps, costs, choice + i, large, count, &branches);
    Steps::choose(branches, count, totals, rows);
  }
}

}  // namespace
}  // namespace gct
