// Scales of single elements, against their definition in double precision.
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "cpu/element_scales.h"

namespace gct {
namespace {

constexpr float kFloor = 0.1f;

// Relative error of a float32 result of `operations` roundings.
double rounding(int operations) { return operations * std::ldexp(1.0, -24); }

std::vector<float> squares_of_many_sizes(int64_t numel, uint64_t seed) {
  test::Random random(seed);
  std::vector<float> squares(static_cast<size_t>(numel));
  for (float& square : squares) square = static_cast<float>(std::exp2(20 * random.unit() - 10));
  return squares;
}

double mean_of(const std::vector<float>& squares) {
  double sum = 0;
  for (const float square : squares) sum += square;
  return sum / static_cast<double>(squares.size());
}

// Sizes around a vector and around the block that is added up in float32.
void test_scales() {
  for (const int64_t numel : {1, 3, 15, 16, 17, 100, 1023, 1024, 1025, 5000}) {
    const std::vector<float> squares = squares_of_many_sizes(numel, 1 + numel);
    const double mean = mean_of(squares);
    const ElementScales scales(mean, kFloor);
    std::vector<float> down(squares.size(), 3.0f), up = down;
    scales.divide(down.data(), squares.data(), numel);
    scales.multiply(up.data(), squares.data(), numel);
    double mean_square = 0;
    for (size_t i = 0; i < squares.size(); ++i) {
      const double scale = std::sqrt((squares[i] / mean + kFloor) / (1 + kFloor));
      mean_square += scale * scale / static_cast<double>(numel);
      // factor, product, offset, sum, root, quotient
      CHECK(std::fabs(down[i] * scale / 3 - 1) <= rounding(6), numel, i, down[i], scale);
      CHECK(std::fabs(up[i] / scale / 3 - 1) <= rounding(6), numel, i, up[i], scale);
    }
    CHECK(std::fabs(mean_square - 1) < 1e-6, numel, mean_square);
  }
}

void test_sum() {
  for (const int64_t numel : {0, 1, 15, 16, 17, 1024, 1040, 5003}) {
    const std::vector<float> squares = squares_of_many_sizes(numel, 2 + numel);
    double expected = 0;
    for (const float square : squares) expected += square;
    SquareSum whole, parts;
    whole.add(squares.data(), numel);
    // A lane adds 64 values and a block 16 lanes: fewer than 80 roundings of positive numbers.
    CHECK(std::fabs(whole.total() - expected) <= rounding(80) * expected, numel, whole.total());
    // In parts of whole blocks the additions are the same ones.
    const int64_t first = numel / 1024 * 1024;
    parts.add(squares.data(), first);
    parts.add(squares.data() + first, numel - first);
    CHECK(whole.total() == parts.total(), numel, whole.total(), parts.total());
  }
}

void test_learning() {
  const float decay = 0.75f;
  const float infinity = std::numeric_limits<float>::infinity();
  const float values[] = {2.0f, -2.0f, 0.0f, infinity, -infinity, std::nanf(""), 1e30f};
  const float expected[] = {1.75f, 1.75f, 0.75f, 1.0f, 1.0f, 1.0f, 1.0f};
  float squares[] = {1, 1, 1, 1, 1, 1, 1};
  learn_squares(values, squares, 7, decay);
  for (int i = 0; i < 7; ++i) CHECK(squares[i] == expected[i], i, squares[i]);
}

void test_existence() {
  CHECK(ElementScales::exist(1e-20));
  for (const double none : {0.0, 1e-40, std::nan(""), HUGE_VAL}) {
    CHECK(!ElementScales::exist(none), none);
  }
}

}  // namespace
}  // namespace gct

int main() {
  gct::test_scales();
  gct::test_sum();
  gct::test_learning();
  gct::test_existence();
  return gct::test::result();
}
