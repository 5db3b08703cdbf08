#include "cpu/low_rank_stage.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "cpu/low_rank.h"
#include "cpu/rate_model.h"

namespace gct {
namespace {

// Smaller matrices can't pay for headers and lane states of the factors.
constexpr int64_t kMinSide = 8;
constexpr int64_t kMinNumel = 4096;
constexpr double kAim = 0.97;  // of the payload: the model is not that exact
constexpr int kMaxAttempts = 4;
// A part's share of the headers and lane states of the factors' segment, and its entry.
constexpr double kPartBits = 8 * (2 * kRunHeaderBytes + kLowRankPartBytes + 40);
constexpr int kGaussian = 12;  // of the shapes: factors are close to it
static_assert(tables::kNumShapes > kGaussian, "the shape of a normal distribution");

double model_bits(int shape, double ratio, double numel) { return numel * model_rate(shape, ratio); }

// Bits of n coefficients with this sum of squares at a step: ratio from the mean magnitude of a
// normal variable, 0.8 standard deviations.
double coefficient_bits(double n, double energy, double log2_step) {
  return model_bits(kGaussian, 16 * (std::log2(0.8 * std::sqrt(energy / n)) - log2_step), n);
}

bool eligible(const Run& run, const RunHeader& header) {
  return header.mode == RunMode::kCoded && run.columns >= kMinSide &&
         run.columns <= int64_t{UINT32_MAX} && run.numel >= kMinSide * run.columns &&
         run.numel >= kMinNumel;
}

}  // namespace

bool LowRankStage::prepare(const EncodePlan& plan, double payload_bytes, double most_bytes) {
  plan_ = &plan;
  find_candidates(plan);
  if (candidates_.empty()) return false;
  const bool limited = plan.params->target == Target::kBits;
  double log2_step = solve_step(8 * kAim * payload_bytes);
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    choose_ranks(log2_step);
    if (!encode_factors(log2_step)) return false;
    const double excess = static_cast<double>(section_.size()) / most_bytes;
    if (!limited || excess <= 1) return make_residuals();
    log2_step += std::max(0.25, excess - 1);
  }
  return false;
}

void LowRankStage::find_candidates(const EncodePlan& plan) {
  scales_.assign(plan.runs.size(), Scales());
  candidate_of_.assign(plan.runs.size(), -1);
  candidates_.clear();
  std::vector<double> numel(kMaxClass - kMinClass + 1);
  for (size_t r = 0; r < plan.runs.size(); ++r) {
    const RunPlan& p = plan.runs[r];
    if (p.header.mode != RunMode::kCoded) continue;
    std::fill(numel.begin(), numel.end(), 0.0);
    for_each_block(plan, p.first_block, p.first_block + num_blocks(p.header.numel),
                   [&](size_t, int64_t, int n, int64_t b) {
                     const int c = plan.ws->classes[static_cast<size_t>(b)];
                     if (c != kZeroClass) numel[static_cast<size_t>(c - kMinClass)] += n;
                   });
    scales_[r].shape = p.header.code.shape;
    scales_[r].numel = static_cast<double>(p.header.numel);
    for (int c = kMinClass; c <= kMaxClass; ++c) {
      const double n = numel[static_cast<size_t>(c - kMinClass)];
      if (n > 0) scales_[r].groups.push_back({c, n});
    }
    const Run& run = plan.input->runs[r];
    if (!eligible(run, p.header)) continue;
    Candidate candidate;
    candidate.run = r;
    candidate.energy = p.signal;
    if (!factorize(run, plan.input->dtype, &plan.ws->block_mean[static_cast<size_t>(p.first_block)],
                   plan.ws->pool, &candidate.factors))
      continue;
    double left = candidate.energy;
    candidate.left_energy.push_back(left);
    for (const double energy : candidate.factors.energy) {
      left = std::max(left - energy, 1e-12 * candidate.energy);
      candidate.left_energy.push_back(left);
    }
    candidate_of_[r] = static_cast<int>(candidates_.size());
    candidates_.push_back(std::move(candidate));
  }
}

double LowRankStage::rms_log2_step(const Candidate& candidate, double log2_step) const {
  const Scales& scales = scales_[candidate.run];
  double sum = 0;
  for (const Scales::Group& g : scales.groups)
    sum += g.numel * std::exp2(plan_->params->allocation8 * g.scale_class / 8.0);
  return log2_step + 0.5 * std::log2(sum / scales.numel);
}

