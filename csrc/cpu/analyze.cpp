#include "cpu/analyze.h"

#include <algorithm>
#include <cmath>

#include "core/statistics.h"
#include "cpu/columns.h"
#include "cpu/thread_pool.h"

namespace gct {

void ShapeMoments::add(int n, int scale_class, double sum_abs, double sum_square) {
  const double inverse = inverse_scale(scale_class);
  numel += n;
  abs += sum_abs * inverse;
  square += sum_square * (inverse * inverse);
}

uint8_t ShapeMoments::shape_index() const { return shape_of_moments(numel, abs, square); }

namespace {

// Mean |x| where the plain sum overflowed; false if a value isn't finite.
bool mean_of_large(const float* x, int n, float* mean) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += std::fabs(static_cast<double>(x[i]));
  *mean = static_cast<float>(sum / n);
  return std::isfinite(sum);
}

// Sum of squares where float32 overflowed or lost its small terms.
double sum_of_squares(const float* x, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

// Mode, shape and base class of one run; block means from ws.block_mean[first_block]
// on.
class RunAnalyzer {
 public:
  RunAnalyzer(const EncodeInput& input, Workspace& ws) : input_(input), ws_(ws) {}

  void operator()(const Run& run, RunPlan* plan) {
    measure_blocks(run, *plan);
    ShapeMoments shape;
    double sum_abs = 0, class_sum = 0, square = 0;
    int64_t live_blocks = 0;
    RunHeader& h = plan->header;
    for (int64_t b = 0; b < num_blocks(h.numel); ++b) {
      const int n = static_cast<int>(std::min<int64_t>(kBlock, h.numel - b * kBlock));
      const size_t at = static_cast<size_t>(plan->first_block + b);
      float& mean = ws_.block_mean[at];
      if (!std::isfinite(mean) &&
          !mean_of_large(load_floats(run, input_.dtype, b * kBlock, n, scratch_), n, &mean))
        mean = 3.4e38f;
      const int c = scale_class(mean);
      if (c > kMaxClass) {
        h.mode = RunMode::kNonFinite;
        return;
      }
      if (c < kMinClass) continue;
      ++live_blocks;
      class_sum += c;
      const double block_abs = static_cast<double>(mean) * n;
      double block_square = static_cast<double>(ws_.block_square[at]);
      if (!(block_square >= 1e-30f && block_square <= 1e37f))
        block_square = sum_of_squares(load_floats(run, input_.dtype, b * kBlock, n, scratch_), n);
      sum_abs += block_abs;
      square += block_square;
      shape.add(n, c, block_abs, block_square);
    }
    if (live_blocks == 0) {
      h.mode = RunMode::kZero;
      return;
    }
    h.mode = RunMode::kCoded;
    h.base_class = static_cast<int16_t>(std::lround(class_sum / static_cast<double>(live_blocks)));
    h.code.shape = shape.shape_index();
    plan->signal = square;
    mean_abs_ = static_cast<float>(sum_abs / static_cast<double>(h.numel));
  }

  float mean_abs() const { return mean_abs_; }

 private:
  // The pass over the values: by threads where there are some, in any order.
  void measure_blocks(const Run& run, const RunPlan& plan) {
    const int64_t blocks = num_blocks(run.numel);
    const auto body = [&](int64_t stretch, int) {
      const int64_t end = std::min((stretch + 1) * kStretch, blocks);
      for (int64_t b = stretch * kStretch; b < end; ++b) {
        float scratch[kBlock];
        const int n = static_cast<int>(std::min<int64_t>(kBlock, run.numel - b * kBlock));
        const BlockMoments m =
            kernels().moments(load_floats(run, input_.dtype, b * kBlock, n, scratch), n);
        ws_.block_mean[static_cast<size_t>(plan.first_block + b)] =
            m.sum_abs / static_cast<float>(n);
        ws_.block_square[static_cast<size_t>(plan.first_block + b)] = m.sum_square;
      }
    };
    parallel_for(ws_.pool, div_up(blocks, kStretch), body);
  }

  static constexpr int64_t kStretch = int64_t{1} << kPieceBlocksLog2;  // blocks

  const EncodeInput& input_;
  Workspace& ws_;
  float mean_abs_ = 0;
  float scratch_[kBlock];
};

}  // namespace

const float* load_floats(const Run& run, DType dtype, int64_t offset, int n, float* scratch) {
  if (run.residual != nullptr) return run.residual + offset;
  if (dtype == DType::kFloat32) return static_cast<const float*>(run.data) + offset;
  if (dtype == DType::kFloat64) {
    const double* x = static_cast<const double*>(run.data) + offset;
    for (int i = 0; i < n; ++i) scratch[i] = static_cast<float>(x[i]);
    return scratch;
  }
  const uint16_t* halves = static_cast<const uint16_t*>(run.data) + offset;
  kernels().widen(halves, n, dtype == DType::kBFloat16, scratch);
  return scratch;
}

void analyze(const CodecParams& params, const EncodeInput& input, Workspace& ws, EncodePlan* plan) {
  plan->params = &params;
  plan->input = &input;
  plan->ws = &ws;
  plan->coded_blocks = plan->raw_numel = plan->nonfinite_runs = 0;
  plan->signal = plan->log2_step = 0;
  plan->runs.assign(static_cast<size_t>(input.num_runs), RunPlan());
  ws.run_stats.assign(static_cast<size_t>(input.num_runs), RunStats());
  RunAnalyzer analyzer(input, ws);
  for (int64_t i = 0; i < input.num_runs; ++i) {
    const Run& run = input.runs[i];
    RunPlan& p = plan->runs[static_cast<size_t>(i)];
    p.header.numel = run.numel;
    p.first_block = plan->coded_blocks;
    if (run.raw || params.kind == Kind::kRaw) {
      p.header.mode = RunMode::kRaw;
      plan->raw_numel += run.numel;
      continue;
    }
    const size_t needed = static_cast<size_t>(p.first_block + num_blocks(run.numel));
    if (ws.block_mean.size() < needed) {
      ws.block_mean.resize(needed);
      ws.block_square.resize(needed);
    }
    analyzer(run, &p);
    p.header.code.allocation8 = static_cast<uint8_t>(params.allocation8);
    plan->nonfinite_runs += p.header.mode == RunMode::kNonFinite ? 1 : 0;
    if (p.header.mode != RunMode::kCoded) continue;
    plan->coded_blocks = p.first_block + num_blocks(run.numel);
    plan->signal += p.signal;
    ws.run_stats[static_cast<size_t>(i)] = {analyzer.mean_abs(),
                                            tables::kShapes[p.header.code.shape]};
  }
  ws.classes.resize(static_cast<size_t>(plan->coded_blocks));
  assign_classes(0, plan->coded_blocks, plan);
}

// Column profiles where they pay. Not with the step in proportion to the block's scale (exponent
// 1): there a profile lowers the step of blocks whose large columns set their scale, which decides
// anew which elements become zero, and no training run has judged that yet.
void measure_profiles(EncodePlan* plan) {
  plan->ws->profiles.clear();
  if (plan->params->kind == Kind::kFixed || plan->params->allocation8 >= 8) return;
  for (size_t i = 0; i < plan->runs.size(); ++i) {
    RunPlan& p = plan->runs[i];
    if (p.header.mode != RunMode::kCoded) continue;
    measure_columns(plan->input->runs[i], plan, &p);
    plan->ws->run_stats[i].shape = tables::kShapes[p.header.code.shape];
  }
}

void assign_classes(int64_t begin, int64_t end, EncodePlan* plan) {
  Workspace& ws = *plan->ws;
  for (size_t b = static_cast<size_t>(begin); b < static_cast<size_t>(end); ++b) {
    const int c = scale_class(ws.block_mean[b]);
    ws.classes[b] = c < kMinClass ? kZeroClass : static_cast<int16_t>(std::min(c, kMaxClass));
  }
}

void count_classes(const EncodePlan& plan, const RunPlan& run, std::vector<ClassCount>* counts) {
  counts->assign(kMaxClass - kMinClass + 1, ClassCount());
  for (int64_t b = 0; b < num_blocks(run.header.numel); ++b) {
    const int c = plan.ws->classes[static_cast<size_t>(run.first_block + b)];
    if (c == kZeroClass) continue;
    ClassCount& count = (*counts)[static_cast<size_t>(c - kMinClass)];
    count.scale_class = c;
    ++count.blocks;
    count.numel += static_cast<double>(std::min<int64_t>(kBlock, run.header.numel - b * kBlock));
  }
  const auto unused = [](const ClassCount& count) { return count.blocks == 0; };
  counts->erase(std::remove_if(counts->begin(), counts->end(), unused), counts->end());
}

}  // namespace gct
