// Rate control: from bits or dB to the quantizer's step, by the generalized Gaussian model corrected on a sample.
#pragma once

#include "cpu/analyze.h"

namespace gct {

// Everything is a function of one unknown, log2 of the step of a block of class 0: the other blocks' steps follow by
// the allocation. Built once a segment; solving again for a corrected target is cheap.
class RateControl {
 public:
  explicit RateControl(const EncodePlan& plan);

  // log2(step) at which all symbols take `bits` in all.
  double step_for_bits(double bits);
  // log2(step) at which the squared error over the coded runs is `error`.
  double step_for_error(double error);

 private:
  struct Group {  // elements of one shape and class
    int shape;
    int scale_class;
    double numel;
  };
  struct SampledBlock {
    size_t run;
    int64_t block;  // in its run
    int n;
    int scale_class;
  };
  enum class Quantity { kBits, kError };

  void group_blocks();
  void choose_sample(int64_t count);
  double model(Quantity what, const std::vector<Group>& groups, double log2_step) const;
  double sampled(Quantity what, double log2_step);
  double solve(Quantity what, double target) const;
  double solve_corrected(Quantity what, double target);

  const EncodePlan& plan_;
  std::vector<Group> groups_, sample_groups_;
  std::vector<SampledBlock> sample_;
  int64_t live_blocks_ = 0;
  double finest_ = 0, coarsest_ = 0;  // bounds of log2(step)
};

// Writes step, ratio and allocation into the headers of all coded runs.
void set_step(double log2_step, EncodePlan* plan);

Quantizer block_quantizer(const EncodePlan& plan, size_t run, int64_t block, const BlockCode& code);

}  // namespace gct
