#include "cpu/low_rank_encoder.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "cpu/low_rank.h"

namespace gct {
namespace {

constexpr double kAim = 0.97;  // of the payload: the model is not that exact
constexpr int kMaxAttempts = 4;
// Of the cost: the model isn't that exact, and coarser factors may follow.
constexpr double kDoubt = 1.03;
// Beyond it a block's mean would leave the classes; values less a product can.
constexpr float kLargest = 1e37f;

// The first columns of a factor, each multiplied by its scale.
std::vector<float> scaled_columns(const std::vector<float>& factor,
                                  const std::vector<double>& scales) {
  const size_t rank = scales.size(), rows = factor.size() / kLowRankWidth;
  std::vector<float> result(rows * rank);
  for (size_t j = 0; j < rows; ++j) {
    for (size_t k = 0; k < rank; ++k)
      result[j * rank + k] =
          static_cast<float>(static_cast<double>(factor[j * kLowRankWidth + k]) * scales[k]);
  }
  return result;
}

void put(std::vector<uint8_t>* bytes, uint32_t value) {
  bytes->resize(bytes->size() + 4);
  store_le<uint32_t>(bytes->data() + bytes->size() - 4, value);
}

}  // namespace

bool LowRankEncoder::encode(const EncodePlan& plan, double payload_bytes, double most_bytes) {
  plan_ = plan;
  if (!low_rank_.build(plan_)) return false;  // which stays, whatever becomes of the caller's
  const bool limited = plan.params->target == Target::kBits;
  log2_step_ = low_rank_.step_for_target(8 * kAim * payload_bytes);
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    low_rank_.choose_ranks(log2_step_);
    if (!encode_section()) return false;
    const double excess = static_cast<double>(section_.size()) / most_bytes;
    if (!limited || excess <= 1) {
      cost_ = low_rank_.cost(plan_, log2_step_);
      return make_residuals();
    }
    log2_step_ += std::max(0.25, excess - 1);
  }
  return false;
}

bool LowRankEncoder::pays(const EncodePlan& residuals) const {
  const double section = 8 * static_cast<double>(section_.size());
  return section + low_rank_.cost(residuals, log2_step_) < kDoubt * cost_;
}

bool LowRankEncoder::encode_coarser(double octaves) {
  log2_step_ += octaves;
  return encode_section() && make_residuals();
}

// Both factors have the residual's step: the coefficients of both and the residual are parts of one
// sum, and the bits are fewest where all have the same error (reverse water-filling). So right and
// left factors are scaled by the singular value, in units of the step.
bool LowRankEncoder::encode_section() {
  section_.clear();
  put(&section_, 0);  // the number of parts, once it is known
  std::vector<Factor> values;
  for (const LowRankPlan::Candidate& c : low_rank_.candidates()) {
    if (c.rank == 0) continue;
    put(&section_, static_cast<uint32_t>(c.run));
    put(&section_, static_cast<uint32_t>(c.factors.columns));
    put(&section_, static_cast<uint32_t>(plan_.input->runs[c.run].first_column));
    put(&section_, static_cast<uint32_t>(c.rank));
    const double step = std::exp2(low_rank_.factor_step(c, log2_step_));
    std::vector<double> right, left(static_cast<size_t>(c.rank), 1 / step);
    for (size_t k = 0; k < left.size(); ++k) {
      right.push_back(std::sqrt(c.factors.energy[k]) / step);
      put(&section_, float_bits(static_cast<float>(step / right.back())));
    }
    values.push_back({c.rank, scaled_columns(c.factors.right, right)});
    values.push_back({c.rank, scaled_columns(c.factors.left, left)});
  }
  if (values.empty()) return false;
  store_le<uint32_t>(section_.data(), static_cast<uint32_t>(values.size() / 2));
  std::vector<uint8_t> factors;
  if (!encode_factors(values, plan_.ws->pool, &factors)) return false;
  put(&section_, static_cast<uint32_t>(factors.size()));
  section_.insert(section_.end(), factors.begin(), factors.end());
  return true;
}

bool LowRankEncoder::encode_factors(const std::vector<Factor>& factors, ThreadPool* pool,
                                    std::vector<uint8_t>* out) const {
  std::vector<Run> runs(factors.size());
  for (size_t i = 0; i < runs.size(); ++i) {
    runs[i].data = factors[i].values.data();
    runs[i].numel = static_cast<int64_t>(factors[i].values.size());
    runs[i].columns = factors[i].rank;  // columns differ in scale: profiles
  }
  EncodeInput input;
  input.runs = runs.data();
  input.num_runs = static_cast<int64_t>(runs.size());
  CodecParams params;
  params.target = Target::kStep;
  params.value = 1.0;
  params.allocation8 = 0;
  Workspace workspace;
  workspace.pool = pool;
  out->resize(max_segment_bytes(params, input));
  size_t written = 0;
  const Status status = gct::encode(params, input, out->data(), out->size(), &written, workspace);
  out->resize(written);
  return status == Status::kOk;
}

// Values less the product that a decoder is going to add.
bool LowRankEncoder::make_residuals() {
  const EncodeInput& input = *plan_.input;
  LowRankSection section;
  LowRankFactors factors;
  const bool sound = read_low_rank_section(
      section_.data(), section_.size(), [&](uint32_t i) { return input.runs[i].numel; }, &section);
  if (!sound || factors.decode(section, *plan_.ws) != Status::kOk) return false;
  int64_t total = 0;
  for (const LowRankPart& part : section.parts) total += input.runs[part.run].numel;
  plan_.ws->residuals.resize(static_cast<size_t>(total));
  runs_.assign(input.runs, input.runs + input.num_runs);
  float* out = plan_.ws->residuals.data();
  std::atomic<bool> in_range{true};
  for (size_t i = 0; i < section.parts.size(); ++i) {
    Run& run = runs_[section.parts[i].run];
    for_each_stretch(run.numel, plan_.ws->pool, [&](int64_t begin, int64_t n) {
      float product[kLowRankStretch], scratch[kLowRankStretch];
      factors.product(i, begin, n, product);
      const float* x = load_floats(run, input.dtype, begin, static_cast<int>(n), scratch);
      bool all = true;
      for (int64_t j = 0; j < n; ++j) {
        out[begin + j] = x[j] - product[j];
        all &= std::fabs(out[begin + j]) <= kLargest;  // not so for a NaN
      }
      if (!all) in_range = false;
    });
    run.residual = out;
    out += run.numel;
  }
  input_ = input;
  input_.runs = runs_.data();
  return in_range;
}

}  // namespace gct
