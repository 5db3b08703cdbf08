#include "torch/float_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace gct {

namespace {

bool is_half(DType dtype) { return dtype == DType::kBFloat16 || dtype == DType::kFloat16; }

// Calls body with a null pointer of the C++ type that dtype names; halves have kernels.
template <typename Body>
void with_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(static_cast<float*>(nullptr));
    case DType::kFloat64:
      return body(static_cast<double*>(nullptr));
    default:
      throw std::logic_error("gct: no C++ type for this dtype");
  }
}

void add_halves(DType dtype, const uint16_t* halves, float* sum, int64_t numel) {
  float values[kBlock];
  for (int64_t begin = 0; begin < numel; begin += kBlock) {
    const int64_t n = std::min<int64_t>(kBlock, numel - begin);
    kernels().widen(halves + begin, n, dtype == DType::kBFloat16, values);
    for (int64_t i = 0; i < n; ++i) sum[begin + i] += values[i];
  }
}

}  // namespace

DType codec_dtype(at::ScalarType type, const char* what) {
  switch (type) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    case at::kDouble:
      return DType::kFloat64;
    default:
      throw std::invalid_argument(std::string(what) +
                                  " must be float32, bfloat16, float16 or float64, got " +
                                  c10::toString(type));
  }
}

void to_float(DType dtype, const void* src, float* dst, int64_t numel) {
  if (is_half(dtype)) {
    kernels().widen(static_cast<const uint16_t*>(src), numel, dtype == DType::kBFloat16, dst);
    return;
  }
  with_type(dtype, [&](auto* type) {
    const auto* values = static_cast<const std::remove_pointer_t<decltype(type)>*>(src);
    for (int64_t i = 0; i < numel; ++i) dst[i] = static_cast<float>(values[i]);
  });
}

void from_float(DType dtype, const float* src, void* dst, int64_t numel) {
  if (is_half(dtype)) {
    kernels().narrow(src, numel, dtype == DType::kBFloat16, static_cast<uint16_t*>(dst));
    return;
  }
  with_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    auto* values = static_cast<T*>(dst);
    for (int64_t i = 0; i < numel; ++i) values[i] = static_cast<T>(src[i]);
  });
}

void add_to_float(DType dtype, const void* src, float* dst, int64_t numel) {
  if (is_half(dtype)) return add_halves(dtype, static_cast<const uint16_t*>(src), dst, numel);
  with_type(dtype, [&](auto* type) {
    const auto* values = static_cast<const std::remove_pointer_t<decltype(type)>*>(src);
    for (int64_t i = 0; i < numel; ++i) dst[i] += static_cast<float>(values[i]);
  });
}

void divide(float* values, float divisor, int64_t numel) {
  int exponent;
  if (std::frexp(divisor, &exponent) == 0.5f) {
    // The same bits in a third of the time: both are the exact quotient, rounded once.
    const float factor = 1 / divisor;
    for (int64_t i = 0; i < numel; ++i) values[i] *= factor;
  } else {
    for (int64_t i = 0; i < numel; ++i) values[i] /= divisor;
  }
}

void make_zeros_positive(float* values, int64_t numel) {
  for (int64_t i = 0; i < numel; ++i) values[i] += 0.0f;
}

void negate(float* values, int64_t numel) {
  for (int64_t i = 0; i < numel; ++i) values[i] = -values[i];
}

void scale_finite(float* values, float factor, int64_t numel) {
  for (int64_t i = 0; i < numel; ++i) {
    values[i] = std::isfinite(values[i]) ? values[i] * factor : 0.0f;
  }
}

uint64_t hash_bytes(const void* data, int64_t bytes) {
  // FNV-1a over 8-byte words: every step is invertible, so one changed word always changes the
  // result.
  constexpr uint64_t kPrime = 0x100000001b3;
  const auto* p = static_cast<const uint8_t*>(data);
  uint64_t hash = 0xcbf29ce484222325 ^ static_cast<uint64_t>(bytes);
  for (; bytes > 0; p += 8, bytes -= 8) {
    uint64_t word = 0;
    memcpy(&word, p, static_cast<size_t>(bytes < 8 ? bytes : 8));
    hash = (hash ^ word) * kPrime;
    hash ^= hash >> 32;
  }
  return hash;
}

}  // namespace gct
