#include "cpu/low_rank_plan.h"

#include <algorithm>
#include <cmath>

#include "core/low_rank.h"
#include "cpu/rate_model.h"

namespace gct {
namespace {

// Smaller matrices can't pay for headers and lane states of the factors.
constexpr int64_t kMinSide = 8;
constexpr int64_t kMinNumel = 4096;
// A part's entry with the headers of its two runs and their classes, and what the factors' segment
// takes whatever is in it: the section's own fields, headers, lane states but for what they hold.
constexpr double kPartBits = 8 * (kLowRankPartBytes + 2 * kRunHeaderBytes + 8);
constexpr double kSegmentBits =
    8 * (8 + kSegmentHeaderBytes + kPieceEntryBytes + 0.75 * kLaneBytes);
constexpr double kGainBits = 32;
// Of the shapes: the factors' elements are close to normally distributed.
constexpr int kNormalShape = 12;
// Less of the energy than this is float32's rounding.
constexpr double kNegligible = 1e-12;

bool eligible(const Run& run, const RunHeader& header) {
  return header.mode == RunMode::kCoded && run.columns >= kMinSide && run.columns <= UINT32_MAX &&
         run.numel >= kMinSide * run.columns && run.numel >= kMinNumel;
}

// n normally distributed coefficients with this sum of squares, quantized at a step.
struct Coefficients {
  double bits, error;

