// The encoder's one pass over the input and what it leaves behind: a plan for the segment.
#pragma once

#include <vector>

#include "codec.h"
#include "core/wire.h"
#include "cpu/kernels.h"

namespace gct {

struct RunPlan {
  RunHeader header;
  int64_t first_block = 0;  // in the sequence of coded blocks
  size_t profile = 0;       // where its offsets begin in Workspace::profiles, if header.columns > 0
  double signal = 0;        // sum of squares of a coded run
};

// The plan of one segment. Blocks of all coded runs form one sequence; classes and means
// are indexed by it and live in the Workspace.
struct EncodePlan {
  const CodecParams* params = nullptr;
  const EncodeInput* input = nullptr;
  Workspace* ws = nullptr;
  std::vector<RunPlan> runs;  // one an input run
  int64_t coded_blocks = 0;
  int64_t raw_numel = 0;
  int64_t nonfinite_runs = 0;
  double log2_step = 0;  // of a block of class 0, once it is chosen
  double signal = 0;     // sum of squares over the coded runs
};

// Sums over parts of a run, each divided by the scale of its class: what the shape follows from.
struct ShapeMoments {
  double numel = 0, abs = 0, square = 0;

  void add(int n, int scale_class, double sum_abs, double sum_square);
  // Index of the table grid's shape with the nearest E x^2 / (E|x|)^2 (Mallat 1989).
  uint8_t shape_index() const;
};

// Elements [offset, offset + n) of a run as float32: in place where they are, else converted into
// scratch.
const float* load_floats(const Run& run, DType dtype, int64_t offset, int n, float* scratch);

// Fills the plan: mode, shape and base class of each run, mean of each block.
void analyze(const CodecParams& params, const EncodeInput& input, Workspace& ws, EncodePlan* plan);

// Column profiles of an analyzed plan's matrices, where they pay.
void measure_profiles(EncodePlan* plan);

// Sets the class of each block in [begin, end) from its mean (again: skipping blocks overwrites
// them).
void assign_classes(int64_t begin, int64_t end, EncodePlan* plan);

// The blocks of one class in a run, and their elements.
struct ClassCount {
  int scale_class = 0;
  int64_t blocks = 0;
  double numel = 0;
};

// Of a coded run, zero blocks left out, by rising class.
void count_classes(const EncodePlan& plan, const RunPlan& run, std::vector<ClassCount>* counts);

// Walks blocks [begin, end) of the plan's sequence: f(run index, block in run, elements in block,
// block index).
template <typename F>
void for_each_block(const EncodePlan& plan, int64_t begin, int64_t end, F f) {
  size_t r = 0;
  const auto coded = [&](size_t i) { return plan.runs[i].header.mode == RunMode::kCoded; };
  const auto past = [&](size_t i) {
    return plan.runs[i].first_block + num_blocks(plan.runs[i].header.numel);
  };
  for (int64_t b = begin; b < end; ++b) {
    while (!coded(r) || past(r) <= b) ++r;
    const int64_t local = b - plan.runs[r].first_block;
    const int64_t left = plan.runs[r].header.numel - local * kBlock;
    f(r, local, static_cast<int>(left < kBlock ? left : kBlock), b);
  }
}

}  // namespace gct
