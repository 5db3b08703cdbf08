#include "cpu/trellis_blocks.h"

#include <cmath>

#include "cpu/block_symbols.h"

namespace gct {
namespace {

const float* values(const EncodePlan& plan, const BlockPlace& place, float* scratch) {
  return load_floats(plan.input->runs[place.run], plan.input->dtype, place.block * kBlock, place.n,
                     scratch);
}

float in_steps(float x, const Quantizer& q) {
  const float magnitude = bits_float(float_bits(x) & 0x7fffffffu) * q.inverse_step;
  return magnitude < kMagnitudeLimit ? magnitude : kMagnitudeLimit;
}

}  // namespace

void add_block(const BlockSetup& setup, const float* x, int n, size_t place,
               TrellisScratch* trellis) {
  uint8_t choice[kBlock];
  for (int i = 0; i < n; ++i)
    choice[i] = static_cast<uint8_t>(setup.table(i) % tables::kTablesPerShape);
  const TrellisCosts* costs = trellis->prices.at(setup.code.table / tables::kTablesPerShape,
                                                 setup.ratio - 4 * setup.code.t);
  trellis->path.add(x, n, setup.quantizer.inverse_step, costs, choice, place);
}

void put_trellis_escapes(const float* x, int n, const BlockSetup& setup, const uint8_t* symbols,
                         const uint8_t* used, BitWriter* extra) {
  const TrellisCosts* costs = trellis_cost_tables(setup.code.table / tables::kTablesPerShape);
  for (int i = 0; i < n; ++i) {
    if (symbols[i] != kEscapeSymbol) continue;
    const int32_t k = trellis_escape(in_steps(x[i], setup.quantizer), costs[used[i]]);
    put_escape(extra, float_bits(x[i]) >> 31 != 0, k - table_magnitudes(setup.table(i)) - 1,
               setup.table(i));
  }
}

TrellisSample::Result TrellisSample::measure(const EncodePlan& plan,
                                             const std::vector<BlockPlace>& blocks,
                                             const RunCode& code, double log2_step,
                                             bool free_start) {
  float scratch[kBlock];
  symbols_.resize(blocks.size() * kBlock);
  used_.resize(symbols_.size());
  trellis_.path.begin(free_start);
  for (size_t b = 0; b < blocks.size(); ++b) {
    if (!setup_.prepare(plan, blocks[b], code, log2_step) || setup_.code.shift > 0) continue;
    add_block(setup_, values(plan, blocks[b], scratch), blocks[b].n, b, &trellis_);
  }
  trellis_.path.finish(symbols_.data(), used_.data());
  Result result = {0, 0, 0};
  for (size_t b = 0; b < blocks.size(); ++b) {
    if (!setup_.prepare(plan, blocks[b], code, log2_step)) continue;
    count(plan, blocks[b], &symbols_[b * kBlock], &used_[b * kBlock], &result);
  }
  return result;
}

// Of the block that setup_ is prepared for.
void TrellisSample::count(const EncodePlan& plan, const BlockPlace& block, const uint8_t* symbols,
                          const uint8_t* used, Result* result) {
  float scratch[kBlock];
  const float* x = values(plan, block, scratch);
  const int shape = setup_.code.table / tables::kTablesPerShape;
  const bool shifted = setup_.code.shift > 0;
  uint8_t plain[kBlock];
  extra_.clear();
  BitWriter extra(&extra_);
  if (shifted) {
    make_symbols(x, block.n, setup_, plain, &extra);
  } else {
    put_trellis_escapes(x, block.n, setup_, symbols, used, &extra);
  }
  int64_t length = 0;
  double sum = 0;
  for (int i = 0; i < block.n; ++i) {
    length += shifted ? encode_table(setup_.table(i)).cost[plain[i]]
                      : trellis_encode_tables(shape)[used[i]].cost[symbols[i]];
    int32_t k = symbol_magnitude(symbols[i]);
    if (shifted) {
      k = quantize_magnitude(x[i], setup_.quantizer, i);
    } else if (symbols[i] == kEscapeSymbol) {
      k = trellis_escape(in_steps(x[i], setup_.quantizer), trellis_cost_tables(shape)[used[i]]);
    }
    const float steps = shifted ? level(setup_.table(i), k, kIntegerLevels)
                                : trellis_level(setup_.table(i), used[i] & 1, k);
    const double error =
        std::fabs(static_cast<double>(x[i])) - static_cast<double>(setup_.code.step * steps);
    sum += error * error;
  }
  const double step = static_cast<double>(setup_.code.step);
  const double bits = static_cast<double>(length) / 4096 + 8.0 * static_cast<double>(extra_.size());
  result->bits += bits;
  result->error += sum;
  result->cost += sum / (step * step) + static_cast<double>(kTrellisLambda) * bits;
}

size_t TrellisSample::capacity_bytes() const {
  return trellis_.capacity_bytes() + symbols_.capacity() + used_.capacity() + extra_.capacity();
}

}  // namespace gct
