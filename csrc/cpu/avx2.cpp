// The kernels on AVX2. This file alone is compiled for these instructions; nothing in it runs
// before avx2_kernels() has asked the processor.

#if defined(__AVX2__)

#include "cpu/simd_avx2.h"
#include "cpu/vector_kernels.h"

namespace gct {

const Kernels* avx2_kernels() {
  static constexpr Kernels k = vector_kernels("avx2");
  static const bool usable = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
  return usable ? &k : nullptr;
}

}  // namespace gct

#else

#include "cpu/kernels.h"

namespace gct {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace gct

#endif