void LowRankStage::choose_ranks(double log2_step) {
  for (Candidate& c : candidates_) {
    const Scales& scales = scales_[c.run];
    const double factor_step = rms_log2_step(c, log2_step);
    const double rows = static_cast<double>(c.factors.rows);
    const double columns = static_cast<double>(c.factors.columns);
    double best = 0, factors = 0;
    c.rank = 0;
    const int slope = 8 - plan_->params->allocation8;
    for (int rank = 0; rank <= plan_->params->max_rank; ++rank) {
      const size_t k = static_cast<size_t>(rank);
      if (rank > 0) {
        const double energy = c.factors.energy[k - 1];
        if (energy <= 1e-12 * c.energy || (rows + columns) * rank > scales.numel) break;
        factors += coefficient_bits(rows, energy, factor_step) +
                   coefficient_bits(columns, energy, factor_step) + 32;
      }
      // The residual's scales are taken to be the values' own, all smaller by one factor.
      const double octaves = 0.5 * std::log2(c.left_energy[k] / c.energy);
      double bits = rank > 0 ? factors + kPartBits : 0;
      for (const Scales::Group& g : scales.groups)
        bits += model_bits(scales.shape,
                           slope * (g.scale_class + 2 * octaves) - 16 * log2_step, g.numel);
      if (rank > 0 && bits >= best) continue;
      best = bits;
      c.rank = rank;
    }
    c.bits = best;
  }
}

double LowRankStage::bits_at(double log2_step) {
  choose_ranks(log2_step);
  double sum = 0;
  const int slope = 8 - plan_->params->allocation8;
  for (size_t r = 0; r < scales_.size(); ++r) {
    if (candidate_of_[r] >= 0) {
      sum += candidates_[static_cast<size_t>(candidate_of_[r])].bits;
      continue;
    }
    for (const Scales::Group& g : scales_[r].groups)
      sum += model_bits(scales_[r].shape, slope * g.scale_class - 16 * log2_step, g.numel);
  }
  return sum;
}

double LowRankStage::error_at(double log2_step) {
  choose_ranks(log2_step);
  double sum = 0;
  const int slope = 8 - plan_->params->allocation8;
  for (size_t r = 0; r < scales_.size(); ++r) {
    double octaves = 0;
    if (candidate_of_[r] >= 0) {
      const Candidate& c = candidates_[static_cast<size_t>(candidate_of_[r])];
      octaves = 0.5 * std::log2(c.left_energy[static_cast<size_t>(c.rank)] / c.energy);
    }
    for (const Scales::Group& g : scales_[r].groups) {
      const double scale_class = g.scale_class + 2 * octaves;
      const double step = std::exp2(log2_step + plan_->params->allocation8 * scale_class / 16.0);
      sum += g.numel * step * step *
             model_error_steps(scales_[r].shape, slope * scale_class - 16 * log2_step);
    }
  }
  return sum;
}

// log2 of the step of class 0 that the target asks for, as far as the model knows: precise enough
// to choose ranks and the factors' precision. Rate control proper looks at the residuals.
double LowRankStage::solve_step(double payload_bits) {
  const CodecParams& params = *plan_->params;
  if (params.target == Target::kStep) return std::log2(params.value);
  double low = -140, high = 140;
  const double error = plan_->signal * std::pow(10.0, -params.value / 10);
  for (int i = 0; i < 24; ++i) {
    const double middle = (low + high) / 2;
    const bool finer = params.target == Target::kBits ? bits_at(middle) < payload_bits
                                                      : error_at(middle) > error;
    (finer ? high : low) = middle;
  }
  return (low + high) / 2;
}

