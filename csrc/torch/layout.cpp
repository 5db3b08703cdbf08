#include "torch/layout.h"

#include <algorithm>
#include <stdexcept>

namespace gct {

namespace {

// Large enough that a slice takes milliseconds on a slow link, small enough that scratch memory is
// a fraction of a usual bucket; the longer ones for tensors that still make four of them. The
// chunk's minimum keeps headers and lane states small beside it.
constexpr int64_t kSliceNumel = 512 * 1024;
constexpr int64_t kMaxSliceNumel = 1024 * 1024;
constexpr int64_t kFewSlices = 4;
constexpr int64_t kMinChunkNumel = 64 * 1024;

}  // namespace

RunTable::RunTable(std::vector<RunShape> runs) : runs_(std::move(runs)), begins_{0} {
  begins_.reserve(runs_.size() + 1);
  for (const RunShape& run : runs_) {
    if (run.numel < 0) throw std::invalid_argument("a run must have 0 or more elements");
    if (run.columns < 0) throw std::invalid_argument("a run must have 0 or more columns");
    begins_.push_back(begins_.back() + run.numel);
  }
}

void RunTable::cut(Range range, const void* data, DType dtype, std::vector<Run>* cut,
                   std::vector<int64_t>* index) const {
  cut->clear();
  index->clear();
  const auto* base = static_cast<const uint8_t*>(data);
  const auto after = std::upper_bound(begins_.begin(), begins_.end(), range.begin);
  for (auto run = static_cast<size_t>(after - begins_.begin()) - 1; run < runs_.size(); ++run) {
    const int64_t begin = std::max(range.begin, begins_[run]);
    const int64_t end = std::min(range.end, begins_[run + 1]);
    if (begins_[run] >= range.end) break;
    if (begin >= end) continue;
    Run part;
    part.data = base ? base + (begin - range.begin) * dtype_bytes(dtype) : nullptr;
    part.numel = end - begin;
    part.position = static_cast<uint64_t>(begin);
    part.raw = runs_[run].raw;
    part.columns = runs_[run].columns;
    if (part.columns > 0) part.first_column = (begin - begins_[run]) % part.columns;
    cut->push_back(part);
    index->push_back(static_cast<int64_t>(run));
  }
}

int64_t slice_numel(int64_t numel, int world) {
  const int64_t usual = std::clamp(numel / kFewSlices, kSliceNumel, kMaxSliceNumel);
  return std::max(usual, kMinChunkNumel * world);
}

std::vector<Range> plan_slices(int64_t numel, int64_t slice) {
  return numel == 0 ? std::vector<Range>{}
                    : split_range({0, numel}, static_cast<int>(div_up(numel, slice)));
}

std::vector<Range> split_range(Range range, int parts) {
  const int64_t blocks = div_up(range.numel(), kBlock);
  std::vector<Range> result;
  result.reserve(static_cast<size_t>(parts));
  int64_t begin = range.begin;
  for (int part = 0; part < parts; ++part) {
    const int64_t end = std::min(range.end, range.begin + blocks * (part + 1) / parts * kBlock);
    result.push_back({begin, end});
    begin = end;
  }
  return result;
}

}  // namespace gct
