// The kernels on NEON, which every aarch64 processor has.

#if defined(__aarch64__) && defined(__ARM_NEON) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__

#include <cstring>

#include "cpu/simd_neon.h"
#include "cpu/vector_kernels.h"

namespace gct {

const Kernels* neon_kernels() {
  static constexpr Kernels k = vector_kernels("neon");
  return &k;
}

}  // namespace gct

#else

#include "cpu/kernels.h"

namespace gct {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace gct

#endif
