// Column profiles: a half-octave scale offset for each column of a matrix. With the blocks'
// classes, which follow its rows, they describe an element's scale as a product of two, as
// gradients of weights are sums of such products.
#pragma once

#include <vector>

#include "core/bit_io.h"
#include "cpu/analyze.h"

namespace gct {

// Length of a profile's memory: one block more than the run has columns, so that any block's
// offsets are contiguous.
inline size_t extended_columns(uint32_t columns) { return size_t{columns} + kBlock; }

// The block's offsets in an extended profile.
inline const int8_t* block_offsets(const int8_t* profile, uint32_t columns, int64_t block) {
  return profile == nullptr ? nullptr : profile + (block * kBlock) % columns;
}

// Measures the profile of a coded run and keeps it in the plan where it pays; sets the run's shape
// for it.
void measure_columns(const Run& run, EncodePlan* plan, RunPlan* run_plan);

// Table of each element of a block among its shape's.
inline void choose_tables(int t, const int8_t* offsets, int n, uint8_t* choice) {
  for (int i = 0; i < n; ++i) choice[i] = static_cast<uint8_t>(element_table(t, offsets[i]));
}

void write_profile(const int8_t* offsets, uint32_t columns, BitWriter* out);

// All profiles of a segment, extended, one after the other. False on an offset out of range or
// missing bits.
bool read_profiles(const std::vector<RunHeader>& runs, BitReader* bits,
                   std::vector<int8_t>* profiles);

}  // namespace gct
