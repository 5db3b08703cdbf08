// Half-width floats, all 65536 of each kind, against their definition in double precision; floats
// rounded to them; and the kernels, which must give the same bits.
#include <cmath>
#include <vector>

#include "check.h"
#include "core/convert.h"
#include "cpu/kernels.h"

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

// The kernels, which must give the same bits, with a number of elements that leaves a rest.
void check_kernels(bool bfloat16, float (*widen)(uint16_t), uint16_t (*narrow)(float)) {
  std::vector<uint16_t> halves;
  std::vector<float> floats;
  test::Random random(3);
  for (uint32_t h = 0; h < 0x10000; ++h) {
    halves.push_back(static_cast<uint16_t>(h));
    const uint32_t bits = float_bits(widen(halves.back()));
    for (uint32_t next : {bits, bits + 1, bits - 1, bits + 0x8000, bits + 0x1000, bits + 0x1001})
      floats.push_back(bits_float(next));
    floats.push_back(bits_float(static_cast<uint32_t>(random.below(uint64_t{1} << 32))));
  }
  halves.resize(halves.size() - 5);
  floats.resize(floats.size() - 5);
  int count;
  const Kernels* const* all = usable_kernels(&count);
  for (int i = 0; i < count; ++i) {
    std::vector<float> wide(halves.size() + 1, 7.0f);
    all[i]->widen(halves.data(), static_cast<int64_t>(halves.size()), bfloat16, wide.data());
    for (size_t j = 0; j < halves.size(); ++j)
      CHECK(float_bits(wide[j]) == float_bits(widen(halves[j])), i, halves[j]);
    CHECK(wide.back() == 7.0f, i);
    std::vector<uint16_t> narrowed(floats.size() + 1, 7);
    all[i]->narrow(floats.data(), static_cast<int64_t>(floats.size()), bfloat16, narrowed.data());
    for (size_t j = 0; j < floats.size(); ++j)
      CHECK(narrowed[j] == narrow(floats[j]), i, floats[j], narrowed[j]);
    CHECK(narrowed.back() == 7, i);
  }
}

// Between neighbours halfway goes to the even one.
void test_to_float16() {
  for (uint32_t h = 0; h < 0x7bff; ++h) {
    const float low = float16_to_float(static_cast<uint16_t>(h));
    const float high = float16_to_float(static_cast<uint16_t>(h + 1));
    const float middle = low + (high - low) / 2;  // exact
    const uint32_t even = h % 2 == 0 ? h : h + 1;
    for (const float sign : {1.0f, -1.0f}) {
      const uint32_t bit = sign < 0 ? 0x8000 : 0;
      CHECK(float_to_float16(sign * low) == (h | bit), h);
      CHECK(float_to_float16(sign * std::nextafter(middle, 0.0f)) == (h | bit), h);
      CHECK(float_to_float16(sign * middle) == (even | bit), h);
      CHECK(float_to_float16(sign * std::nextafter(middle, INFINITY)) == ((h + 1) | bit), h);
    }
  }
  CHECK(float_to_float16(65504.0f) == 0x7bff && float_to_float16(65519.996f) == 0x7bff);
  CHECK(float_to_float16(65520.0f) == 0x7c00 && float_to_float16(-1e30f) == 0xfc00);
  CHECK(float_to_float16(INFINITY) == 0x7c00 && float_to_float16(1e-30f) == 0);
  CHECK(std::isnan(float16_to_float(float_to_float16(bits_float(0x7f800001u)))));
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
  gct::test_to_float16();
  gct::check_kernels(true, gct::bfloat16_to_float, gct::float_to_bfloat16);
  gct::check_kernels(false, gct::float16_to_float, gct::float_to_float16);
  gct::check_all(gct::float16_to_float, 10, 15);
  gct::test_to_bfloat16();
  return gct::test::result();
}
