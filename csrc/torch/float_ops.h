// Element-wise loops on raw memory for the collectives. Each result element depends on one element
// of each argument and on IEEE operations only, so that all ranks get the same bits.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "core/common.h"

namespace gct {

// The codec's name for a tensor's dtype; throws std::invalid_argument if it has none.
DType codec_dtype(at::ScalarType type, const char* what);

// dst[i] = src[i] as float32.
void to_float(DType dtype, const void* src, float* dst, int64_t numel);

// dst[i] = src[i] rounded to dtype.
void from_float(DType dtype, const float* src, void* dst, int64_t numel);

// dst[i] += src[i] as float32.
void add_to_float(DType dtype, const void* src, float* dst, int64_t numel);

void divide(float* values, float divisor, int64_t numel);

// -0 becomes +0.
void make_zeros_positive(float* values, int64_t numel);

void negate(float* values, int64_t numel);

// values[i] = finite ? values[i] * factor : 0. A residual must not keep the NaN of a step that is
// skipped.
void scale_finite(float* values, float factor, int64_t numel);

// 64 bits that change with any bit of data[0, bytes).
uint64_t hash_bytes(const void* data, int64_t bytes);

}  // namespace gct
