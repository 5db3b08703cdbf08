// Scales of single elements: how large each was in earlier steps beside the others of its tensor,
// as far as reduced gradients tell. All ranks compute them from the same bits, by IEEE operations
// in a fixed order, and so agree in every bit without sending anything.
//
// What is kept of an element is the moving average of its squares, each step's in units of that
// step's mean square: steps count alike, however large their gradients are. Its scale is
// sqrt(1 + factor * average): at least 1, so that dividing by it overflows in no format.
#pragma once

#include <cstdint>

namespace gct {

// values[i] /= scale of averages[i].
void divide_by_scales(float* values, const float* averages, int64_t numel, float factor);

// values[i] *= scale of averages[i].
void multiply_by_scales(float* values, const float* averages, int64_t numel, float factor);

// averages[i] = decay * averages[i] + weight * values[i]^2.
void learn_squares(const float* values, float* averages, int64_t numel, float decay, float weight);

// Of the squares of all values that are added, in an order that doesn't depend on the processor's
// vectors. How values are divided among calls does count, unless all but the last are of a multiple
// of kSquareSumBlock.
constexpr int64_t kSquareSumBlock = 1024;

class SquareSum {
 public:
  void add(const float* values, int64_t numel);
  double total() const { return total_; }

 private:
  double total_ = 0;
};

}  // namespace gct
