// Classes, steps, ties and random rounding against their definitions in double precision, and the
// block kernels of all implementations against the scalar ones.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <vector>

#include "check.h"
#include "core/quantize.h"
#include "cpu/kernels.h"

namespace gct {
namespace {

using test::Random;

float next(float x, int steps) { return bits_float(float_bits(x) + static_cast<uint32_t>(steps)); }

// log2 in double is right to about 1e-16 here, and the float nearest to a boundary (an irrational
// number) is 1e-9 or more away from it, so the comparison is sharp for every float.
void test_scale_class() {
  for (int quarter = 4 * -126; quarter < 4 * 128; ++quarter) {
    const float at = static_cast<float>(std::exp2(quarter / 4.0));
    for (int step = -3; step <= 3; ++step) {
      const float mean = next(at, step);
      if (mean < std::numeric_limits<float>::min()) continue;
      const long expected = std::lround(2 * std::log2(static_cast<double>(mean)));
      CHECK(scale_class(mean) == expected, mean, scale_class(mean), expected);
    }
  }
  CHECK(scale_class(1.0f) == 0 && scale_class(2.0f) == 2 && scale_class(0.5f) == -2);
  // Zero and denormals are under the smallest class, infinity and NaN over the largest.
  const float denormal = std::numeric_limits<float>::denorm_min();
  CHECK(scale_class(0.0f) < kMinClass && scale_class(denormal) < kMinClass);
  CHECK(scale_class(std::numeric_limits<float>::infinity()) > kMaxClass);
  CHECK(scale_class(std::numeric_limits<float>::quiet_NaN()) > kMaxClass);
}

// x * table * power: a table entry is 2^(i/16) rounded once and each product rounds once more, so
// the result is within 1.5 units in the last place of a float, 1.8e-7 relative.
void test_scale_by_sixteenths() {
  float result;
  for (int sixteenths = -126 * 16; sixteenths < 127 * 16; ++sixteenths) {
    CHECK(scale_by_sixteenths(1.0f, sixteenths, &result), sixteenths);
    const double expected = std::exp2(sixteenths / 16.0);
    CHECK(std::fabs(result / expected - 1) < 1.8e-7, sixteenths, result);
  }
  CHECK(!scale_by_sixteenths(1.0f, -126 * 16 - 1, &result));
  CHECK(!scale_by_sixteenths(1.0f, 127 * 16, &result));
  // The power fits, the product doesn't: overflow, denormal, zero, infinity.
  const float smallest = std::numeric_limits<float>::min();
  CHECK(!scale_by_sixteenths(4.0f, 126 * 16, &result));
  CHECK(scale_by_sixteenths(1.0f, -126 * 16, &result) && result == smallest);
  CHECK(!scale_by_sixteenths(0.5f, -126 * 16, &result));
  CHECK(!scale_by_sixteenths(0.0f, 0, &result));
  CHECK(!scale_by_sixteenths(std::numeric_limits<float>::infinity(), 0, &result));
}

void check_block_code(const RunCode& run, int scale_class) {
  // docs/wire-format.md in real numbers.
  const double T = run.log2_ratio + (8 - run.allocation8) * scale_class;
  double t = std::floor((T + 2) / 4), shift = 0;
  if (t > tables::kTableMax) {
    shift = std::ceil((t - tables::kTableMax) / 4);
    t -= 4 * shift;
  }
  t = std::max(t, static_cast<double>(tables::kTableMin));
  const int octaves = static_cast<int>(std::floor(run.allocation8 * scale_class / 16.0));
  const double step = run.step * std::exp2(run.allocation8 * scale_class / 16.0);
  const bool valid = shift <= 18 && octaves >= -126 && octaves <= 126 && step < 3.4e38 &&
                     step >= std::numeric_limits<float>::min();
  BlockCode code;
  const bool ok = block_code(run, scale_class, &code);
  CHECK(ok == valid, run.step, run.log2_ratio, scale_class, ok);
  if (!ok || !valid) return;
  CHECK(code.shift == shift, run.log2_ratio, scale_class, code.shift);
  const int expected = run.shape * tables::kTablesPerShape + static_cast<int>(t) + 16;
  CHECK(code.table == expected, run.log2_ratio, scale_class, code.table);
  CHECK(code.table >= 0 && code.table < kNumTables, code.table);
  CHECK(std::fabs(code.step / step - 1) < 1.8e-7, code.step, step);  // as scale_by_sixteenths
}

void test_block_code() {
  for (int allocation8 = 0; allocation8 <= 8; ++allocation8) {
    for (int ratio = -32768; ratio <= 32767; ratio += ratio > -2100 && ratio < 2100 ? 1 : 487) {
      RunCode run;
      run.step = allocation8 % 2 != 0 ? 3e-7f : 1.5f;
      run.log2_ratio = static_cast<int16_t>(ratio);
      run.shape = static_cast<uint8_t>((ratio & 15));
      run.allocation8 = static_cast<uint8_t>(allocation8);
      for (int c : {kMinClass, kMinClass + 1, -1, 0, 1, 17, kMaxClass - 1, kMaxClass})
        check_block_code(run, c);
    }
  }
}

// k = trunc(|x| / step + bias): one rounding after the product, one after the sum.
void test_ties() {
  Quantizer q;
  q.inverse_step = 1.0f;
  q.bias = 0.5f;
  struct Case {
    float x;
    int32_t k;
  };
  const Case cases[] = {
      {0.0f, 0},
      {0.4999999f, 0},
      {0.5f, 1},
      {1.4999999f, 1},
      {1.5f, 2},
      {2.5f, 3},
      {7.5f, 8},
      {1e-30f, 0},
      {3e38f, 1 << 30},
      {2147483648.0f, 1 << 30},
      // 0.5 - 2^-25 plus 0.5 is a tie between 1 - 2^-24 and 1, which goes to the even one.
      {0.49999997f, 1},
  };
  for (const Case& c : cases) {
    CHECK(quantize_magnitude(c.x, q, 0) == c.k, c.x, quantize_magnitude(c.x, q, 0));
    CHECK(quantize_magnitude(-c.x, q, 0) == c.k, c.x);
  }
  CHECK(quantize_magnitude(-0.0f, q, 0) == 0);
  q.bias = 0.25f;  // a deadzone of a quarter step
  CHECK(quantize_magnitude(0.75f, q, 0) == 1 && quantize_magnitude(0.7499999f, q, 0) == 0);
}

void test_deadzone_between_tables() {
  for (int shape = 0; shape < tables::kNumShapes; ++shape) {
    const uint8_t* units = tables::kDeadzones + shape * tables::kTablesPerShape;
    for (int i = 0; i < tables::kTablesPerShape; ++i) {
      const double ratio = 4.0 * (i + tables::kTableMin);
      CHECK(deadzone_at(shape, ratio) == static_cast<float>(units[i]) / 256, shape, i);
      CHECK(units[i] <= 128, shape, i);  // vector kernels need 1/2 - deadzone not below zero
      if (i + 1 == tables::kTablesPerShape) continue;
      const float middle = static_cast<float>(units[i] + units[i + 1]) / 512;
      CHECK(deadzone_at(shape, ratio + 2) == middle, shape, i);
    }
    CHECK(deadzone_at(shape, -1e4) == static_cast<float>(units[0]) / 256, shape);
    CHECK(deadzone_at(shape, 1e4) == static_cast<float>(units[26]) / 256, shape);
  }
}

// A sample mean of n uniform numbers has a standard error of sqrt(1/12/n), their sample variance
// one of sqrt(1/180/n), a lagged product of centred ones 1/12/sqrt(n). Limits are 4 of them.
void test_uniform_unit() {
  constexpr int n = 1 << 18;
  for (uint64_t seed : {uint64_t{0}, uint64_t{1}, ~uint64_t{0}, uint64_t{0x9e3779b97f4a7c15u}}) {
    double sum = 0, square = 0, lagged = 0, other_seed = 0, before = 0;
    float largest = 0;
    for (uint64_t i = 0; i < n; ++i) {
      const float u = uniform_unit(seed, i);
      CHECK(u >= 0.0f && u < 1.0f, u, seed, i);
      largest = std::max(largest, u);
      const double centred = static_cast<double>(u) - 0.5;
      sum += centred;
      square += centred * centred;
      lagged += centred * before;
      other_seed += centred * (static_cast<double>(uniform_unit(seed + 1, i)) - 0.5);
      before = centred;
    }
    CHECK(largest > 0.9999f, largest);
    CHECK(std::fabs(sum / n) < 4 * std::sqrt(1.0 / 12 / n), sum / n, seed);
    CHECK(std::fabs(square / n - 1.0 / 12) < 4 * std::sqrt(1.0 / 180 / n), square / n, seed);
    CHECK(std::fabs(lagged / n) < 4 / 12.0 / std::sqrt(n), lagged / n, seed);
    CHECK(std::fabs(other_seed / n) < 4 / 12.0 / std::sqrt(n), other_seed / n, seed);
  }
  // The random bits must not repeat between runs far apart or between seeds.
  CHECK(uniform_unit(1, 5) != uniform_unit(1, uint64_t{5} << 32));
  CHECK(uniform_unit(1, 5) != uniform_unit(uint64_t{1} << 32, 5));
}

// k is y rounded up with probability f = y - floor(y): mean y, variance f (1 - f). Over n draws the
// mean's standard error is sqrt(f (1 - f) / n); that of the sample variance of a Bernoulli number
// is at most sqrt(f (1 - f) / n) too. Limits are 4 of them, plus 2^-22 for y + u in float32.
void test_stochastic_rounding() {
  constexpr int n = 40000;
  for (float y : {0.001f, 0.3f, 0.5f, 0.9375f, 1.25f, 6.7f, 41.125f}) {
    Quantizer q;
    q.inverse_step = 2.0f;
    q.stochastic = true;
    q.seed = 77;
    double sum = 0, square = 0;
    for (int i = 0; i < n; ++i) {
      q.position = static_cast<uint64_t>(i) * kBlock;
      const int32_t k = quantize_magnitude(-y / 2, q, i % kBlock);
      const double error = k - static_cast<double>(y);
      sum += error;
      square += error * error;
    }
    const double f = static_cast<double>(y) - std::floor(static_cast<double>(y));
    const double limit = 4 * std::sqrt(f * (1 - f) / n) + 2.4e-7;
    CHECK(std::fabs(sum / n) < limit, y, sum / n, limit);
    CHECK(std::fabs(square / n - f * (1 - f)) < limit, y, square / n, limit);
  }
}

template <typename T>
bool same_bits(const T* a, const T* b, int n) {
  return std::memcmp(a, b, static_cast<size_t>(n) * sizeof(T)) == 0;
}

// Magnitudes over many octaves with some zeros of both signs and exact ties.
std::vector<float> block_values(int n, Random* random) {
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) {
    const double magnitude = std::exp2(12 * random->unit() - 6);
    v = static_cast<float>(random->below(2) == 0 ? magnitude : -magnitude);
    constexpr float kSpecial[] = {-0.0f,
                                  0.5f,
                                  -2.5f,
                                  std::numeric_limits<float>::denorm_min(),
                                  -std::numeric_limits<float>::denorm_min(),
                                  -std::numeric_limits<float>::min(),
                                  std::numeric_limits<float>::max(),
                                  -std::numeric_limits<float>::max()};
    const uint64_t special = random->below(40);
    if (special < std::size(kSpecial)) v = kSpecial[special];
    if (special > 37) v *= 1e9f;  // far beyond the alphabet
  }
  return x;
}

void check_kernels(const Kernels& k, const std::vector<float>& x, const Quantizer& q,
                   const LevelTable* levels) {
  const Kernels& ref = *scalar_kernels();
  const int n = static_cast<int>(x.size());
  const BlockMoments m = k.moments(x.data(), n), expected_m = ref.moments(x.data(), n);
  CHECK(same_bits(&m.sum_abs, &expected_m.sum_abs, 1), m.sum_abs, expected_m.sum_abs, n);
  CHECK(same_bits(&m.sum_square, &expected_m.sum_square, 1), m.sum_square, n);
  uint8_t symbols[kBlock + 1], expected[kBlock + 1];
  symbols[n] = expected[n] = 0xee;
  const bool escaped = k.quantize(x.data(), n, q, symbols);
  CHECK(escaped == ref.quantize(x.data(), n, q, expected), n, q.magnitudes);
  CHECK(same_bits(symbols, expected, n + 1), n, q.magnitudes);
  for (bool accumulate : {false, true}) {
    std::vector<float> out(x), expected_out(x);
    out.push_back(7), expected_out.push_back(7);
    k.dequantize(expected, n, levels, q.tables, 0.37f, accumulate, out.data());
    ref.dequantize(expected, n, levels, q.tables, 0.37f, accumulate, expected_out.data());
    CHECK(same_bits(out.data(), expected_out.data(), n + 1), n, accumulate);
  }
}

// Symbols by their definition; the scalar kernel is the reference of the others.
void check_scalar_quantize(const std::vector<float>& x, const Quantizer& q) {
  const int n = static_cast<int>(x.size());
  uint8_t symbols[kBlock];
  const bool escaped = scalar_kernels()->quantize(x.data(), n, q, symbols);
  bool any = false;
  for (int i = 0; i < n; ++i) {
    const int32_t k = quantize_magnitude(x[static_cast<size_t>(i)], q, i);
    const bool escape = k > q.magnitudes_at(i);
    any = any || escape;
    const int s = symbols[i];
    CHECK(escape == (s == kEscapeSymbol), k, s);
    CHECK(escape || symbol_magnitude(s) == k, k, s);
    CHECK(escape || k == 0 || symbol_negative(s) == std::signbit(x[static_cast<size_t>(i)]), k, s);
  }
  CHECK(any == escaped, n);
}

void test_kernels_agree() {
  Random random(4);
  int count;
  const Kernels* const* all = usable_kernels(&count);
  for (int n = 1; n <= kBlock; n += n < 70 ? 1 : 31) {
    const std::vector<float> x = block_values(n, &random);
    for (int magnitudes : {1, 2, 17, tables::kMaxMagnitude}) {
      Quantizer q;
      q.magnitudes = magnitudes;
      q.stochastic = n % 4 == 3;
      q.bias = n % 3 == 0 ? 0.5f : n % 3 == 1 ? 0.3125f : 0.0f;
      q.seed = 99;
      q.position = random.bits();
      for (float inverse : {1.0f, 0.01f, 3e4f, 1e30f}) {  // the last one: above any limit
        q.inverse_step = inverse;
        check_scalar_quantize(x, q);
        for (int i = 0; i < count; ++i)
          check_kernels(*all[i], x, q,
                        level_tables(n % tables::kNumShapes, n % kLevelSets) + n % 8);
      }
    }
  }
}

// Bias and alphabet of each element's own table.
void test_kernels_agree_on_mixed_tables() {
  Random random(5);
  int count;
  const Kernels* const* all = usable_kernels(&count);
  float biases[tables::kTablesPerShape];
  int32_t limits[tables::kTablesPerShape];
  uint8_t choice[kBlock];
  for (int n = 1; n <= kBlock; n += n < 70 ? 1 : 31) {
    const std::vector<float> x = block_values(n, &random);
    const int shape = n % tables::kNumShapes;
    for (int i = 0; i < tables::kTablesPerShape; ++i) {
      biases[i] = static_cast<float>(0.5 - 0.3 * random.unit());
      limits[i] = table_magnitudes(shape * tables::kTablesPerShape + i);
    }
    for (uint8_t& c : choice) c = static_cast<uint8_t>(random.below(tables::kTablesPerShape));
    Quantizer q;
    q.tables = choice;
    q.biases = biases;
    q.limits = limits;
    q.stochastic = n % 4 == 3;
    q.seed = 98;
    for (float inverse : {1.0f, 0.01f, 3e4f, 1e30f}) {
      q.inverse_step = inverse;
      check_scalar_quantize(x, q);
      for (int i = 0; i < count; ++i)
        check_kernels(*all[i], x, q, level_tables(shape, n % kLevelSets));
    }
  }
}

// Integers by their definition, and back: a sum of two whole numbers under 2^24 is exact.
void check_scalar_low_bits(const std::vector<float>& x, const Quantizer& q, int shift) {
  const int n = static_cast<int>(x.size());
  const double scale = std::exp2(shift);
  float high[kBlock], out[kBlock];
  uint32_t low[kBlock];
  scalar_kernels()->split_low(x.data(), n, q, shift, high, low);
  scalar_kernels()->join_low(high, low, n, shift, 1.0f, false, out);
  for (int i = 0; i < n; ++i) {
    const float value = x[static_cast<size_t>(i)];
    const int32_t magnitude = quantize_magnitude(value, q, i);
    const double k = std::signbit(value) ? -magnitude : magnitude;
    CHECK(high[i] == std::floor((k + scale / 2) / scale), k, shift, high[i]);
    CHECK(low[i] == k + scale / 2 - static_cast<double>(high[i]) * scale, k, shift, low[i]);
    CHECK(magnitude >= 1 << 24 || static_cast<double>(out[i]) == k, k, shift, out[i]);
  }
}

void check_low_bits(const Kernels& k, const std::vector<float>& x, const Quantizer& q, int shift) {
  const Kernels& ref = *scalar_kernels();
  const int n = static_cast<int>(x.size());
  float high[kBlock + 1], expected_high[kBlock + 1];
  uint32_t low[kBlock + 1], expected_low[kBlock + 1];
  high[n] = expected_high[n] = 7;
  low[n] = expected_low[n] = 7;
  k.split_low(x.data(), n, q, shift, high, low);
  ref.split_low(x.data(), n, q, shift, expected_high, expected_low);
  CHECK(same_bits(high, expected_high, n + 1), n, shift);
  CHECK(same_bits(low, expected_low, n + 1), n, shift);
  for (bool accumulate : {false, true}) {
    std::vector<float> out(x), expected(x);
    out.push_back(7), expected.push_back(7);
    k.join_low(expected_high, expected_low, n, shift, 0.37f, accumulate, out.data());
    ref.join_low(expected_high, expected_low, n, shift, 0.37f, accumulate, expected.data());
    CHECK(same_bits(out.data(), expected.data(), n + 1), n, shift, accumulate);
  }
}

void test_low_bits() {
  Random random(7);
  int count;
  const Kernels* const* all = usable_kernels(&count);
  float biases[tables::kTablesPerShape];
  uint8_t choice[kBlock];
  for (float& bias : biases) bias = static_cast<float>(0.5 - 0.3 * random.unit());
  for (uint8_t& c : choice) c = static_cast<uint8_t>(random.below(tables::kTablesPerShape));
  for (int n = 1; n <= kBlock; n += n < 40 ? 1 : 31) {
    const std::vector<float> x = block_values(n, &random);
    for (int shift = 1; shift <= kMaxShift; ++shift) {
      Quantizer q;
      q.bias = 0.4375f;
      q.seed = 97;
      q.position = random.bits();
      q.stochastic = random.below(4) == 0;
      if (random.below(3) == 0) q.tables = choice, q.biases = biases;
      for (float inverse : {1.0f, 300.0f, 1e30f}) {  // the last one: above any limit
        q.inverse_step = inverse;
        check_scalar_low_bits(x, q, shift);
        for (int i = 0; i < count; ++i) check_low_bits(*all[i], x, q, shift);
      }
    }
  }
}

// Least significant bit first, by the definition of docs/wire-format.md.
std::vector<uint8_t> packed(const std::vector<uint8_t>& codes, int bits) {
  std::vector<uint8_t> out((codes.size() * static_cast<size_t>(bits) + 7) / 8);
  for (size_t i = 0; i < codes.size() * static_cast<size_t>(bits); ++i) {
    const int bit = codes[i / static_cast<size_t>(bits)] >> (i % static_cast<size_t>(bits)) & 1;
    out[i / 8] = static_cast<uint8_t>(out[i / 8] | bit << (i % 8));
  }
  return out;
}

void check_fixed_kernels(const Kernels& k, const Codebook& book, const std::vector<float>& x,
                         float inverse) {
  const Kernels& ref = *scalar_kernels();
  const int n = static_cast<int>(x.size());
  std::vector<uint8_t> codes(x.size() + 1, 0xee), expected(x.size() + 1, 0xee);
  k.fixed_codes(x.data(), n, inverse, book, codes.data());
  ref.fixed_codes(x.data(), n, inverse, book, expected.data());
  CHECK(codes == expected, n, book.bits);
  codes.pop_back();
  const std::vector<uint8_t> wire = packed(codes, book.bits);
  std::vector<uint8_t> bytes(wire.size() + 1, 0xee), back(x.size() + 1, 0xee);
  k.pack(codes.data(), n, book.bits, bytes.data());
  CHECK(bytes.back() == 0xee, n, book.bits);
  bytes.pop_back();
  CHECK(bytes == wire, n, book.bits);
  k.unpack(wire.data(), n, book.bits, back.data());
  CHECK(back.back() == 0xee, n, book.bits);
  back.pop_back();
  CHECK(back == codes, n, book.bits);
  for (bool accumulate : {false, true}) {
    std::vector<float> out(x), expected_out(x);
    out.push_back(7), expected_out.push_back(7);
    for (size_t i = 0; i < x.size(); ++i) {
      const float value = 0.37f * book.signed_levels[codes[i]];
      expected_out[i] = accumulate ? expected_out[i] + value : value;
    }
    // Exactly the block's bytes, which the sanitizer guards, and others behind them.
    std::vector<uint8_t> longer(wire);
    longer.resize(wire.size() + 64, 0xee);
    for (const std::vector<uint8_t>& data : {wire, longer}) {
      std::vector<float> result(out);
      k.fixed_values(data.data(), data.data() + data.size(), n, 0.37f, book, accumulate,
                     result.data());
      CHECK(same_bits(result.data(), expected_out.data(), n + 1), n, book.bits, accumulate);
    }
  }
}

// Between a level and the next one.
float threshold_above(const Codebook& book, int index) {
  return 0.5f * (book.signed_levels[index] + book.signed_levels[index + 1]);
}

// The scalar codes by their definition: no level is nearer. Values on a threshold take the upper
// one.
void check_nearest_level(const Codebook& book, const std::vector<float>& x) {
  const int n = static_cast<int>(x.size()), count = 1 << (book.bits - 1);
  std::vector<uint8_t> codes(x.size());
  scalar_kernels()->fixed_codes(x.data(), n, 1.0f, book, codes.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const int index = codes[i] & (count - 1);
    const float magnitude = std::fabs(x[i]);
    CHECK((codes[i] >= count) == std::signbit(x[i]), i, book.bits);
    CHECK(index == 0 || magnitude >= threshold_above(book, index - 1), i, book.bits);
    CHECK(index == count - 1 || magnitude < threshold_above(book, index), i, book.bits);
  }
}

void test_fixed_kernels() {
  Random random(6);
  int count;
  const Kernels* const* all = usable_kernels(&count);
  for (int bits = 1; bits <= 8; ++bits) {
    for (int n : {1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 100, 255, 256}) {
      const Codebook book(n % tables::kNumShapes, bits);
      std::vector<float> x = block_values(n, &random);
      if (bits > 1)
        x[0] = threshold_above(book, static_cast<int>(random.below((1u << (bits - 1)) - 1)));
      check_nearest_level(book, x);
      for (int i = 0; i < count; ++i) {
        check_fixed_kernels(*all[i], book, x, 1.0f);
        check_fixed_kernels(*all[i], book, x, 0.0f);
      }
    }
  }
}

// docs/wire-format.md: the element's t is its block's plus two quarter octaves an offset, clamped.
void test_element_table() {
  for (int t = tables::kTableMin; t <= tables::kTableMax; ++t) {
    for (int offset = kMinColumnOffset; offset <= kMaxColumnOffset; ++offset) {
      const int expected = std::min(std::max(t + 2 * offset, tables::kTableMin), tables::kTableMax);
      CHECK(element_table(t, offset) == expected - tables::kTableMin, t, offset);
    }
  }
}

}  // namespace
}  // namespace gct

int main() {
  gct::test_scale_class();
  gct::test_scale_by_sixteenths();
  gct::test_block_code();
  gct::test_ties();
  gct::test_deadzone_between_tables();
  gct::test_uniform_unit();
  gct::test_stochastic_rounding();
  gct::test_kernels_agree();
  gct::test_kernels_agree_on_mixed_tables();
  gct::test_low_bits();
  gct::test_element_table();
  gct::test_fixed_kernels();
  return gct::test::result();
}