bool LowRankStage::encode_factors(double log2_step) {
  std::vector<std::vector<float>> values;
  std::vector<Run> runs;
  std::vector<double> log2_steps;
  for (const Candidate& c : candidates_) {
    if (c.rank == 0) continue;
    log2_steps.push_back(rms_log2_step(c, log2_step));
    const double inverse = std::exp2(-log2_steps.back());
    const size_t rank = static_cast<size_t>(c.rank);
    for (const bool right : {true, false}) {
      const std::vector<float>& factor = right ? c.factors.right : c.factors.left;
      std::vector<float> scaled(factor.size() / kLowRankWidth * rank);
      for (size_t i = 0; i < scaled.size(); ++i) {
        const size_t k = i % rank;
        const double scale = right ? std::sqrt(c.factors.energy[k]) * inverse : inverse;
        scaled[i] = static_cast<float>(
            static_cast<double>(factor[i / rank * kLowRankWidth + k]) * scale);
      }
      values.push_back(std::move(scaled));
      Run run;
      run.numel = static_cast<int64_t>(values.back().size());
      run.columns = c.rank;
      runs.push_back(run);
    }
  }
  if (runs.empty()) return false;
  for (size_t i = 0; i < runs.size(); ++i) runs[i].data = values[i].data();
  // Both factors at the residual's step: all three are coefficients of the same sum (reverse water
  // filling).
  CodecParams params;
  params.target = Target::kStep;
  params.value = 1.0;
  params.allocation8 = 0;
  EncodeInput input;
  input.runs = runs.data();
  input.num_runs = static_cast<int64_t>(runs.size());
  Workspace workspace;
  workspace.pool = plan_->ws->pool;
  std::vector<uint8_t> factors(max_segment_bytes(params, input));
  size_t written = 0;
  if (encode(params, input, factors.data(), factors.size(), &written, workspace) != Status::kOk)
    return false;
  factors.resize(written);
  write_section(log2_steps, factors);
  return true;
}

void LowRankStage::write_section(const std::vector<double>& log2_steps,
                                 const std::vector<uint8_t>& factors) {
  const auto put = [&](uint32_t value) {
    section_.resize(section_.size() + 4);
    store_le<uint32_t>(section_.data() + section_.size() - 4, value);
  };
  section_.clear();
  put(static_cast<uint32_t>(log2_steps.size()));
  auto step = log2_steps.begin();
  for (const Candidate& c : candidates_) {
    if (c.rank == 0) continue;
    const double square = std::exp2(2 * *step++);
    put(static_cast<uint32_t>(c.run));
    put(static_cast<uint32_t>(c.factors.columns));
    put(static_cast<uint32_t>(plan_->input->runs[c.run].first_column));
    put(static_cast<uint32_t>(c.rank));
    for (int k = 0; k < c.rank; ++k) {
      const double length = std::sqrt(c.factors.energy[static_cast<size_t>(k)]);
      put(float_bits(static_cast<float>(square / length)));
    }
  }
  put(static_cast<uint32_t>(factors.size()));
  section_.insert(section_.end(), factors.begin(), factors.end());
}

// Values less the product that a decoder is going to add. False where that isn't finite.
bool LowRankStage::make_residuals() {
  const EncodeInput& input = *plan_->input;
  LowRankSection section;
  const bool sound = read_low_rank_section(
      section_.data(), section_.size(), [&](uint32_t i) { return input.runs[i].numel; }, &section);
  LowRankFactors factors;
  if (!sound || factors.decode(section, *plan_->ws) != Status::kOk) return false;
  int64_t total = 0;
  for (const LowRankPart& part : section.parts) total += input.runs[part.run].numel;
  std::vector<float>& residuals = plan_->ws->residuals;
  residuals.resize(static_cast<size_t>(total));
  runs_.assign(input.runs, input.runs + input.num_runs);
  std::atomic<bool> finite{true};
  float* out = residuals.data();
  for (size_t i = 0; i < section.parts.size(); ++i) {
    Run& run = runs_[section.parts[i].run];
    for_each_stretch(run.numel, plan_->ws->pool, [&](int64_t begin, int64_t n) {
      float product[kLowRankStretch], scratch[kLowRankStretch];
      factors.product(i, begin, n, product);
      const float* x = load_floats(run, input.dtype, begin, static_cast<int>(n), scratch);
      bool all = true;
      for (int64_t j = 0; j < n; ++j) {
        out[begin + j] = x[j] - product[j];
        all = all && std::fabs(out[begin + j]) <= 1e37f;
      }
      if (!all) finite = false;
    });
    run.residual = out;
    out += run.numel;
  }
  input_ = input;
  input_.runs = runs_.data();
  return finite;
}

}  // namespace gct
