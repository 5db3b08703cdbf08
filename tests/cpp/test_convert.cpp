// Half-width floats, all 65536 of each kind, against their definition in double precision.
#include <cmath>

#include "check.h"
#include "core/convert.h"

namespace gct {
namespace {

// sign * significand * 2^exponent with the widths of the format; NaN and infinity apart.
double value_of(uint16_t h, int mantissa_bits, int bias) {
  const int mantissa = h & ((1 << mantissa_bits) - 1);
  const int exponent = (h & 0x7fff) >> mantissa_bits;
  const double significand = exponent == 0 ? mantissa : mantissa + (1 << mantissa_bits);
  const double magnitude =
      std::ldexp(significand, (exponent == 0 ? 1 : exponent) - bias - mantissa_bits);
  return (h & 0x8000) != 0 ? -magnitude : magnitude;
}

void check_all(float (*convert)(uint16_t), int mantissa_bits, int bias) {
  const uint32_t infinity = 0x7fffu >> mantissa_bits << mantissa_bits;
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float f = convert(static_cast<uint16_t>(h));
    CHECK(std::signbit(f) == (h >> 15 != 0), h, f);
    if ((h & 0x7fff) > infinity) {
      CHECK(std::isnan(f), h, f);
    } else if ((h & 0x7fff) == infinity) {
      CHECK(std::isinf(f), h, f);
    } else {
      CHECK(static_cast<double>(f) == value_of(static_cast<uint16_t>(h), mantissa_bits, bias), h,
            f);
    }
  }
}

void test_to_bfloat16() {
  for (uint32_t h = 0; h < 0x7f80; ++h) {  // finite magnitudes
    const uint32_t even = h % 2 == 0 ? h : h + 1;
    const uint32_t bits[] = {h << 16,
                             (h << 16) + 1,
                             (h << 16) + 0x7fff,
                             (h << 16) + 0x8000,
                             (h << 16) + 0x8001,
                             (h << 16) + 0xffff};
    const uint32_t nearest[] = {h, h, h, even, h + 1, h + 1};
    for (int i = 0; i < 6; ++i) {
      CHECK(float_to_bfloat16(bits_float(bits[i])) == nearest[i], h, i);
      CHECK(float_to_bfloat16(bits_float(bits[i] | 0x80000000u)) == (nearest[i] | 0x8000u), h, i);
    }
  }
  CHECK(float_to_bfloat16(INFINITY) == 0x7f80);
  CHECK(std::isnan(bfloat16_to_float(float_to_bfloat16(bits_float(0x7f800001u)))));
  CHECK(std::isnan(bfloat16_to_float(float_to_bfloat16(bits_float(0xffffffffu)))));
}

}  // namespace
}  // namespace gct

int main() {
  gct::check_all(gct::bfloat16_to_float, 7, 127);
  gct::check_all(gct::float16_to_float, 10, 15);
  gct::test_to_bfloat16();
  return gct::test::result();
}
