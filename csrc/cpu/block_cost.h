// What a block of the rate control's sample takes, in bits and in error.
#pragma once

#include <vector>

#include "cpu/block_setup.h"

namespace gct {

// Code length of a block's symbols under any of its shape's tables, from one quantization: the step
// and the deadzone don't depend on the table.
class BlockCost {
 public:
  // Of a block without a column profile.
  void quantize(const float* x, int n, const Quantizer& q);

  // Bits in a table with low_bits of the whole block aside; all extra bits are counted by whole
  // bytes.
  double bits(int table, uint32_t low_bits) const;

 private:
  int32_t magnitude(int i) const;
  // Extra bits of those whose bits are set, past an alphabet of so many magnitudes.
  uint32_t escape_bits(const uint32_t* escapes, int magnitudes, int order) const;

  int n_ = 0;
  uint8_t symbols_[kBlock];  // of the widest alphabet
  int32_t large_[kBlock];    // magnitudes past it, where they are
};

// The same with symbols one by one: for blocks whose elements have tables of their own.
// extra: memory for extra bits.
double gg_bits(const float* x, int n, const BlockSetup& setup, std::vector<uint8_t>* extra);
// As exp-Golomb codes.
double golomb_block_bits(const float* x, int n, const BlockSetup& setup);
// Squared.
double block_error(const float* x, int n, const BlockSetup& setup);

}  // namespace gct
