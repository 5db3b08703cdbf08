#include "cpu/restore.h"

#include <algorithm>
#include <cmath>

#include "cpu/escapes.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"

namespace gct {
namespace {

const float* values_of(const EncodePlan& plan, size_t run) {
  return static_cast<const float*>(plan.input->runs[run].data);
}

bool has_simple_run(const EncodePlan& plan, size_t run) {
  const RunHeader& h = plan.runs[run].header;
  const float* x = values_of(plan, run);
  switch (h.mode) {
    case RunMode::kZero:
      return true;
    case RunMode::kRaw:
      // Two ranks that add NaNs of theirs in another order than the other one get other bits.
      return std::none_of(x, x + h.numel, [](float value) { return std::isnan(value); });
    case RunMode::kCoded:
      return h.columns == 0;
    default:
      return false;
  }
}

bool has_simple_blocks(const EncodePlan& plan) {
  bool simple = true;
  for_each_block(plan, 0, plan.coded_blocks, [&](size_t r, int64_t, int, int64_t b) {
    const int scale_class = plan.ws->classes[static_cast<size_t>(b)];
    BlockCode code;
    if (simple && scale_class != kZeroClass)
      simple = block_code(plan.runs[r].header.code, scale_class, &code) && code.shift == 0;
  });
  return simple;
}

// What the blocks of one class in a run have in common.
struct RestoredClass {
  int64_t run = -1;
  Quantizer quantizer;
  float step = 0;
  int table = 0, set = 0;
  const LevelTable* levels = nullptr;
};

// The blocks of a piece; what follows from run and class is worked out once for each.
class PieceRestorer {
 public:
  PieceRestorer(const EncodePlan& plan, float factor) : plan_(plan), factor_(factor) {
    const bool gain = plan.params->reconstruction == Reconstruction::kUnitGain;
    levels_ = gain ? Levels::kUnitGain : Levels::kCentroids;
  }

  void restore(size_t run, int64_t local, int n, int64_t block, float* out) {
    const int scale_class = plan_.ws->classes[static_cast<size_t>(block)];
    if (scale_class == kZeroClass) {
      std::fill(out, out + n, 0.0f);
      return;
    }
    const RestoredClass& c = of_class(run, scale_class);
    const float* x = values_of(plan_, run) + local * kBlock;
    uint32_t escapes[kBlock / kLanes];
    kernels().restore(x, n, c.quantizer, *c.levels, c.step, out, escapes);
    for (const int i : Escapes(escapes, n)) restore_escape(c, out + i);
  }

 private:
  static void restore_escape(const RestoredClass& c, float* value) {
    const int32_t k = quantize_magnitude(*value, c.quantizer, 0);
    const float magnitude = c.step * level(c.table, k, c.set);
    *value = (float_bits(*value) >> 31) != 0 ? -magnitude : magnitude;
  }

  const RestoredClass& of_class(size_t run, int scale_class) {
    RestoredClass& c = classes_[scale_class - kMinClass];
    if (c.run == static_cast<int64_t>(run)) return c;
    RunCode run_code = plan_.runs[run].header.code;
    run_code.step_ratio = static_cast<int16_t>(step_ratio(run_code.step));  // as the decoder does
    BlockCode code;
    prepare_block(run_code, scale_class, plan_.log2_step, &code, &c.quantizer);  // it has a code
    c.run = static_cast<int64_t>(run);
    c.step = factor_ * code.step;
    c.table = code.table;
    c.set = level_set(levels_, code);
    c.levels = level_tables(run_code.shape, c.set) + (code.t - tables::kTableMin);
    return c;
  }

  const EncodePlan& plan_;
  const float factor_;
  Levels levels_;
  RestoredClass classes_[kMaxClass - kMinClass + 1];
};

}  // namespace

bool restore_values(const EncodePlan& plan, float factor, float* out) {
  const CodecParams& params = *plan.params;
  if (params.kind != Kind::kGG || params.effort != Effort::kNormal) return false;
  if (params.rounding != Rounding::kDeterministic) return false;
  if (plan.input->dtype != DType::kFloat32) return false;
  for (size_t run = 0; run < plan.runs.size(); ++run) {
    if (!has_simple_run(plan, run)) return false;
  }
  if (!has_simple_blocks(plan)) return false;

  std::vector<int64_t>& begins = plan.ws->scratch().run_begins;
  begins.clear();
  int64_t begin = 0;
  for (size_t run = 0; run < plan.runs.size(); ++run) {
    const RunHeader& h = plan.runs[run].header;
    float* values = out + begin;
    begins.push_back(begin);
    begin += h.numel;
    if (h.mode == RunMode::kZero) std::fill(values, values + h.numel, 0.0f);
    if (h.mode == RunMode::kRaw) {
      const float* x = values_of(plan, run);
      for (int64_t i = 0; i < h.numel; ++i) values[i] = factor * x[i] + 0.0f;
    }
  }
  constexpr int64_t kStretch = int64_t{1} << kPieceBlocksLog2;
  parallel_for(plan.ws->pool, div_up(plan.coded_blocks, kStretch), [&](int64_t i, int) {
    PieceRestorer piece(plan, factor);
    const int64_t end = std::min((i + 1) * kStretch, plan.coded_blocks);
    for_each_block(plan, i * kStretch, end, [&](size_t r, int64_t local, int n, int64_t b) {
      piece.restore(r, local, n, b, out + begins[r] + local * kBlock);
    });
  });
  return true;
}

}  // namespace gct
