// The trellis on blocks of a plan: between a block's setup and its symbols.
#pragma once

#include <vector>

#include "core/bit_io.h"
#include "cpu/block_setup.h"
#include "cpu/trellis.h"

namespace gct {

// Adds a block that has no low bits aside.
void add_block(const BlockSetup& setup, const float* x, int n, size_t place,
               TrellisScratch* trellis);

// What follows the escapes among a block's symbols; used: trellis_table() of each element.
void put_trellis_escapes(const float* x, int n, const BlockSetup& setup, const uint8_t* symbols,
                         const uint8_t* used, BitWriter* extra);

// Rate and squared error of blocks of one run under a code, for the rate control, which keeps it
// from call to call (RateScratch).
class TrellisSample {
 public:
  struct Result {
    double bits, error;
    double cost;  // error in steps^2 plus lambda bits
  };
  // free_start: as in TrellisPath::begin().
  Result measure(const EncodePlan& plan, const std::vector<BlockPlace>& blocks, const RunCode& code,
                 double log2_step, bool free_start);

  size_t capacity_bytes() const;

 private:
  void count(const EncodePlan& plan, const BlockPlace& block, const uint8_t* symbols,
             const uint8_t* used, Result* result);

  BlockSetup setup_;
  TrellisScratch trellis_;
  std::vector<uint8_t> symbols_, used_;
  std::vector<uint8_t> extra_;  // of a block that is coded to learn its size
};

}  // namespace gct
