#include "cpu/trellis.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "core/bit_io.h"
#include "cpu/trellis_steps.h"

namespace gct {
namespace {

// What no way costs: states that can't be reached yet.
constexpr float kUnreached = 1e9f;

// No libm, no contraction, every comparison in a stated order: what every implementation returns.
struct ScalarSteps {
  // Both parities of one quantizer. Of each parity the magnitudes below and above are tried: levels
  // aren't in the middle of their cells, and bits count.
  static void price(const float* steps, const float* costs, const int32_t* at, int quantizer,
                    Branches* out, int32_t* large) {
    constexpr float kPast = tables::kMaxMagnitude + 1;
    const float half = 0.5f * static_cast<float>(quantizer);
    for (int l = 0; l < kLanes; ++l) {
      const float v = steps[l] + half;
      const int32_t table = at[l] + quantizer * kCostStride;
      const int32_t m = static_cast<int32_t>(v < kPast ? v : kPast);
      const int32_t below = m > 0 ? m - 1 : 1;
      const float e0 = steps[l] - costs[table + m], e1 = steps[l] - costs[table + below];
      const float e2 = steps[l] - costs[table + m + 1], e3 = steps[l] - costs[table + m + 2];
      const float p0 = e0 * e0 + costs[table + kRateAt + m];
      const float p1 = e1 * e1 + costs[table + kRateAt + below];
      const float p2 = e2 * e2 + costs[table + kRateAt + m + 1];
      const float p3 = e3 * e3 + costs[table + kRateAt + m + 2];
      const float same = p3 < p0 ? p3 : p0, other = p2 < p1 ? p2 : p1;
      const int32_t same_k = p3 < p0 ? m + 2 : m, other_k = p2 < p1 ? m + 1 : below;
      const bool odd = (m & 1) != 0;
      out->price[2 * quantizer][l] = odd ? other : same;
      out->price[2 * quantizer + 1][l] = odd ? same : other;
      out->magnitude[2 * quantizer][l] = odd ? other_k : same_k;
      out->magnitude[2 * quantizer + 1][l] = odd ? same_k : other_k;
      large[l] |= v >= costs[table + kTopAt] ? 1 : 0;
    }
  }

