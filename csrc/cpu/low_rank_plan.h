// Which matrices get a low-rank part, of which rank: what the model says is cheapest.
#pragma once

#include <vector>

#include "cpu/analyze.h"
#include "cpu/factorize.h"

namespace gct {

// The elements of one run by scale class: its rate and its error at a step under the model.
class RunScales {
 public:
  RunScales() = default;  // of a run that isn't coded: takes no bits
  RunScales(const EncodePlan& plan, size_t run);

  // With all scales `octaves` larger, at log2 of the step of class 0.
  double bits(double octaves, double log2_step) const;
  double error(double octaves, double log2_step) const;
  // log2 of the root mean square of the blocks' steps over that of class 0.
  double rms_step_octaves() const;

 private:
  int shape_ = 0;
  int allocation8_ = 0;
  double numel_ = 0;
  std::vector<ClassCount> groups_;
};

class LowRankPlan {
 public:
  struct Candidate {
    size_t run = 0;
    Factorization factors;
    std::vector<double> rest;  // by rank: sum of squares that exact factors leave
    int rank = 0;
    double bits = 0;              // of factors and residual at that rank
    double residual_octaves = 0;  // log2 of the residual's scales over those of the values
  };

  // Factorizes the plan's matrices; false if there is none.
  bool build(const EncodePlan& plan);

  // log2 of the step of class 0 that the target asks for, as far as the model knows: precise
  // enough to choose ranks and the factors' precision. payload_bits: for a target in bits.
  double step_for_target(double payload_bits);
  // Sets all ranks to those with the fewest bits at a step.
  void choose_ranks(double log2_step);

  // Bits at a step, under the model, of the candidates' runs in a plan of these or other values,
  // and of what they err.
  double cost(const EncodePlan& plan, double log2_step) const;

  const std::vector<Candidate>& candidates() const { return candidates_; }
  // log2 of the step that the candidate's factors deserve: the root mean square of its blocks'.
  double factor_step(const Candidate& candidate, double log2_step) const {
    return log2_step + scales_[candidate.run].rms_step_octaves();
  }

 private:
  void add_candidate(size_t run);
  void choose_rank(double log2_step, Candidate* candidate) const;
  double error_bits(const Candidate& candidate, double error, double log2_step) const;
  double bits_at(double log2_step);
  double error_at(double log2_step);

  const EncodePlan* plan_ = nullptr;
  std::vector<RunScales> scales_;  // by run
  std::vector<Candidate> candidates_;
};

}  // namespace gct
