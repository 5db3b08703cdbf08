#include "cpu/block_cost.h"

#include <algorithm>
#include <cmath>

#include "cpu/block_symbols.h"

namespace gct {

void BlockCost::count(const float* x, int n, const Quantizer& q) {
  Quantizer widest = q;
  widest.magnitudes = tables::kMaxMagnitude;
  uint8_t symbols[kBlock];
  const bool large = kernels().quantize(x, n, widest, symbols);
  // Four counters a symbol: runs of one symbol don't wait for each other. 64 of one fit a byte.
  uint8_t counts[4][kMaxSymbols] = {};
  int i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int j = 0; j < 4; ++j) ++counts[j][symbols[i + j]];
  }
  for (; i < n; ++i) ++counts[0][symbols[i]];
  for (int s = 0; s < kMaxSymbols; ++s)
    counts_[s] = static_cast<uint16_t>(counts[0][s] + counts[1][s] + counts[2][s] + counts[3][s]);
  used_ = 2 * tables::kMaxMagnitude + 1;
  while (used_ > 0 && counts_[used_ - 1] == 0) --used_;
  num_large_ = 0;
  for (i = 0; i < n && large; ++i) {
    if (symbols[i] == kEscapeSymbol) large_[num_large_++] = quantize_magnitude(x[i], q, i);
  }
}

double BlockCost::bits(int table, uint32_t low_bits) const {
  const int magnitudes = table_magnitudes(table), order = escape_order(table);
  const uint16_t* cost = encode_table(table).cost;
  uint32_t sum = 0, escapes = static_cast<uint32_t>(num_large_), extra = low_bits;
  const int inside = std::min(2 * magnitudes + 1, used_);
  for (int s = 0; s < inside; ++s) sum += uint32_t{counts_[s]} * cost[s];
  const auto escape_bits = [&](int32_t magnitude) {
    return static_cast<uint32_t>(
        1 + golomb_bits(static_cast<uint32_t>(magnitude - magnitudes - 1), order));
  };
  for (int s = inside; s < used_; ++s) {
    if (counts_[s] == 0) continue;
    escapes += counts_[s];
    extra += counts_[s] * escape_bits(symbol_magnitude(s));
  }
  for (int i = 0; i < num_large_; ++i) extra += escape_bits(large_[i]);
  return static_cast<double>(sum + escapes * cost[kEscapeSymbol]) / 4096 + 8.0 * (extra / 8);
}

double gg_bits(const float* x, int n, const BlockSetup& setup, std::vector<uint8_t>* extra_bytes) {
  uint8_t symbols[kBlock];
  extra_bytes->clear();
  BitWriter extra(extra_bytes);
  make_symbols(x, n, setup, symbols, &extra);
  const EncodeTable* own = &encode_table(setup.first_table());
  int64_t sum = 0;
  for (int i = 0; i < n; ++i) sum += own[setup.choice ? setup.choice[i] : 0].cost[symbols[i]];
  return static_cast<double>(sum) / 4096 + 8.0 * static_cast<double>(extra_bytes->size());
}

double golomb_block_bits(const float* x, int n, const BlockSetup& setup) {
  int64_t sum = 0;
  for (int i = 0; i < n; ++i) {
    const int32_t k = quantize_magnitude(x[i], setup.quantizer, i);
    const int order = tables::kGolombOrders[setup.table(i)] + setup.code.shift;
    sum += golomb_bits(zigzag((float_bits(x[i]) >> 31) != 0 ? -k : k), order);
  }
  return static_cast<double>(sum);
}

double block_error(const float* x, int n, const BlockSetup& setup) {
  const Quantizer& q = setup.quantizer;
  const bool integers = q.stochastic || setup.code.shift > 0;
  const int levels = integers ? kIntegerLevels : kCentroidLevels;
  double sum = 0;
  for (int i = 0; i < n; ++i) {
    const int32_t k = quantize_magnitude(x[i], q, i);
    const float magnitude = setup.code.step * level(setup.table(i), k, levels);
    const double difference = std::fabs(static_cast<double>(x[i])) - static_cast<double>(magnitude);
    sum += difference * difference;
  }
  return sum;
}

}  // namespace gct
