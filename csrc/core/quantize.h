// From values to integers and back. Everything that decides a byte or a decoded value is here and
// uses only IEEE operations in a stated order (no libm, no contraction), so that every
// implementation agrees bit for bit.
//
// Ties: k = trunc(|x| * (1 / step) + bias) in float32, one rounding after the product and one after
// the sum. Non-finite values never get here: a run that holds one is sent as a marker and decodes
// to NaN.
#pragma once

#include "core/gg_tables.h"

namespace gct {

// Class of a block whose values all quantize to zero; it has no symbols.
constexpr int16_t kZeroClass = INT16_MIN;
// Block means under 2^-100 count as zero and over 2^124 as not finite: steps and their reciprocals
// must stay normal float32 numbers.
constexpr int kMinClass = -200;
constexpr int kMaxClass = 248;
// Low bits sent aside for blocks far above the table grid; beyond it a run is sent raw.
constexpr int kMaxShift = 18;

// Scale class of a block: round(2 log2(mean |x|)), half-octave steps, from the float's bits.
GCT_HD inline int scale_class(float mean) {
  const uint32_t bits = float_bits(mean);
  const int exponent = static_cast<int>(bits >> 23) - 127;
  const uint32_t mantissa = bits & 0x7fffffu;
  constexpr uint32_t kQuarter = 0x1837f1u;        // 2^(1/4)
  constexpr uint32_t kThreeQuarters = 0x5744fdu;  // 2^(3/4)
  return 2 * exponent + (mantissa >= kQuarter) + (mantissa >= kThreeQuarters);
}

// x * 2^(sixteenths / 16); false if the power or the result leaves the normal floats.
GCT_HD inline bool scale_by_sixteenths(float x, int sixteenths, float* result) {
  const int octaves = sixteenths >> 4;
  if (octaves < -126 || octaves > 126) return false;
  const float power = bits_float(static_cast<uint32_t>(octaves + 127) << 23);
  *result = (x * model_tables::kExp2Sixteenths[sixteenths & 15]) * power;
  const uint32_t biased = (float_bits(*result) >> 23) & 0xffu;
  return biased != 0 && biased != 0xffu;
}

// How far, in 1/16 octave, a block's exact ratio may lie above that of its table: the header's
// ratio may be two tables lower or one higher, and tables are quarter octaves apart.
constexpr int kMinAbove = -6;
constexpr int kMaxAbove = 9;

// -16 log2(step), rounded, from the float's bits.
GCT_HD inline int step_ratio(float step) {
  const uint32_t bits = float_bits(step);
  int sixteenths = 0;
  while (sixteenths < 16 && (bits & 0x7fffffu) >= model_tables::kSixteenthMantissas[sixteenths])
    ++sixteenths;
  return -(16 * (static_cast<int>(bits >> 23) - 127) + sixteenths);
}

// Which table a block uses and how far its integers are shifted before it.
struct BlockCode {
  float step = 0;
  int t = 0;      // log2(mean |x| / step) of the table, in quarter octaves
  int above = 0;  // for decoding: the block's own log2(mean |x| / step) less the table's, in 1/16
  int table = 0;  // of the run's shape and t
  int shift = 0;
};

// Deadzone, in steps, at a ratio (in 1/16 octave) between those of two tables: the rate must not
// jump where the table changes. For the encoder alone.
GCT_HD inline float deadzone_at(int shape, double ratio) {
  const int last = tables::kTablesPerShape - 1;
  double at = ratio * 0.25 - tables::kTableMin;
  at = at < 0 ? 0 : at > last ? last : at;
  const uint8_t* deadzones = model_tables::kDeadzones + shape * tables::kTablesPerShape;
  const int i = at < last ? static_cast<int>(at) : last - 1;
  return static_cast<float>(deadzones[i] + (at - i) * (deadzones[i + 1] - deadzones[i])) *
         (1.0f / 256.0f);
}

// The part of a run's header that decides how its blocks are coded.
struct RunCode {
  float step = 0;          // step of a block of class 0
  int16_t log2_ratio = 0;  // log2(mean |x| of class 0 / step), in 1/16, or some quarter octaves
                           // off, for tables that suit the values better
  int16_t step_ratio = 0;  // for decoding: the same by the step, nothing off
  uint8_t shape = 0;
  uint8_t allocation8 = 0;
};

// log2(mean |x| / step) of a class, in 1/16: the step grows with the class by allocation8 / 8.
GCT_HD inline int class_ratio(const RunCode& run, int scale_class) {
  return run.log2_ratio + (8 - run.allocation8) * scale_class;
}

// False if the class can't be coded with this run's step (corrupt on the decoder's side).
GCT_HD inline bool block_code(const RunCode& run, int scale_class, BlockCode* code) {
  int t = (class_ratio(run, scale_class) + 2) >> 2;
  code->shift = 0;
  if (t > tables::kTableMax) {
    code->shift = (t - tables::kTableMax + 3) >> 2;
    t -= 4 * code->shift;
  }
  if (t < tables::kTableMin) t = tables::kTableMin;
  const int above = run.step_ratio + (8 - run.allocation8) * scale_class - 4 * t;
  code->above = above < kMinAbove ? kMinAbove : above > kMaxAbove ? kMaxAbove : above;
  code->t = t;
  code->table = table_index(run.shape, t);
  return code->shift <= kMaxShift &&
         scale_by_sixteenths(run.step, run.allocation8 * scale_class, &code->step);
}

// Columns of a matrix differ in scale as its rows do; a run may carry a half-octave offset for
// each.
constexpr int kMinColumnOffset = -12;
constexpr int kMaxColumnOffset = 8;
constexpr uint32_t kMaxColumns = 1u << 16;
// Where columns differ an element may be 4 octaves further above its block's mean: beyond this
// shift magnitudes might not stay below kMagnitudeLimit.
constexpr int kSafeShiftOfProfiles = 15;

// Table of an element, as an index among its shape's, from its block's t and its column's offset.
GCT_HD inline int element_table(int t, int column_offset) {
  const int moved = t + 2 * column_offset;
  if (moved < tables::kTableMin) return 0;
  return (moved > tables::kTableMax ? tables::kTableMax : moved) - tables::kTableMin;
}

// Random bits from (seed, position) alone (SplitMix64's finalizer), never from the order of
// execution.
GCT_HD inline float uniform_unit(uint64_t seed, uint64_t position) {
  uint64_t z = seed + (position + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  return static_cast<float>(z >> 40) * (1.0f / 16777216.0f);
}

// What quantizing one block needs.
struct Quantizer {
  float inverse_step = 0;
  float bias = 0.5f;  // 1/2 - deadzone
  int magnitudes = 0;
  bool stochastic = false;
  uint64_t seed = 0;
  uint64_t position = 0;  // of the block's first element

  // Where columns differ: table of each element among its shape's, and what belongs to each table.
  const uint8_t* tables = nullptr;
  const float* biases = nullptr;
  const int32_t* limits = nullptr;

  GCT_HD float bias_at(int i) const { return tables ? biases[tables[i]] : bias; }
  GCT_HD int32_t magnitudes_at(int i) const { return tables ? limits[tables[i]] : magnitudes; }
};

// Code and quantizer of a block whose columns don't differ, at the exact log2 of the step of class
// 0. False for a zero block or one that has no code.
GCT_HD inline bool prepare_block(const RunCode& run, int scale_class, double log2_step,
                                 BlockCode* code, Quantizer* q) {
  if (scale_class == kZeroClass || !block_code(run, scale_class, code)) return false;
  const double ratio = (8 - run.allocation8) * scale_class - 16 * log2_step;
  q->inverse_step = 1.0f / code->step;
  q->bias = 0.5f - deadzone_at(run.shape, ratio);
  q->magnitudes = table_magnitudes(code->table);
  q->tables = nullptr;
  return true;
}

// Values are bounded before the conversion to an integer; larger ones can't occur in a block that
// has a code.
constexpr float kMagnitudeLimit = 1073741824.0f;  // 2^30

GCT_HD inline int32_t quantize_magnitude(float x, const Quantizer& q, int i) {
  const float bias =
      q.stochastic ? uniform_unit(q.seed, q.position + static_cast<uint64_t>(i)) : q.bias_at(i);
  const float magnitude = bits_float(float_bits(x) & 0x7fffffffu) * q.inverse_step + bias;
  return static_cast<int32_t>(magnitude < kMagnitudeLimit ? magnitude : kMagnitudeLimit);
}

// A symbol: 0, +1, -1, +2, -2, ... or the escape beyond `limit`.
GCT_HD inline int magnitude_symbol(int32_t magnitude, bool negative, int32_t limit) {
  if (magnitude > limit) return kEscapeSymbol;
  return magnitude == 0 ? 0 : 2 * magnitude - (negative ? 0 : 1);
}

// What a segment's symbols stand for.
enum class Levels : uint8_t {
  kCentroids = 0,  // the mean of the symbol's bin: least error
  kIntegers = 1,   // the magnitude itself, after stochastic rounding
  kUnitGain = 2,   // centroids times a gain: decoded values are as large as the input
};

// The same for a block, as a number: gains differ by the block's exact ratio.
constexpr int kCentroidLevels = 0;
constexpr int kIntegerLevels = 1;
constexpr int kFirstGainLevels = 2;
constexpr int kLevelSets = kFirstGainLevels + kMaxAbove - kMinAbove + 1;

GCT_HD inline int level_set(Levels levels, const BlockCode& code) {
  if (levels == Levels::kIntegers || code.shift > 0) return kIntegerLevels;
  return levels == Levels::kCentroids ? kCentroidLevels : kFirstGainLevels + code.above - kMinAbove;
}

// Decoded magnitude of symbol magnitude k.
GCT_HD inline float level(int table, int k, int set) {
  if (k == 0) return 0.0f;
  if (set == kIntegerLevels) return static_cast<float>(k);
  const int m = table_magnitudes(table);
  const int offset = table_offsets(table)[k <= m ? k : m + 1];
  const float centroid = static_cast<float>(k) - static_cast<float>(offset) * (1.0f / 4096.0f);
  if (set == kCentroidLevels) return centroid;
  return centroid * table_gain(table, set - kFirstGainLevels + kMinAbove);
}

// Order of the exp-Golomb code of a magnitude beyond the table: the tail is as long as the scale
// over the step.
GCT_HD inline int escape_order(int table) {
  const int t = table % tables::kTablesPerShape + tables::kTableMin;
  return t > 0 ? t >> 2 : 0;
}

}  // namespace gct
