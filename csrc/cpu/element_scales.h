// Scales of single elements: the root mean square that each had in earlier steps, as far as reduced
// gradients tell. All ranks compute them from the same bits, by IEEE operations in a fixed order,
// and so agree in every bit without sending anything.
//
// An element's scale is sqrt((square / mean + floor) / (1 + floor)): square is the moving average
// of its squares and mean that of the tensor's, so the scales' own mean square is 1.
#pragma once

#include <cstdint>

namespace gct {

class ElementScales {
 public:
  // Whether squares of this mean tell scales; below, they would be denormal numbers.
  static bool exist(double mean);

  // floor: of a scale's square, as a share of the tensor's mean square.
  ElementScales(double mean, float floor);

  // values[i] /= scale of squares[i].
  void divide(float* values, const float* squares, int64_t numel) const;

  // values[i] *= scale of squares[i].
  void multiply(float* values, const float* squares, int64_t numel) const;

 private:
  float factor_, offset_;  // scale^2 = square * factor + offset
};

// Finite values' squares enter the averages with a weight of 1 - decay.
void learn_squares(const float* values, float* squares, int64_t numel, float decay);

// Of all that was added, in an order that doesn't depend on the processor's vectors. Only the last
// call may be of a number that is no multiple of 16.
class SquareSum {
 public:
  void add(const float* squares, int64_t numel);
  double total() const { return total_; }

 private:
  double total_ = 0;
};

}  // namespace gct
