#include "cpu/block_cost.h"

#include <cmath>

#include "cpu/block_symbols.h"

namespace gct {

void BlockCost::quantize(const float* x, int n, const Quantizer& q) {
  Quantizer widest = q;
  widest.magnitudes = tables::kMaxMagnitude;
  n_ = n;
  if (!kernels().quantize(x, n, widest, symbols_)) return;
  for (int i = 0; i < n; ++i) {
    if (symbols_[i] == kEscapeSymbol) large_[i] = quantize_magnitude(x[i], q, i);
  }
}

int32_t BlockCost::magnitude(int i) const {
  return symbols_[i] == kEscapeSymbol ? large_[i] : symbol_magnitude(symbols_[i]);
}

uint32_t BlockCost::escape_bits(const uint32_t* escapes, int magnitudes, int order) const {
  uint32_t bits = 0;
  for (const int i : Escapes(escapes, n_)) {
    const auto excess = static_cast<uint32_t>(magnitude(i) - magnitudes - 1);
    bits += static_cast<uint32_t>(1 + golomb_bits(excess, order));
  }
  return bits;
}

double BlockCost::bits(int table, uint32_t low_bits) const {
  const int magnitudes = table_magnitudes(table);
  uint32_t escapes[kBlock / kLanes];
  const SymbolCost cost = kernels().cost(symbols_, n_, magnitude_table(table), magnitudes, escapes);
  uint32_t extra = low_bits;
  if (cost.any_escape != 0) extra += escape_bits(escapes, magnitudes, escape_order(table));
  return static_cast<double>(cost.sum) / 4096 + 8.0 * (extra / 8);
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
