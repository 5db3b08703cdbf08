// Scales of single elements, against their definition in double precision.
#include <cmath>
#include <vector>

#include "check.h"
#include "cpu/element_scales.h"

namespace gct {
namespace {

// Relative error of a float32 result of `operations` roundings.
double rounding(int operations) { return operations * std::ldexp(1.0, -24); }

std::vector<float> of_many_sizes(int64_t numel, uint64_t seed) {
  test::Random random(seed);
  std::vector<float> values(static_cast<size_t>(numel));
  for (float& value : values) value = static_cast<float>(std::exp2(20 * random.unit() - 10));
  return values;
}

// Sizes around a vector and around the block that is added up in float32.
void test_scales() {
  const float factor = 12.5f;
  for (const int64_t numel : {1, 3, 15, 16, 17, 100, 1023, 1024, 1025, 5000}) {
    const std::vector<float> averages = of_many_sizes(numel, 1 + numel);
    std::vector<float> down(averages.size(), 3.0f), up = down;
    divide_by_scales(down.data(), averages.data(), numel, factor);
    multiply_by_scales(up.data(), averages.data(), numel, factor);
    for (size_t i = 0; i < averages.size(); ++i) {
      const double scale = std::sqrt(1 + static_cast<double>(factor) * averages[i]);
      // product, sum, root, quotient
      CHECK(std::fabs(down[i] * scale / 3 - 1) <= rounding(4), numel, i, down[i], scale);
      CHECK(std::fabs(up[i] / scale / 3 - 1) <= rounding(4), numel, i, up[i], scale);
      CHECK(down[i] <= 3, numel, i, down[i]);
    }
  }
}

void test_sum() {
  for (const int64_t numel : {0, 1, 15, 16, 17, 1024, 1040, 5003}) {
    const std::vector<float> values = of_many_sizes(numel, 2 + numel);
    double expected = 0;
    for (const float value : values) expected += static_cast<double>(value) * value;
    SquareSum whole, parts;
    whole.add(values.data(), numel);
    // A lane adds 64 squares and a block 16 lanes: fewer than 80 roundings of positive numbers.
    CHECK(std::fabs(whole.total() - expected) <= rounding(80) * expected, numel, whole.total());
    // In parts of whole blocks the additions are the same ones.
    const int64_t first = numel / kSquareSumBlock * kSquareSumBlock;
    parts.add(values.data(), first);
    parts.add(values.data() + first, numel - first);
    CHECK(whole.total() == parts.total(), numel, whole.total(), parts.total());
  }
  const float bad[] = {1.0f, std::nanf(""), 2.0f, 1e30f};
  SquareSum nan, overflow;
  nan.add(bad, 3);
  overflow.add(bad + 2, 2);
  CHECK(std::isnan(nan.total()) && std::isinf(overflow.total()), nan.total(), overflow.total());
}

void test_learning() {
  const float values[] = {2.0f, -2.0f, 0.0f, 0.0f};
  const float expected[] = {1.75f, 1.75f, 0.75f, 0.0f};
  float averages[] = {1.0f, 1.0f, 1.0f, 1e-30f};
  learn_squares(values, averages, 4, 0.75f, 0.25f);
  for (int i = 0; i < 4; ++i) CHECK(averages[i] == expected[i], i, averages[i]);
  // What is never seen again ends as a zero, and no denormal number on the way.
  const float zero = 0;
  float average = 1;
  for (int step = 0; step < 10000; ++step) {
    learn_squares(&zero, &average, 1, 0.98f, 0.02f);
    CHECK(average == 0 || std::isnormal(average), step, average);
  }
  CHECK(average == 0, average);
}

}  // namespace
}  // namespace gct

int main() {
  gct::test_scales();
  gct::test_sum();
  gct::test_learning();
  return gct::test::result();
}
