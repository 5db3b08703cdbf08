// Rate control: from bits or dB to the quantizer's step, by the generalized Gaussian model
// corrected on a sample.
#pragma once

#include <algorithm>
#include <memory>

#include "cpu/block_cost.h"
#include "cpu/trellis_blocks.h"

namespace gct {

struct RateGroup {  // elements of one shape, class and column offset
  int shape;
  int scale_class;
  int offset;
  double numel;
};

// A thread's memory for what blocks cost.
struct BlockMeter {
  BlockSetup setup;
  BlockCost cost;
  std::vector<uint8_t> extra;  // of blocks that are coded to learn their size
};

// Memory of RateControl: kept by the Workspace (csrc/cpu/scratch.h).
struct RateScratch {
  std::vector<RateGroup> groups, sample_groups, refined_groups;
  std::vector<BlockPlace> sample, refined_sample;
  std::vector<int> offsets, best_offsets, kept_offsets;
  std::vector<double> offset_shares;
  std::vector<RunCode> codes;
  std::vector<double> bits;
  std::vector<ClassCount> class_counts;
  std::vector<double> stretch_bits;
  std::vector<std::unique_ptr<BlockMeter>> meters;  // by worker; BlockSetups don't move
  std::vector<BlockPlace> run_sample;               // that of one run
  TrellisSample trellis;
};

// Everything is a function of one unknown, log2 of the step of a block of class 0: the other
// blocks' steps follow by the allocation. Built once a segment; solving again for a corrected
// target is cheap.
class RateControl {
 public:
  explicit RateControl(const EncodePlan& plan);

  // log2(step) at which all symbols take `bits` in all.
  double step_for_bits(double bits);
  // Writes step, ratio and allocation into the headers of all coded runs, and the table offsets
  // that were cheapest on the sample.
  void apply(double log2_step, EncodePlan* plan);
  // The step and table offsets that apply() wrote last, to be written again: refined ones can't be
  // found anew from the step.
  void keep();
  void apply_kept(EncodePlan* plan);
  // How log2(step) has to change, by the model alone, for `factor` times the bits that it gives
  // now.
  double change_for_factor(double log2_step, double factor) const;
  // log2(step) at which all symbols are zero, or the largest that keeps steps normal floats.
  double coarsest() const { return coarsest_; }
  double within(double log2_step) const {
    return std::min(std::max(log2_step, finest_), coarsest_);
  }
  // log2(step) at which the squared error over the coded runs is `error`.
  double step_for_error(double error);
  // Of the step of the call before, error and bits on the sample in one number: log2(error), with a
  // bit an element taken for a quarter of the error.
  double sampled_cost(double log2_step);

 private:
  using Group = RateGroup;
  enum class Quantity { kBits, kError };
  struct Sampled {
    double bits = 0, error = 0;
  };
  // Of log2(step), from the last two misses.
  class Secant {
   public:
    double change(double log2_step, double excess);

   private:
    bool known_ = false;
    double log2_step_ = 0, excess_ = 0;
  };

  void group_blocks();
  void add_groups(size_t run, int scale_class, double numel, std::vector<Group>* groups) const;
  void merge_groups();
  void choose_sample(int64_t count, std::vector<BlockPlace>* sample,
                     std::vector<Group>* groups) const;
  double model(Quantity what, const std::vector<Group>& groups, double log2_step) const;
  double sampled_bits(double log2_step);
  void sample_trellis(double log2_step);
  bool free_start(size_t run) const;
  double sampled_error(double log2_step);
  template <typename F>
  void for_each_sampled_run(F f);
  void add_block_bits(const BlockPlace& block, double log2_step, const RunCode* codes, size_t count,
                      BlockMeter* meter, double* bits) const;
  double bits_of(const std::vector<BlockPlace>& sample, double log2_step);
  double refined(double log2_step, double target);
  void write_codes(EncodePlan* plan) const;
  double solve(Quantity what, double target) const;
  double wanted_of_sample(Quantity what, double target, double log2_step) const;
  double solve_corrected(Quantity what, double target);
  double halved(double target);

  const EncodePlan& plan_;
  RateScratch& scratch_;
  std::vector<Group>&groups_, &sample_groups_;
  std::vector<BlockPlace>& sample_;
  std::vector<int>& offsets_;  // by run, the cheapest at offsets_step_
  double offsets_step_ = 1e300;
  double kept_step_ = 1e300;
  // By run with a profile: share of columns with each offset, kColumnOffsets of them.
  std::vector<double>& offset_shares_;
  std::vector<RunCode>& codes_;  // by run and candidate offset, and the sample's bits with it
  std::vector<double>& bits_;
  Secant secant_;
  Sampled sampled_;  // by the trellis at offsets_step_, else where sampled_error() was called last
  int64_t live_blocks_ = 0;
  double finest_ = 0, coarsest_ = 0;  // bounds of log2(step)
};

}  // namespace gct
