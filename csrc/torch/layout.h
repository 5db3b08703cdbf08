// How a tensor is cut: into slices (what is on its way at one time), chunks (what one rank owns of
// a slice) and the runs of each. Every rank computes the same from the runs' sizes alone; nothing
// about it crosses the wire.
#pragma once

#include <cstdint>
#include <vector>

#include "codec.h"

namespace gct {

// Elements [begin, end) of a job's input.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t numel() const { return end - begin; }
};

// One run of a job's input: a parameter, or several raw ones that stand side by side.
struct RunShape {
  int64_t numel = 0;
  bool raw = false;
  int64_t columns = 0;  // as in Run
};

// The runs of a job's input and where they begin.
class RunTable {
 public:
  // Throws std::invalid_argument if a run's size or its columns are negative.
  explicit RunTable(std::vector<RunShape> runs);

  int64_t numel() const { return begins_.back(); }
  int64_t num_runs() const { return static_cast<int64_t>(runs_.size()); }

  // Replaces *cut by the parts of the runs inside `range`, empty ones left out, and *index by the
  // run that each part belongs to. `data` is the address of element range.begin, null where only
  // the sizes matter.
  void cut(Range range, const void* data, DType dtype, std::vector<Run>* cut,
           std::vector<int64_t>* index) const;

 private:
  std::vector<RunShape> runs_;
  std::vector<int64_t> begins_;  // one more than runs
};

// Elements of a slice of a tensor of `numel` for `world` ranks. Long enough that the costs of a
// message and of threads that wait for each other vanish and that a rank's chunk keeps its
// statistics; short enough that encoding, wire and decoding of one tensor overlap.
int64_t slice_numel(int64_t numel, int world);

// [0, numel) in slices of nearly equal length, at most about `slice` long, cut at multiples of
// kBlock.
std::vector<Range> plan_slices(int64_t numel, int64_t slice);

// `range` in `parts` parts of nearly equal length, cut at multiples of kBlock from its begin. Parts
// may be empty.
std::vector<Range> split_range(Range range, int parts);

}  // namespace gct
