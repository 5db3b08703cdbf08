// The kernels on AVX-512. This file alone is compiled for these instructions; nothing in it runs
// before avx512_kernels() has asked the processor.
#include <cstddef>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__) && defined(__AVX512VBMI2__)

#include "cpu/simd_avx512.h"
#include "cpu/vector_kernels.h"

namespace gct {
namespace {

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("bmi2");
}

}  // namespace

const Kernels* avx512_kernels() {
  static constexpr Kernels k = vector_kernels("avx512");
  static const bool usable = supported();
  return usable ? &k : nullptr;
}

}  // namespace gct

#else

#include "cpu/kernels.h"

namespace gct {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace gct

#endif
