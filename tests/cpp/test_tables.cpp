// The rules that an entropy model must keep, on every generated table and its run-time forms.
#include <algorithm>
#include <cmath>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/trellis.h"

namespace gct {
namespace {

using tables::kTablesPerShape;

void test_frequencies() {
  for (int table = 0; table < kNumTables; ++table) {
    const int magnitudes = table_magnitudes(table);
    CHECK(magnitudes >= 1 && magnitudes <= tables::kMaxMagnitude, table, magnitudes);
    const uint16_t* f = table_freqs(table);
    uint32_t sum = f[0] + f[magnitudes + 1];
    for (int k = 1; k <= magnitudes; ++k) sum += 2u * f[k];
    CHECK(sum == kProbTotal, table, sum);
    for (int i = 0; i < magnitudes + 2; ++i) CHECK(f[i] >= 1 && f[i] < kProbTotal, table, i, f[i]);
    // A unimodal density and equal bins beyond the first: later magnitudes are never likelier.
    for (int k = 2; k <= magnitudes; ++k) CHECK(f[k] <= f[k - 1], table, k);
  }
  CHECK(tables::kTableStart[0] == 0);
  const size_t entries = sizeof tables::kFreqs / sizeof tables::kFreqs[0];
  CHECK(tables::kTableStart[kNumTables] == entries, entries);
  CHECK(sizeof tables::kCentroidOffsets == sizeof tables::kFreqs);
}

void test_class_models() {
  constexpr int kSymbols = 2 * tables::kClassDeltaMax + 3;
  CHECK(sizeof tables::kClassFreqs / 2 == kSymbols * tables::kNumClassModels);
  for (int model = 0; model < tables::kNumClassModels; ++model) {
    uint32_t sum = 0;
    for (int s = 0; s < kSymbols; ++s) {
      const uint16_t f = tables::kClassFreqs[model * kSymbols + s];
      CHECK(f >= 1 && f < kProbTotal, model, s, f);
      sum += f;
    }
    CHECK(sum == kProbTotal, model, sum);
  }
}

// A level stands in its bin: offsets of at most half a step (of which the deadzone moves the bin's
// lower end up, never below k - 1/2), and levels ascend.
void test_offsets() {
  for (int table = 0; table < kNumTables; ++table) {
    float before = 0;
    for (int k = 1; k <= table_magnitudes(table) + 3; ++k) {
      const int offset = table_offsets(table)[std::min(k, table_magnitudes(table) + 1)];
      CHECK(std::abs(offset) <= 2048, table, k, offset);
      const float value = level(table, k, kCentroidLevels);
      CHECK(value == static_cast<float>(k) - static_cast<float>(offset) / 4096, table, k, value);
      CHECK(value > before, table, k, value);
      CHECK(level(table, k, kIntegerLevels) == static_cast<float>(k), table, k);
      for (int above = kMinAbove; above <= kMaxAbove; ++above) {
        const int set = kFirstGainLevels + above - kMinAbove;
        CHECK(level(table, k, set) == value * table_gain(table, above), table, k, above);
      }
      before = value;
    }
    for (int set = 0; set < kLevelSets; ++set) CHECK(level(table, 0, set) == 0.0f, table, set);
    CHECK(table_offsets(table)[0] == 0, table);
  }
}

// A centroid is no larger than what it stands for, and smaller steps lose less of it. Where steps
// are small the error is step^2 / 12 and the gain 1 + D / E x^2, which is at most D / (E|x|)^2
// more.
void test_gains() {
  for (int table = 0; table < kNumTables; ++table) {
    const int t = table % kTablesPerShape + tables::kTableMin;
    for (int above = -2; above <= 1; ++above) {
      const double gain = static_cast<double>(table_gain(table, above));
      CHECK(gain >= 1 && gain <= 4, table, above, gain);
      if (t >= 5) CHECK(gain < 1 + 1.1 / 12 * std::exp2(-t / 2.0 - above / 8.0), table, above);
    }
  }
  // From table to table: within a quarter octave levels stay, and a sharp end of the distribution,
  // as shape 6 has, may cross them.
  for (int table = 1; table < kNumTables; ++table) {
    if (table % kTablesPerShape > 0)
      CHECK(table_gain(table, 0) <= table_gain(table - 1, 0), table, table_gain(table, 0));
  }
  CHECK(table_gain(0, -6) == table_gain(0, 0), "no ratio is below the first table's");
  CHECK(table_gain(kTablesPerShape - 1, 9) == table_gain(kTablesPerShape - 1, 0), "or above");
}

void test_step_ratios() {
  for (int ratio = -16 * 120; ratio <= 16 * 120; ++ratio) {
    for (double off : {-0.49, 0.0, 0.49}) {
      const float step = static_cast<float>(std::exp2(-(ratio + off) / 16));
      CHECK(step_ratio(step) == ratio, ratio, off, step);
    }
  }
}

void test_quantizer_numbers() {
  for (int table = 0; table < kNumTables; ++table) {
    CHECK(tables::kDeadzones[table] <= 0.3 * 256, table, tables::kDeadzones[table]);
    CHECK(tables::kGolombOrders[table] < 8, table);
    // A step smaller by a quarter octave costs more bits and leaves less error; the error is in
    // units of step^2, which shrink by sqrt(2).
    if (table % kTablesPerShape == 0) continue;
    CHECK(tables::kModelRate[table] >= tables::kModelRate[table - 1], table);
    const double error = tables::kModelDistortion[table] / std::sqrt(2.0);
    CHECK(error <= tables::kModelDistortion[table - 1] + 1, table, error);  // both are rounded
    // A bin of one step, flat: step^2 / 12; a slope and the deadzone change that by a few percent.
    const bool fine = table % kTablesPerShape + tables::kTableMin >= 5;
    CHECK(!fine || tables::kModelDistortion[table] < 16384 / 12.0 * 1.1, table, error);
  }
}

void test_shapes() {
  for (int i = 1; i < tables::kNumShapes; ++i)
    CHECK(tables::kShapes[i] > tables::kShapes[i - 1], i);
  for (int i = 1; i + 1 < tables::kNumShapes; ++i)
    CHECK(tables::kRhoLimits[i] < tables::kRhoLimits[i - 1], i);
  for (int i = 0; i < 16; ++i) {  // the nearest float of each power
    const float nearest = static_cast<float>(std::exp2(i / 16.0));
    CHECK(tables::kExp2Sixteenths[i] == nearest, i, tables::kExp2Sixteenths[i]);
  }
}

void test_fixed_levels() {
  for (int shape = 0; shape < tables::kNumShapes; ++shape) {
    for (int bits = 1; bits <= 8; ++bits) {
      const uint32_t* levels = fixed_levels(shape, bits);
      const int count = 1 << (bits - 1);
      CHECK(levels[0] > 0, shape, bits);
      for (int i = 1; i < count; ++i) CHECK(levels[i] > levels[i - 1], shape, bits, i);
      for (int i = 0; i < count; ++i) {  // exact in float32
        const double exact = static_cast<double>(static_cast<float>(levels[i]));
        CHECK(exact == levels[i], shape, bits, levels[i]);
      }
    }
    // One level, and the mean of |x| is the least-error one: exactly 1.
    CHECK(fixed_levels(shape, 1)[0] == 65536, shape, fixed_levels(shape, 1)[0]);
  }
  CHECK(sizeof tables::kFixedLevels / 4 == 255u * tables::kNumShapes);
}

// freqs: in the order of the slots. The symbols are numbered so, but the last one may be `last`.
void check_runtime_forms(const EncodeTable& encode, const DecodeTable& decode,
                         const std::vector<uint32_t>& freqs, size_t last) {
  uint32_t slot = 0;
  for (size_t i = 0; i < freqs.size(); ++i) {
    const size_t s = i + 1 == freqs.size() ? last : i;
    for (uint32_t j = 0; j < freqs[i]; ++j, ++slot) {
      const uint32_t entry = decode.slot[slot];
      CHECK(entry == (j | freqs[i] << 12 | s << 24 | (s == kEscapeSymbol ? 1u << 31 : 0)), s, slot,
            entry);
    }
    CHECK((encode.entry[s].packed & 0xfffu) == freqs[i], s);
    // Half a unit of 1/4096 bit from rounding.
    const double bits = 12 - std::log2(static_cast<double>(freqs[i]));
    CHECK(std::fabs(encode.cost[s] - 4096 * bits) <= 0.5, s, encode.cost[s]);
  }
  CHECK(slot == kProbTotal, slot);
}

void check_trellis_table(int table, int quantizer) {
  const int magnitudes = table_magnitudes(table), shape = table / tables::kTablesPerShape;
  const int in_shape = trellis_table(table % tables::kTablesPerShape, quantizer);
  std::vector<uint32_t> freqs;
  for (int s = 0; s <= 2 * magnitudes; ++s)
    freqs.push_back(trellis_freqs(table, quantizer)[(s + 1) / 2]);
  freqs.push_back(trellis_freqs(table, quantizer)[magnitudes + 1]);
  check_runtime_forms(trellis_encode_tables(shape)[in_shape],
                      trellis_decode_tables(shape)[in_shape], freqs, kEscapeSymbol);
  const LevelTable& levels = trellis_level_tables(shape)[in_shape];
  CHECK(levels.level[0] == 0 && levels.level[kEscapeSymbol] == 0, table);
  for (int k = 1; k <= magnitudes; ++k) {
    const float value = trellis_level(table, quantizer, k);
    CHECK(levels.level[2 * k - 1] == value && levels.level[2 * k] == -value, table, k);
    // Centroids rise, but for one at 0 where no sample had a magnitude, and stay near the places of
    // the quantizer's levels: the encoder's choice of cheap symbols draws them down a little more
    // than the half step of a plain quantizer's cell.
    const float place = static_cast<float>(k) - 0.5f * static_cast<float>(quantizer);
    CHECK(std::fabs(value - place) <= 0.6f, table, quantizer, k, value);
    CHECK(value >= trellis_level(table, quantizer, k - 1), table, quantizer, k);
  }
}

void test_runtime_forms() {
  for (int table = 0; table < kNumTables; ++table) {
    std::vector<uint32_t> freqs;
    const int magnitudes = table_magnitudes(table), shape = table / tables::kTablesPerShape;
    const int in_shape = table % tables::kTablesPerShape;
    for (int s = 0; s <= 2 * magnitudes; ++s) freqs.push_back(table_freqs(table)[(s + 1) / 2]);
    freqs.push_back(table_freqs(table)[magnitudes + 1]);
    check_runtime_forms(encode_table(table), decode_tables(shape)[in_shape], freqs, kEscapeSymbol);
    for (int set = 0; set < kLevelSets; ++set) {
      const LevelTable& levels = level_tables(shape, set)[in_shape];
      CHECK(levels.level[0] == 0 && levels.level[kEscapeSymbol] == 0, table);
      for (int k = 1; k <= table_magnitudes(table); ++k) {
        CHECK(levels.level[2 * k - 1] == level(table, k, set), table, k);
        CHECK(levels.level[2 * k] == -level(table, k, set), table, k);
      }
    }
  }
  for (int table = 0; table < kNumTables; ++table) {
    for (int q = 0; q < kQuantizers; ++q) check_trellis_table(table, q);
  }
  for (int model = 0; model < tables::kNumClassModels; ++model) {
    constexpr int kSymbols = 2 * tables::kClassDeltaMax + 3;
    const uint16_t* f = tables::kClassFreqs + model * kSymbols;
    check_runtime_forms(class_encode_table(model), class_decode_table(model), {f, f + kSymbols},
                        kSymbols - 1);
  }
}

}  // namespace
}  // namespace gct

int main() {
  gct::test_frequencies();
  gct::test_class_models();
  gct::test_offsets();
  gct::test_gains();
  gct::test_step_ratios();
  gct::test_quantizer_numbers();
  gct::test_shapes();
  gct::test_fixed_levels();
  gct::test_runtime_forms();
  return gct::test::result();
}
