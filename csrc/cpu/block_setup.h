// All that coding one block needs: its step, tables and quantizer.
#pragma once

#include "cpu/columns.h"

namespace gct {

// A block of the plan with its class.
struct BlockPlace {
  size_t run;
  int64_t block;  // in its run
  int n;
  int scale_class;
};

class BlockSetup {
 public:
  BlockCode code;
  Quantizer quantizer;
  double ratio = 0;                 // exact log2(mean |x| / step), in 1/16
  const uint8_t* choice = nullptr;  // of the elements' tables, where the run has a column profile

  BlockSetup() = default;
  BlockSetup(const BlockSetup&) = delete;  // choice and quantizer point into it
  BlockSetup& operator=(const BlockSetup&) = delete;

  // For a block of a run coded as `run` says, at the exact log2 of the step of class 0. False for a
  // zero block or one that has no code.
  bool prepare(const EncodePlan& plan, const BlockPlace& place, const RunCode& run,
               double log2_step);

  // Index of an element's table among all.
  int table(int i) const { return choice ? first_table_ + choice[i] : code.table; }
  // The table that `choice` counts from, or the block's one.
  int first_table() const { return choice ? first_table_ : code.table; }

 private:
  void prepare_tables();

  int first_table_ = 0;
  double table_ratio_ = 1e300;  // what biases_ are for
  int table_shape_ = -1;
  uint8_t choice_[kBlock];
  float biases_[tables::kTablesPerShape];
  int32_t limits_[tables::kTablesPerShape];
};

}  // namespace gct
