// The encoder's low-rank parts: finds them, decides which ranks pay, codes the factors, and leaves
// the residuals for the blocks to code.
#pragma once

#include <vector>

#include "cpu/analyze.h"
#include "cpu/factorize.h"

namespace gct {

class LowRankStage {
 public:
  // plan: the analysis of the values themselves. For a target in bits: what it leaves for coded
  // runs, and how much of that the section may take. False where no low-rank part pays; then the
  // values are coded as they are.
  bool prepare(const EncodePlan& plan, double payload_bytes, double most_bytes);

  // After prepare(): the section's bytes, and the input with residuals in the place of values.
  const std::vector<uint8_t>& section() const { return section_; }
  const EncodeInput& input() const { return input_; }

 private:
  // Elements of one run by class: what the model says of its rate and error follows from them.
  struct Scales {
    struct Group {
      int scale_class;
      double numel;
    };
    int shape = 0;
    double numel = 0;
    std::vector<Group> groups;
  };
  struct Candidate {
    size_t run;
    double energy = 0;  // sum of squares of the run
    Factorization factors;
    std::vector<double> left_energy;  // by rank: sum of squares that remains
    int rank = 0;
    double bits = 0;  // of factors and residual at that rank
  };

  void find_candidates(const EncodePlan& plan);
  double solve_step(double payload_bits);
  double bits_at(double log2_step);
  double error_at(double log2_step);
  void choose_ranks(double log2_step);
  double rms_log2_step(const Candidate& candidate, double log2_step) const;
  bool encode_factors(double log2_step);
  void write_section(const std::vector<double>& log2_steps, const std::vector<uint8_t>& factors);
  bool make_residuals();

  const EncodePlan* plan_ = nullptr;
  std::vector<Scales> scales_;  // by run; empty groups where nothing is coded
  std::vector<Candidate> candidates_;
  std::vector<int> candidate_of_;  // by run; -1: none
  std::vector<uint8_t> section_;
  std::vector<Run> runs_;
  EncodeInput input_;
};

}  // namespace gct
