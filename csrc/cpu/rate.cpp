#include "cpu/rate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

#include "cpu/block_cost.h"
#include "cpu/block_symbols.h"
#include "cpu/rate_model.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"

namespace gct {
namespace {

// Blocks whose symbols are counted for a target: enough for 0.5 % at 2 bits, few against the whole;
// the spread of the code length is relatively larger at low rates, so twice as many there.
constexpr int64_t kSampleForBits = 48;
constexpr int64_t kSampleForError = 1024;
// Encoding a large segment twice costs more than counting more blocks once.
constexpr int64_t kRefineFrom = 768;  // blocks
constexpr int64_t kRefineShare = 6;
constexpr int64_t kRefineMost = 384;
constexpr int kCorrections = 5;
constexpr double kNoMiss = 1e300;
constexpr double kSettled = 0.004;  // 0.4 % of the bits, 0.02 dB of the error
constexpr double kFarOff = 0.1;     // 0.43 dB: the model says nothing about such data
constexpr int kHalvings = 12;

// Tables next to the one that the scale asks for, in 1/16 octave: where data don't follow the
// model, a neighbour can be cheaper, and choosing it keeps the rate continuous in the step.
constexpr int kOffsets[] = {0, -4, 4, -8};
constexpr size_t kCandidates = sizeof kOffsets / sizeof kOffsets[0];

// That a column may have.
constexpr size_t kColumnOffsets = kMaxColumnOffset - kMinColumnOffset + 1;

int rounded_ratio(double log2_step) { return static_cast<int>(std::lround(-16 * log2_step)); }

RunCode run_code(const EncodePlan& plan, double log2_step, int offset, const RunCode& base) {
  RunCode code = base;
  code.step = static_cast<float>(std::exp2(log2_step));
  code.log2_ratio = static_cast<int16_t>(rounded_ratio(log2_step) + offset);
  code.allocation8 = static_cast<uint8_t>(plan.params->allocation8);
  return code;
}

}  // namespace

RateControl::RateControl(const EncodePlan& plan)
    : plan_(plan),
      scratch_(plan.ws->scratch().rate),
      groups_(scratch_.groups),
      sample_groups_(scratch_.sample_groups),
      sample_(scratch_.sample),
      offsets_(scratch_.offsets),
      offset_shares_(scratch_.offset_shares),
      codes_(scratch_.codes),
      bits_(scratch_.bits) {
  sample_.clear();
  const auto workers = static_cast<size_t>(worker_count(plan.ws->pool));
  while (scratch_.meters.size() < workers)
    scratch_.meters.push_back(std::make_unique<BlockMeter>());
  group_blocks();
  int lowest = kMaxClass, highest = kMinClass, top_column = 0;
  for (const Group& g : groups_) {
    lowest = std::min(lowest, g.scale_class);
    highest = std::max(highest, g.scale_class);
    top_column = std::max(top_column, g.offset);
  }
  const int slope = 8 - plan.params->allocation8;
  // From 19 octaves under the largest block's scale (less where columns are far above it: see
  // kSafeShiftOfProfiles) to 12 above its largest column's, where all symbols are zero, as far as
  // all steps stay normal floats.
  const double steepness = plan.params->allocation8 / 16.0;
  const double reach = 19.0 - std::max(top_column / 2.0 - 2.0, 0.0);
  finest_ = std::max(slope * highest / 16.0 - reach, -124.0 - steepness * lowest);
  coarsest_ =
      std::min(slope * highest / 16.0 + top_column / 2.0 + 12.0, 125.0 - steepness * highest);
}

void RateControl::group_blocks() {
  groups_.clear();
  offset_shares_.assign(plan_.runs.size() * kColumnOffsets, 0.0);
  for (size_t r = 0; r < plan_.runs.size(); ++r) {
    const RunPlan& p = plan_.runs[r];
    if (p.header.columns == 0) continue;
    const int8_t* offsets = &plan_.ws->profiles[p.profile];
    for (uint32_t j = 0; j < p.header.columns; ++j)
      offset_shares_[r * kColumnOffsets + static_cast<size_t>(offsets[j] - kMinColumnOffset)] +=
          1.0 / p.header.columns;
  }
  for (size_t r = 0; r < plan_.runs.size(); ++r) {
    if (plan_.runs[r].header.mode != RunMode::kCoded) continue;
    count_classes(plan_, plan_.runs[r], &scratch_.class_counts);
    for (const ClassCount& count : scratch_.class_counts) {
      live_blocks_ += count.blocks;
      add_groups(r, count.scale_class, count.numel, &groups_);
    }
  }
  merge_groups();
}

// The elements of one class in a run, by column offset.
void RateControl::add_groups(size_t run, int scale_class, double numel,
                             std::vector<Group>* groups) const {
  const int shape = plan_.runs[run].header.code.shape;
  const double* shares = &offset_shares_[run * kColumnOffsets];
  const bool profiled = plan_.runs[run].header.columns > 0;
  if (!profiled) groups->push_back({shape, scale_class, 0, numel});
  for (size_t i = 0; i < kColumnOffsets && profiled; ++i) {
    if (shares[i] > 0)
      groups->push_back(
          {shape, scale_class, static_cast<int>(i) + kMinColumnOffset, shares[i] * numel});
  }
}

// One group for all elements that the model can't tell apart.
void RateControl::merge_groups() {
  const auto key = [](const Group& g) { return std::make_tuple(g.shape, g.scale_class, g.offset); };
  std::sort(groups_.begin(), groups_.end(),
            [&](const Group& a, const Group& b) { return key(a) < key(b); });
  size_t kept = 0;
  for (size_t i = 0; i < groups_.size(); ++i) {
    if (kept > 0 && key(groups_[kept - 1]) == key(groups_[i])) {
      groups_[kept - 1].numel += groups_[i].numel;
    } else {
      groups_[kept++] = groups_[i];
    }
  }
  groups_.resize(kept);
}

// About `count` blocks, evenly spaced among those that aren't all zero.
void RateControl::choose_sample(int64_t count, std::vector<BlockPlace>* sample,
                                std::vector<Group>* groups) const {
  sample->clear();
  groups->clear();
  const Workspace& ws = *plan_.ws;
  const int64_t step = std::min(count, live_blocks_);
  int64_t share = 0;  // seen * step mod live_blocks_
  for_each_block(plan_, 0, plan_.coded_blocks, [&](size_t r, int64_t local, int n, int64_t b) {
    const int c = ws.classes[static_cast<size_t>(b)];
    if (c == kZeroClass) return;
    share += step;
    if (share < live_blocks_) return;
    share -= live_blocks_;
    sample->push_back({r, local, n, c});
    add_groups(r, c, static_cast<double>(n), groups);
  });
}

double RateControl::model(Quantity what, const std::vector<Group>& groups, double log2_step) const {
  const int allocation8 = plan_.params->allocation8;
  double sum = 0;
  for (const Group& g : groups) {
    const double ratio = (8 - allocation8) * g.scale_class + 8 * g.offset - 16 * log2_step;
    if (what == Quantity::kBits) {
      sum += g.numel * model_rate(g.shape, ratio);
    } else {
      const double step = std::exp2(log2_step + allocation8 * g.scale_class / 16.0);
      sum += g.numel * model_error_steps(g.shape, ratio) * step * step;
    }
  }
  return sum;
}

// f(run, its blocks in the sample), for runs that have some. The sample is in the runs' order.
template <typename F>
void RateControl::for_each_sampled_run(F f) {
  std::vector<BlockPlace>& blocks = scratch_.run_sample;
  blocks.clear();
  for (size_t i = 0; i < sample_.size(); ++i) {
    blocks.push_back(sample_[i]);
    if (i + 1 < sample_.size() && sample_[i + 1].run == sample_[i].run) continue;
    f(sample_[i].run, blocks);
    blocks.clear();
  }
}

// Adds the bits that a block of the sample takes, with each of `count` codes of its run.
void RateControl::add_block_bits(const BlockPlace& s, double log2_step, const RunCode* codes,
                                 size_t count, BlockMeter* meter, double* bits) const {
  BlockSetup& setup = meter->setup;
  float scratch[kBlock];
  const float* x =
      load_floats(plan_.input->runs[s.run], plan_.input->dtype, s.block * kBlock, s.n, scratch);
  const bool golomb = plan_.params->kind == Kind::kEG;
  int quantized = -1;  // with how many low bits aside
  int order = -1;
  double golomb_sum = 0;
  for (size_t i = 0; i < count; ++i) {
    // With one table for all elements another code moves nothing but the table and low bits.
    const bool prepared = quantized >= 0 && block_code(codes[i], s.scale_class, &setup.code) &&
                          setup.code.shift == quantized;
    if (!prepared && !setup.prepare(plan_, s, codes[i], log2_step)) continue;
    const bool one_table = setup.choice == nullptr;
    const int shift = setup.code.shift;
    if (golomb) {
      // All that a table decides is the order: often the last one's.
      const int next = one_table ? tables::kGolombOrders[setup.code.table] + shift : -1;
      if (next < 0 || next != order) golomb_sum = golomb_block_bits(x, s.n, setup);
      order = next;
      bits[i] += golomb_sum;
    } else if (one_table) {
      if (quantized != shift) {
        with_high_parts(x, s.n, setup.quantizer, shift, [&](const float* high, const Quantizer& q) {
          meter->cost.quantize(high, s.n, q);
        });
      }
      quantized = shift;
      bits[i] += meter->cost.bits(setup.code.table, static_cast<uint32_t>(s.n * shift));
    } else {
      bits[i] += gg_bits(x, s.n, setup, &meter->extra);
    }
  }
}

double RateControl::sampled_bits(double log2_step) {
  if (plan_.params->effort == Effort::kHigh) {
    sample_trellis(log2_step);
    return sampled_.bits;
  }
  const size_t count = plan_.runs.size() * kCandidates;
  codes_.resize(count);
  bits_.assign(count, 0.0);
  for (size_t i = 0; i < count; ++i) {
    const RunCode& base = plan_.runs[i / kCandidates].header.code;
    codes_[i] = run_code(plan_, log2_step, kOffsets[i % kCandidates], base);
  }
  for (const BlockPlace& s : sample_) {
    const size_t at = s.run * kCandidates;
    add_block_bits(s, log2_step, &codes_[at], kCandidates, scratch_.meters[0].get(), &bits_[at]);
  }
  double sum = 0;
  offsets_step_ = log2_step;
  offsets_.assign(plan_.runs.size(), 0);
  for (size_t r = 0; r < plan_.runs.size(); ++r) {
    const double* begin = &bits_[r * kCandidates];
    const double* best = std::min_element(begin, begin + kCandidates);
    offsets_[r] = kOffsets[best - begin];
    sum += *best;
  }
  return sum;
}

// Where the sample is the whole segment its first run begins as the message does, in state 0: that
// costs 1 dB in 576 elements. Elsewhere blocks go on from whatever state is best.
bool RateControl::free_start(size_t run) const {
  return static_cast<int64_t>(sample_.size()) < live_blocks_ || run != sample_.front().run;
}

// Of the trellis: a table decides the symbols too, so that the one with the fewest bits needn't be
// the best.
void RateControl::sample_trellis(double log2_step) {
  sampled_ = Sampled();
  offsets_step_ = log2_step;
  offsets_.assign(plan_.runs.size(), 0);
  for_each_sampled_run([&](size_t run, const std::vector<BlockPlace>& blocks) {
    TrellisSample::Result best = {0, 0, 1e300};
    for (int offset : kOffsets) {
      const RunCode code = run_code(plan_, log2_step, offset, plan_.runs[run].header.code);
      const TrellisSample::Result found =
          scratch_.trellis.measure(plan_, blocks, code, log2_step, free_start(run));
      if (found.cost >= best.cost) continue;
      best = found;
      offsets_[run] = offset;
    }
    sampled_.bits += best.bits;
    sampled_.error += best.error;
  });
}

double RateControl::sampled_error(double log2_step) {
  sampled_.bits = sampled_bits(log2_step);  // chooses the tables, and with them the levels
  if (plan_.params->effort == Effort::kHigh) return sampled_.error;
  float scratch[kBlock];
  double sum = 0;
  for (const BlockPlace& s : sample_) {
    const RunCode& base = plan_.runs[s.run].header.code;
    const RunCode code = run_code(plan_, log2_step, offsets_[s.run], base);
    BlockSetup& setup = scratch_.meters[0]->setup;
    if (!setup.prepare(plan_, s, code, log2_step)) continue;
    const float* x =
        load_floats(plan_.input->runs[s.run], plan_.input->dtype, s.block * kBlock, s.n, scratch);
    sum += block_error(x, s.n, setup);
  }
  sampled_.error = sum;
  return sum;
}

// The trellis' rate falls at another pace than the model's, which is the plain quantizer's: half as
// fast at 1 bit. 0: not known yet, or no slope to go by.
double RateControl::Secant::change(double log2_step, double excess) {
  const double slope = (excess - excess_) / (log2_step - log2_step_);
  // Errors past float64's range give none.
  const bool usable = known_ && std::isfinite(slope) && std::fabs(slope) > 0.1;
  known_ = true;
  log2_step_ = log2_step;
  excess_ = excess;
  return usable ? std::min(std::max(-excess / slope, -1.0), 1.0) : 0;
}

// The model's bits fall and its error grows with the step: bisection on log2(step).
double RateControl::solve(Quantity what, double target) const {
  double lo = finest_, hi = coarsest_;
  for (int i = 0; i < 24; ++i) {
    const double middle = (lo + hi) / 2;
    const double value = model(what, groups_, middle);
    const bool finer = what == Quantity::kBits ? value < target : value > target;
    (finer ? hi : lo) = middle;
  }
  return (lo + hi) / 2;
}

double RateControl::solve_corrected(Quantity what, double target) {
  secant_ = Secant();
  double log2_step = solve(what, target), best_step = log2_step, best_miss = kNoMiss;
  std::vector<int>& best_offsets = scratch_.best_offsets;
  Sampled best_sampled;
  for (int i = 0; i < kCorrections; ++i) {
    const double actual =
        what == Quantity::kBits ? sampled_bits(log2_step) : sampled_error(log2_step);
    const double predicted = model(what, sample_groups_, log2_step);
    if (!(actual > 0) || !(predicted > 0)) break;
    const double wanted = wanted_of_sample(what, target, log2_step);
    const double miss = std::fabs(std::log(actual / wanted));
    if (miss < best_miss) {
      best_miss = miss;
      best_step = log2_step;
      best_offsets = offsets_;
      best_sampled = sampled_;
    }
    if (miss < kSettled) break;
    const double change = plan_.params->effort == Effort::kHigh
                              ? secant_.change(log2_step, std::log(actual / wanted))
                              : 0;
    log2_step = change != 0 ? within(log2_step + change) : solve(what, target * predicted / actual);
  }
  const bool plain = plan_.params->effort == Effort::kNormal;  // a trellis' errors take long
  if (what == Quantity::kError && best_miss > kFarOff && plain) return halved(target);
  if (best_miss < kNoMiss) {
    offsets_ = best_offsets;
    offsets_step_ = best_step;
    sampled_ = best_sampled;
  }
  return best_step;
}

// What the sample should have, by its share of the whole under the model.
double RateControl::wanted_of_sample(Quantity what, double target, double log2_step) const {
  return target * model(what, sample_groups_, log2_step) / model(what, groups_, log2_step);
}

// The error of a few values among zeros, or of one magnitude, jumps from next to nothing to all
// there is, and back: a step on the near side of a jump, by halves.
double RateControl::halved(double target) {
  double near = finest_, far = coarsest_;
  for (int i = 0; i < kHalvings; ++i) {
    const double middle = (near + far) / 2;
    const double wanted = wanted_of_sample(Quantity::kError, target, middle);
    (sampled_error(middle) <= wanted ? near : far) = middle;
  }
  sampled_error(near);  // for its tables
  return near;
}

double RateControl::step_for_bits(double bits) {
  double numel = 0;
  for (const Group& g : groups_) numel += g.numel;
  const double rate = bits / std::max(numel, 1.0);
  if (sample_.empty())
    choose_sample(rate < 1.6 ? 2 * kSampleForBits : kSampleForBits, &sample_, &sample_groups_);
  const double target = std::max(bits, 1.0);
  const double log2_step = solve_corrected(Quantity::kBits, target);
  if (live_blocks_ < kRefineFrom || plan_.params->effort == Effort::kHigh) return log2_step;
  return refined(log2_step, target);
}

// By the tables of offsets_, by threads where there are some. Bits are whole numbers of 1/4096:
// their sum doesn't depend on the order.
double RateControl::bits_of(const std::vector<BlockPlace>& sample, double log2_step) {
  constexpr size_t kStretch = 64;
  const int64_t stretches = div_up(static_cast<int64_t>(sample.size()), kStretch);
  std::vector<double>& bits = scratch_.stretch_bits;
  bits.assign(static_cast<size_t>(stretches), 0.0);
  const auto body = [&](int64_t stretch, int worker) {
    const size_t begin = static_cast<size_t>(stretch) * kStretch;
    for (size_t i = begin; i < std::min(begin + kStretch, sample.size()); ++i) {
      const BlockPlace& s = sample[i];
      const RunCode& base = plan_.runs[s.run].header.code;
      const RunCode code = run_code(plan_, log2_step, offsets_[s.run], base);
      add_block_bits(s, log2_step, &code, 1, scratch_.meters[static_cast<size_t>(worker)].get(),
                     &bits[static_cast<size_t>(stretch)]);
    }
  };
  parallel_for(plan_.ws->pool, stretches, body);
  return std::accumulate(bits.begin(), bits.end(), 0.0);
}

// Counts a larger sample once, with the tables that were the cheapest on the smaller one: its
// miss is small, and the model is good for that.
double RateControl::refined(double log2_step, double target) {
  std::vector<BlockPlace>& sample = scratch_.refined_sample;
  std::vector<Group>& groups = scratch_.refined_groups;
  choose_sample(std::min(live_blocks_ / kRefineShare, kRefineMost), &sample, &groups);
  const double actual = bits_of(sample, log2_step);
  const double predicted = model(Quantity::kBits, groups, log2_step);
  if (!(actual > 0) || !(predicted > 0)) return log2_step;
  offsets_step_ = solve(Quantity::kBits, target * predicted / actual);
  // The same tables: the next ones, a quarter octave away, would cost up to 2 % more.
  for (int& offset : offsets_) offset += rounded_ratio(log2_step) - rounded_ratio(offsets_step_);
  return offsets_step_;
}

double RateControl::change_for_factor(double log2_step, double factor) const {
  return solve(Quantity::kBits, factor * model(Quantity::kBits, groups_, log2_step)) - log2_step;
}

double RateControl::step_for_error(double error) {
  if (sample_.empty()) choose_sample(kSampleForError, &sample_, &sample_groups_);
  return solve_corrected(Quantity::kError, error);
}

double RateControl::sampled_cost(double log2_step) {
  const bool known = plan_.params->effort == Effort::kHigh && log2_step == offsets_step_;
  if (!known) sampled_error(log2_step);
  double numel = 0;
  for (const BlockPlace& s : sample_) numel += s.n;
  return std::log2(sampled_.error) + 2 * sampled_.bits / std::max(numel, 1.0);
}

void RateControl::apply(double log2_step, EncodePlan* plan) {
  if (sample_.empty()) choose_sample(kSampleForBits, &sample_, &sample_groups_);
  if (log2_step != offsets_step_) sampled_bits(log2_step);
  write_codes(plan);
}

void RateControl::keep() {
  scratch_.kept_offsets = offsets_;
  kept_step_ = offsets_step_;
}

void RateControl::apply_kept(EncodePlan* plan) {
  offsets_ = scratch_.kept_offsets;
  offsets_step_ = kept_step_;
  write_codes(plan);
}

void RateControl::write_codes(EncodePlan* plan) const {
  plan->log2_step = offsets_step_;
  for (size_t r = 0; r < plan->runs.size(); ++r) {
    RunPlan& p = plan->runs[r];
    if (p.header.mode != RunMode::kCoded) continue;
    p.header.code = run_code(*plan, offsets_step_, offsets_[r], p.header.code);
  }
}

}  // namespace gct
