// Memory that encode() and decode() keep in a Workspace from call to call, so that the same work
// again allocates nothing. No value in it outlives a call.
#pragma once

#include <memory>
#include <vector>

#include "cpu/low_rank.h"
#include "cpu/pieces.h"
#include "cpu/rate.h"

namespace gct {

struct DecodeScratch {
  SegmentLayout layout;
  std::vector<PieceInput> pieces;
  std::vector<int8_t> profiles;
  std::vector<RunPlace> coded;
  std::vector<PieceScratch> workers;
  LowRankFactors factors;

  size_t capacity_bytes() const;
};

struct Scratch {
  // Encoding.
  EncodePlan plan;
  std::vector<uint8_t> sections;
  RateScratch rate;
  std::vector<int64_t> class_histograms;  // by thread and run
  std::vector<float> column_abs, column_square, column_inverse;
  std::vector<int8_t> column_offsets;
  std::vector<TrellisScratch> trellis;  // by thread
  std::vector<int64_t> run_begins;

  // Decoding; those not in use. Factors of low-rank parts are a segment inside a segment.
  std::vector<std::unique_ptr<DecodeScratch>> decode;

  size_t capacity_bytes() const;
};

// Takes a DecodeScratch, and gives it back at its end.
class DecodeLease {
 public:
  explicit DecodeLease(Workspace* workspace) : free_(workspace->scratch().decode) {
    if (free_.empty()) free_.push_back(std::make_unique<DecodeScratch>());
    scratch_ = std::move(free_.back());
    free_.pop_back();
  }
  ~DecodeLease() { free_.push_back(std::move(scratch_)); }  // there was room for it
  DecodeLease(const DecodeLease&) = delete;
  DecodeLease& operator=(const DecodeLease&) = delete;

  DecodeScratch* operator->() const { return scratch_.get(); }

 private:
  std::vector<std::unique_ptr<DecodeScratch>>& free_;
  std::unique_ptr<DecodeScratch> scratch_;
};

}  // namespace gct