  Coefficients(double n, double energy, double log2_step) {
    // Their mean magnitude is sqrt(2 / pi) standard deviations.
    const double log2_mean = 0.5 * std::log2(energy / n * 0.6366);
    const double ratio = 16 * (log2_mean - log2_step);
    bits = n * model_rate(kNormalShape, ratio);
    error = n * model_error_steps(kNormalShape, ratio) * std::exp2(2 * log2_step);
  }
};

}  // namespace

RunScales::RunScales(const EncodePlan& plan, size_t run)
    : shape_(plan.runs[run].header.code.shape), allocation8_(plan.params->allocation8) {
  count_classes(plan, plan.runs[run], &groups_);
  for (const ClassCount& g : groups_) numel_ += g.numel;
}

double RunScales::bits(double octaves, double log2_step) const {
  double sum = 0;
  for (const ClassCount& g : groups_) {
    const double scale_class = g.scale_class + 2 * octaves;
    sum += g.numel * model_rate(shape_, (8 - allocation8_) * scale_class - 16 * log2_step);
  }
  return sum;
}

double RunScales::error(double octaves, double log2_step) const {
  double sum = 0;
  for (const ClassCount& g : groups_) {
    const double scale_class = g.scale_class + 2 * octaves;
    const double step = std::exp2(log2_step + allocation8_ * scale_class / 16);
    const double ratio = (8 - allocation8_) * scale_class - 16 * log2_step;
    sum += g.numel * step * step * model_error_steps(shape_, ratio);
  }
  return sum;
}

double RunScales::rms_step_octaves() const {
  double sum = 0;
  for (const ClassCount& g : groups_)
    sum += g.numel * std::exp2(allocation8_ * g.scale_class / 8.0);
  return 0.5 * std::log2(sum / numel_);
}

bool LowRankPlan::build(const EncodePlan& plan) {
  plan_ = &plan;
  scales_.assign(plan.runs.size(), RunScales());
  candidates_.clear();
  for (size_t run = 0; run < plan.runs.size(); ++run) {
    if (plan.runs[run].header.mode != RunMode::kCoded) continue;
    scales_[run] = RunScales(plan, run);
    if (eligible(plan.input->runs[run], plan.runs[run].header)) add_candidate(run);
  }
  return !candidates_.empty();
}

void LowRankPlan::add_candidate(size_t run) {
  const RunPlan& p = plan_->runs[run];
  const float* means = &plan_->ws->block_mean[static_cast<size_t>(p.first_block)];
  Candidate candidate;
  candidate.run = run;
  if (!factorize(plan_->input->runs[run], plan_->input->dtype, means, plan_->ws->pool,
                 &candidate.factors))
    return;
  candidate.rest.push_back(p.signal);
  for (const double energy : candidate.factors.energy)
    candidate.rest.push_back(std::max(candidate.rest.back() - energy, kNegligible * p.signal));
  candidates_.push_back(std::move(candidate));
}

// What a quantizer with a candidate's step gives for a squared error that much smaller: with
// D = step^2 / 12 and R = -log2(step), -dR / dD is 6 / (ln 2 step^2). Coarse quantizers err
// differently at the same step, so bits alone don't compare them.
double LowRankPlan::error_bits(const Candidate& c, double error, double log2_step) const {
  return 6 / std::log(2.0) * error * std::exp2(-2 * factor_step(c, log2_step));
}

double LowRankPlan::cost(const EncodePlan& plan, double log2_step) const {
  double sum = 0;
  for (const Candidate& c : candidates_) {
    if (plan.runs[c.run].header.mode != RunMode::kCoded) continue;
    const RunScales scales(plan, c.run);
    sum += scales.bits(0, log2_step) + error_bits(c, scales.error(0, log2_step), log2_step);
  }
  return sum;
}

// The residual's scales are taken to be the values' own, all smaller by one factor.
void LowRankPlan::choose_rank(double log2_step, Candidate* c) const {
  const RunScales& scales = scales_[c->run];
  const double step = factor_step(*c, log2_step);
  const double rows = static_cast<double>(c->factors.rows);
  const double columns = static_cast<double>(c->factors.columns);
  const double numel = static_cast<double>(plan_->runs[c->run].header.numel);
  c->rank = 0;
  c->residual_octaves = 0;
  c->bits = scales.bits(0, log2_step);
  double best = c->bits + error_bits(*c, scales.error(0, log2_step), log2_step);
  double factor_bits = kPartBits + kSegmentBits / static_cast<double>(candidates_.size());
  double factor_error = 0;
  for (int rank = 1; rank <= plan_->params->max_rank && rank * (rows + columns) <= numel; ++rank) {
    const double energy = c->factors.energy[static_cast<size_t>(rank) - 1];
    if (energy <= kNegligible * c->rest[0]) break;
    const Coefficients left(rows, energy, step), right(columns, energy, step);
    factor_bits += kGainBits + left.bits + right.bits;
    factor_error += left.error + right.error;
    const double residual = c->rest[static_cast<size_t>(rank)] + factor_error;
    const double octaves = std::min(0.0, 0.5 * std::log2(residual / c->rest[0]));
    const double bits = factor_bits + scales.bits(octaves, log2_step);
    const double cost = bits + error_bits(*c, scales.error(octaves, log2_step), log2_step);
    if (cost >= best) continue;
    best = cost;
    c->bits = bits;
    c->rank = rank;
    c->residual_octaves = octaves;
  }
}

void LowRankPlan::choose_ranks(double log2_step) {
  for (Candidate& c : candidates_) choose_rank(log2_step, &c);
}

double LowRankPlan::bits_at(double log2_step) {
  choose_ranks(log2_step);
  auto candidate = candidates_.begin();
  double sum = 0;
  for (size_t run = 0; run < scales_.size(); ++run) {
    const bool chosen = candidate != candidates_.end() && candidate->run == run;
    sum += chosen ? (candidate++)->bits : scales_[run].bits(0, log2_step);
  }
  return sum;
}

double LowRankPlan::error_at(double log2_step) {
  choose_ranks(log2_step);
  auto candidate = candidates_.begin();
  double sum = 0;
  for (size_t run = 0; run < scales_.size(); ++run) {
    const bool chosen = candidate != candidates_.end() && candidate->run == run;
    sum += scales_[run].error(chosen ? (candidate++)->residual_octaves : 0.0, log2_step);
  }
  return sum;
}

double LowRankPlan::step_for_target(double payload_bits) {
  const CodecParams& params = *plan_->params;
  if (params.target == Target::kStep) return std::log2(params.value);
  const double error = plan_->signal * std::pow(10.0, -params.value / 10);
  double low = -140, high = 140;  // float32's range
  for (int i = 0; i < 24; ++i) {
    const double middle = (low + high) / 2;
    const bool finer =
        params.target == Target::kBits ? bits_at(middle) < payload_bits : error_at(middle) > error;
    (finer ? high : low) = middle;
  }
  // Where ranks change, bits and error jump: the side that keeps the target.
  return params.target == Target::kBits ? high : low;
}

}  // namespace gct
