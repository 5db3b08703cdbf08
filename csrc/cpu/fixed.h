// Kind `fixed`: block scale + sign and magnitude index into a Lloyd-Max codebook.
#pragma once

#include "cpu/analyze.h"

namespace gct {

// Writes fixed_run_bytes() bytes of a coded run. means: of its blocks.
void encode_fixed_run(const Run& run, DType dtype, const RunHeader& header, int bits,
                      const float* means, uint8_t* out);

// factor: as decode() takes it.
void decode_fixed_run(const RunHeader& header, int bits, const uint8_t* data, bool accumulate,
                      float factor, float* out);

}  // namespace gct
