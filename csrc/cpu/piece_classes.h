// Scale classes of the blocks as pieces code them: which blocks become zeros, symbols, models.
#pragma once

#include "core/class_code.h"
#include "cpu/analyze.h"

namespace gct {

// Turns classes into symbols, predicting each from the last coded block of the same run and piece.
class ClassPredictor {
 public:
  explicit ClassPredictor(const EncodePlan& plan) : plan_(plan) {}

  // f(symbol, difference to the prediction) for one block; blocks come in order.
  template <typename F>
  void next(size_t run, int scale_class, F f) {
    if (!started_ || run != run_) predicted_ = plan_.runs[run].header.base_class;
    started_ = true;
    run_ = run;
    if (scale_class == kZeroClass) {
      f(kZeroBlock, 0);
      return;
    }
    const int delta = scale_class - predicted_;
    f(class_symbol(scale_class, predicted_), delta);
    predicted_ = scale_class;
  }

 private:
  const EncodePlan& plan_;
  bool started_ = false;
  size_t run_ = 0;
  int predicted_ = 0;
};

// Bits that the classes take as they are.
double class_bits(EncodePlan* plan);

// Sets blocks whose symbols would all be zero to kZeroClass, then the class model of each run.
void prepare_classes(EncodePlan* plan);

}  // namespace gct
