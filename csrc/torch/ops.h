// The codec on tensors.
#pragma once

#include <ATen/ATen.h>

#include "codec.h"

namespace gct {

// Encodes a CPU tensor (float32, bfloat16, float16 or float64, contiguous, any shape) as one run;
// from two dimensions on it is a matrix whose rows the first one counts. Returns the segment, a 1-D
// uint8 tensor of exactly its size. Throws std::invalid_argument for another tensor. stats: may be
// null.
at::Tensor encode_tensor(const at::Tensor& values, const CodecParams& params,
                         EncodeStats* stats = nullptr);

// Decodes a segment (1-D uint8, CPU, contiguous) to 1-D float32. Throws std::invalid_argument for
// anything that is no sound segment.
at::Tensor decode_tensor(const at::Tensor& wire);

// What a segment's headers say; throws like decode_tensor().
SegmentInfo inspect_tensor(const at::Tensor& wire);

}  // namespace gct
