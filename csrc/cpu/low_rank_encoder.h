// The encoder's low-rank parts: factors that pay, coded, and residuals for the blocks to code.
#pragma once

#include <vector>

#include "cpu/low_rank_plan.h"

namespace gct {

class LowRankEncoder {
 public:
  // plan: the analysis of the values themselves. For a target in bits: what it leaves for coded
  // runs, and how much of that the section may take. False where no low-rank part pays; then the
  // values are coded as they are.
  bool encode(const EncodePlan& plan, double payload_bytes, double most_bytes);
  // Whether the scales of the residuals, which encode() could only guess, keep what it promised.
  bool pays(const EncodePlan& residuals) const;
  // Once more with the same ranks and the factors' steps this many octaves larger.
  bool encode_coarser(double octaves);

  // After these: the section's bytes, and the input with residuals in the place of values.
  const std::vector<uint8_t>& section() const { return section_; }
  const EncodeInput& input() const { return input_; }

 private:
  struct Factor {
    int rank;
    std::vector<float> values;  // rank columns
  };

  bool encode_section();
  bool encode_factors(const std::vector<Factor>& factors, ThreadPool* pool,
                      std::vector<uint8_t>* out) const;
  bool make_residuals();

  EncodePlan plan_;  // of the values; what lies in the Workspace belongs to the next plan already
  LowRankPlan low_rank_;
  double log2_step_ = 0;
  double cost_ = 0;  // of the values as they are
  std::vector<uint8_t> section_;
  std::vector<Run> runs_;
  EncodeInput input_;
};

}  // namespace gct
