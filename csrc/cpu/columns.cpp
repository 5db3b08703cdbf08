#include "cpu/columns.h"

#include <algorithm>
#include <cmath>

#include "cpu/scratch.h"

namespace gct {
namespace {

// Rows that are looked at: an offset of half an octave shows on far fewer.
constexpr int64_t kSampledRows = 128;
constexpr int64_t kMinRows = 8;
// Of class kMinClass: a block that isn't all zero stays so.
constexpr float kSmallestMean = 0x1p-100f;

// Sums of |x| / class scale and of its square, by column.
struct ColumnSums {
  std::vector<float>&abs, &square;
  int64_t rows = 0;
  double live = 0;  // elements in blocks that aren't all zero

  ColumnSums(size_t columns, Scratch* scratch)
      : abs(scratch->column_abs), square(scratch->column_square) {
    abs.assign(columns, 0.0f);
    square.assign(columns, 0.0f);
  }
};

float inverse_class_scale(int scale_class) {
  float power = 0;
  scale_by_sixteenths(1.0f, -8 * scale_class, &power);
  return power;
}

// Adds the elements of one row; they may lie in several blocks.
void add_row(const Run& run, const EncodePlan& plan, const RunPlan& run_plan, int64_t row,
             ColumnSums* sums) {
  float scratch[kBlock];
  const int64_t columns = static_cast<int64_t>(sums->abs.size());
  for (int64_t begin = row * columns; begin < (row + 1) * columns;) {
    const int64_t block = begin / kBlock;
    const int64_t end = std::min((row + 1) * columns, (block + 1) * kBlock);
    const int c = plan.ws->classes[static_cast<size_t>(run_plan.first_block + block)];
    const int n = static_cast<int>(end - begin);
    if (c != kZeroClass) {
      const float* x = load_floats(run, plan.input->dtype, begin, n, scratch);
      const float inverse = inverse_class_scale(c);
      float* abs = &sums->abs[static_cast<size_t>(begin - row * columns)];
      float* square = &sums->square[static_cast<size_t>(begin - row * columns)];
      for (int i = 0; i < n; ++i) {
        const float ratio = bits_float(float_bits(x[i]) & 0x7fffffffu) * inverse;
        abs[i] += ratio;
        square[i] += ratio * ratio;
      }
      sums->live += n;
    }
    begin = end;
  }
  ++sums->rows;
}

ColumnSums sum_columns(const Run& run, const EncodePlan& plan, const RunPlan& run_plan) {
  ColumnSums sums(static_cast<size_t>(run.columns), &plan.ws->scratch());
  const int64_t rows = run.numel / run.columns;
  const int64_t stride = std::max<int64_t>(1, rows / kSampledRows);
  for (int64_t row = 0; row < rows; row += stride) add_row(run, plan, run_plan, row, &sums);
  return sums;
}

int8_t column_offset(float mean) {
  const int offset = mean > 0 ? scale_class(mean) : kMinColumnOffset;
  return static_cast<int8_t>(std::min(std::max(offset, kMinColumnOffset), kMaxColumnOffset));
}

// Whether the bits that a profile saves exceed what it takes, by a margin: the saving is an
// octave's bit only at high rates, and offsets of noise alone save nothing.
bool pays(const CodecParams& params, const std::vector<int8_t>& offsets, double numel) {
  double sum = 0, cost = 32;
  for (const int8_t offset : offsets) {
    sum += offset;
    cost += golomb_bits(zigzag(offset), 0);
  }
  const double saved = -0.25 * sum / static_cast<double>(offsets.size()) * numel;
  const double affordable = params.target == Target::kBits ? 0.04 * params.value * numel : numel;
  return cost < 0.7 * saved && cost < affordable;
}

// Block means of |x| with the columns' scales divided out: they vary with the rows alone, and no
// single large column decides them. Replaces means, classes and base class.
void divide_out_columns(const Run& run, const std::vector<int8_t>& offsets, EncodePlan* plan,
                        RunPlan* run_plan) {
  // With 1 / kBlock in them, exactly: sums of large values stay in range.
  std::vector<float>& inverse = plan->ws->scratch().column_inverse;
  inverse.resize(offsets.size() + kBlock);
  for (size_t j = 0; j < inverse.size(); ++j)
    inverse[j] = inverse_class_scale(offsets[j % offsets.size()]) * (1.0f / kBlock);
  float scratch[kBlock];
  double class_sum = 0, live = 0;
  for (int64_t b = 0; b < num_blocks(run.numel); ++b) {
    const size_t at = static_cast<size_t>(run_plan->first_block + b);
    if (plan->ws->classes[at] == kZeroClass) continue;
    const int n = static_cast<int>(std::min<int64_t>(kBlock, run.numel - b * kBlock));
    const float* x = load_floats(run, plan->input->dtype, b * kBlock, n, scratch);
    const float* factor = &inverse[static_cast<size_t>((b * kBlock) % run.columns)];
    float lanes[kLanes] = {};
    for (int i = 0; i < n; ++i)
      lanes[i % kLanes] += bits_float(float_bits(x[i]) & 0x7fffffffu) * factor[i];
    float sum = 0;
    for (const float lane : lanes) sum += lane;
    const float mean = std::max(sum * (float{kBlock} / static_cast<float>(n)), kSmallestMean);
    const int c = std::min(scale_class(mean), kMaxClass);
    plan->ws->block_mean[at] = mean;
    plan->ws->classes[at] = static_cast<int16_t>(c);
    class_sum += c;
    ++live;
  }
  run_plan->header.base_class = static_cast<int16_t>(std::lround(class_sum / std::max(live, 1.0)));
}

}  // namespace

void measure_columns(const Run& run, EncodePlan* plan, RunPlan* run_plan) {
  RunHeader& h = run_plan->header;
  if (run.columns < 2 || run.columns > int64_t{kMaxColumns} || run.numel < kMinRows * run.columns)
    return;
  const ColumnSums sums = sum_columns(run, *plan, *run_plan);
  const double seen = static_cast<double>(sums.rows) * static_cast<double>(run.columns);
  if (sums.live == 0) return;
  const float norm = static_cast<float>(seen / (static_cast<double>(sums.rows) * sums.live));
  std::vector<int8_t>& offsets = plan->ws->scratch().column_offsets;
  offsets.resize(sums.abs.size());
  ShapeMoments shape;
  for (size_t j = 0; j < offsets.size(); ++j) {
    offsets[j] = column_offset(sums.abs[j] * norm);
    shape.add(0, offsets[j], sums.abs[j], sums.square[j]);
  }
  if (!pays(*plan->params, offsets, sums.live / seen * static_cast<double>(run.numel))) return;
  divide_out_columns(run, offsets, plan, run_plan);
  shape.numel = sums.live;
  h.code.shape = shape.shape_index();
  h.columns = static_cast<uint32_t>(run.columns);
  run_plan->profile = plan->ws->profiles.size();
  std::vector<int8_t>& profiles = plan->ws->profiles;
  for (size_t j = 0; j < extended_columns(h.columns); ++j)
    profiles.push_back(offsets[j % offsets.size()]);
}

void write_profile(const int8_t* offsets, uint32_t columns, BitWriter* out) {
  for (uint32_t j = 0; j < columns; ++j) put_golomb(out, zigzag(offsets[j]), 0);
}

bool read_profiles(const std::vector<RunHeader>& runs, BitReader* bits,
                   std::vector<int8_t>* profiles) {
  for (const RunHeader& run : runs) {
    if (run.columns == 0) continue;
    const size_t begin = profiles->size();
    for (uint32_t j = 0; j < run.columns; ++j) {
      uint32_t code;
      if (!get_golomb(bits, 0, &code) || code > 64) return false;
      const int32_t offset = unzigzag(code);
      if (offset < kMinColumnOffset || offset > kMaxColumnOffset) return false;
      profiles->push_back(static_cast<int8_t>(offset));
    }
    for (size_t j = 0; j < kBlock; ++j) profiles->push_back((*profiles)[begin + j % run.columns]);
  }
  return bits->exhausted() && !bits->overrun();
}

}  // namespace gct