  // Each state's cheaper way in.
  static void choose(const Branches& branches, int count, TrellisTotals totals, TrellisRow* row) {
    float next[kTrellisStates][kLanes];
    int32_t second[kLanes] = {};
    for (int s = 0; s < kTrellisStates; ++s) {
      const float* a = totals[kBefore.state[s][0]];
      const float* b = totals[kBefore.state[s][1]];
      const float* price_a = branches.price[kBefore.branch[s][0]];
      const float* price_b = branches.price[kBefore.branch[s][1]];
      for (int l = 0; l < kLanes; ++l) {
        const float first = a[l] + price_a[l], other = b[l] + price_b[l];
        second[l] |= (other < first ? 1 : 0) << s;
        next[s][l] = other < first ? other : first;
      }
    }
    for (int l = 0; l < kLanes; ++l) {
      row->second[l] = static_cast<uint8_t>(second[l]);
      row->magnitudes[l] =
          static_cast<uint32_t>(branches.magnitude[0][l] | branches.magnitude[1][l] << 8 |
                                branches.magnitude[2][l] << 16) |
          static_cast<uint32_t>(branches.magnitude[3][l]) << 24;
    }
    for (int s = 0; s < kTrellisStates; ++s)
      memcpy(totals[s], next[s], static_cast<size_t>(count) * sizeof(float));
  }
};

void forward(const float* x, int n, float inverse_step, const TrellisCosts* costs,
             const uint8_t* choice, TrellisTotals totals, TrellisRow* rows) {
  forward_block<ScalarSteps>(x, n, inverse_step, costs, choice, totals, rows);
}

void backward(const TrellisRow* rows, int n, int32_t* states, uint8_t* symbols,
              uint8_t* quantizers) {
  for (int i = (n - 1) / kLanes * kLanes; i >= 0; i -= kLanes) {
    const int count = n - i < kLanes ? n - i : kLanes;
    const TrellisRow& row = rows[i / kLanes];
    for (int l = 0; l < count; ++l) {
      const int32_t s = states[l], way = (row.second[l] >> s) & 1;
      const int32_t from = (&kBefore.state[0][0])[2 * s + way];
      const int32_t branch = (&kBefore.branch[0][0])[2 * s + way];
      const int32_t k = static_cast<int32_t>((row.magnitudes[l] >> (8 * branch)) & 0xffu);
      const int32_t symbol = 2 * k - (k > 0 && row.negative[l] == 0 ? 1 : 0);
      states[l] = from;
      symbols[i + l] = static_cast<uint8_t>(k == kEscapeMagnitude ? kEscapeSymbol : symbol);
      quantizers[i + l] = static_cast<uint8_t>(from & 1);
    }
  }
}

const uint8_t* decode(uint32_t* lanes, uint8_t* states, const DecodeTable* tables,
                      const uint8_t* choice, int n, const uint8_t* words, uint8_t* symbols,
                      uint8_t* used) {
  for (int i = 0; i < n; ++i) {
    uint8_t& state = states[i % kLanes];
    used[i] = static_cast<uint8_t>(trellis_table(choice[i], state & 1));
    symbols[i] = static_cast<uint8_t>(rans_get(&lanes[i % kLanes], tables[used[i]].slot, &words));
    state = trellis_next(state, symbol_parity(symbols[i]));
  }
  return words;
}

}  // namespace

const TrellisCosts* TrellisPrices::at(int shape, double origin) {
  const TrellisCosts* known = trellis_cost_tables(shape);
  if (shape == shape_ && origin == origin_) return costs_.data();
  shape_ = shape;
  origin_ = origin;
  costs_.assign(known, known + kTrellisTablesPerShape);
  constexpr int kLast = tables::kTablesPerShape - 1;
  for (int i = 0; i <= kLast; ++i) {
    const double place = std::min(std::max(i + origin / 4, 0.0), double(kLast));
    const int below = std::min(static_cast<int>(place), kLast - 1);
    const float share = static_cast<float>(place - below);
    for (int q = 0; q < kQuantizers; ++q) {
      const TrellisCosts& a = known[trellis_table(below, q)];
      const TrellisCosts& b = known[trellis_table(below + 1, q)];
      TrellisCosts& own = costs_[static_cast<size_t>(trellis_table(i, q))];
      // As far as both tables have the magnitude.
      const int top = static_cast<int>(std::min(own.top, std::min(a.top, b.top)));
      for (int k = 0; k <= top; ++k) own.rate[k] = a.rate[k] + share * (b.rate[k] - a.rate[k]);
    }
  }
  return costs_.data();
}

int32_t trellis_escape(float steps, const TrellisCosts& costs) {
  const int32_t least = static_cast<int32_t>(costs.top) + 1;
  const float offset = static_cast<float>(least) - costs.level[least];
  return std::max(least, static_cast<int32_t>(steps + offset + 0.5f));
}

LargePrices price_large(float steps, const TrellisCosts& costs, int table_in_shape) {
  const int32_t top = static_cast<int32_t>(costs.top);
  LargePrices result;
  for (int parity = 0; parity < 2; ++parity) {
    const int32_t k = top - ((top - parity) & 1);
    const float error = steps - costs.level[k];
    result.price[parity] = error * error + costs.rate[k];
    result.magnitude[parity] = k;
  }
  const int32_t k = trellis_escape(steps, costs);
  const float offset = static_cast<float>(top + 1) - costs.level[top + 1];
  const float error = steps - (static_cast<float>(k) - offset);
  const int bits =
      1 + golomb_bits(static_cast<uint32_t>(k - top - 1), escape_order(table_in_shape));
  const float price =
      error * error + (costs.escape_rate + kTrellisLambda * static_cast<float>(bits));
  if (price < result.price[0]) {
    result.price[0] = price;
    result.magnitude[0] = kEscapeMagnitude;
  }
  return result;
}

void TrellisPath::begin(bool free_start) {
  blocks_.clear();
  num_rows_ = 0;
  for (int s = 0; s < kTrellisStates; ++s)
    std::fill(totals_[s], totals_[s] + kLanes, free_start || s == 0 ? 0.0f : kUnreached);
}

void TrellisPath::add(const float* x, int n, float inverse_step, const TrellisCosts* costs,
                      const uint8_t* choice, size_t place) {
  blocks_.push_back({n, place, num_rows_, {}});
  Block& block = blocks_.back();
  std::copy(choice, choice + n, block.choice);
  num_rows_ += static_cast<size_t>(div_up(n, kLanes));
  if (rows_.size() < num_rows_) rows_.resize(std::max(num_rows_, 2 * rows_.size()));
  trellis_kernels().forward(x, n, inverse_step, costs, block.choice, totals_,
                            &rows_[block.first_row]);
}

void TrellisPath::finish(uint8_t* symbols, uint8_t* used) {
  int32_t states[kLanes] = {};
  for (int l = 0; l < kLanes; ++l) {
    for (int s = 1; s < kTrellisStates; ++s)
      if (totals_[s][l] < totals_[states[l]][l]) states[l] = s;
  }
  for (size_t b = blocks_.size(); b-- > 0;) {
    const Block& block = blocks_[b];
    uint8_t* quantizers = used + block.place * kBlock;
    trellis_kernels().backward(&rows_[block.first_row], block.n, states,
                               symbols + block.place * kBlock, quantizers);
    for (int i = 0; i < block.n; ++i)
      quantizers[i] = static_cast<uint8_t>(trellis_table(block.choice[i], quantizers[i]));
  }
}

void TrellisPath::reserve(size_t blocks) {
  blocks_.reserve(blocks);
  rows_.resize(std::max(rows_.size(), blocks * (kBlock / kLanes)));
}

size_t TrellisPath::capacity_bytes() const {
  return rows_.capacity() * sizeof(TrellisRow) + blocks_.capacity() * sizeof(Block);
}

const TrellisKernels* scalar_trellis() {
  static const TrellisKernels k = {forward, backward, decode};
  return &k;
}

const TrellisKernels& trellis_kernels() {
  const TrellisKernels* fast = &kernels() == avx512_kernels() ? avx512_trellis() : nullptr;
  return fast != nullptr ? *fast : *scalar_trellis();
}

}  // namespace gct
