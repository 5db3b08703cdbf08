#include "cpu/low_rank.h"

#include "cpu/kernels.h"

namespace gct {
namespace {

// The factors' segment fills its place and has no low-rank parts of its own: one level, no more.
Status check_factors(const LowRankSection& section) {
  SegmentHeader header;
  const Status status = read_segment_header(section.factors, section.factors_bytes, &header);
  if (status != Status::kOk) return status;
  const bool sound = !header.low_rank() && header.numel == section.factor_numel &&
                     header.size_bytes == static_cast<int64_t>(section.factors_bytes);
  return sound ? Status::kOk : Status::kBadHeader;
}

}  // namespace

// columns x rank to rank x columns, each multiplied by its gain.
void LowRankFactors::transpose_with_gains(const LowRankPart& part, float* right) {
  copy_.assign(right, right + part.right_numel());
  for (int64_t k = 0; k < part.rank; ++k) {
    const float gain = part.gain(k);
    for (int64_t j = 0; j < part.columns; ++j)
      right[k * part.columns + j] = copy_[static_cast<size_t>(j * part.rank + k)] * gain;
  }
}

Status LowRankFactors::decode(const LowRankSection& section, Workspace& workspace) {
  Status status = check_factors(section);
  if (status != Status::kOk) return status;
  values_.resize(static_cast<size_t>(section.factor_numel));
  status = gct::decode(section.factors, section.factors_bytes, values_.data(), section.factor_numel,
                       /*accumulate=*/false, workspace);
  if (status != Status::kOk) return status;
  size_t at = 0;
  parts_.clear();
  for (const LowRankPart& part : section.parts) {
    const size_t left = at + static_cast<size_t>(part.right_numel());
    parts_.push_back({part, at, left});
    transpose_with_gains(part, values_.data() + at);
    at = left + static_cast<size_t>(part.left_numel());
  }
  return Status::kOk;
}

void LowRankFactors::product(size_t i, int64_t begin, int64_t n, float* out) const {
  const LowRankPart& part = parts_[i].part;
  const float* right = values_.data() + parts_[i].right;
  const float* left = values_.data() + parts_[i].left;
  const int rank = static_cast<int>(part.rank);
  while (n > 0) {
    const int64_t row = (part.first + begin) / part.columns;
    const int64_t column = (part.first + begin) % part.columns;
    const int64_t count = std::min(n, part.columns - column);
    kernels().row_product(left + row * part.rank, right + column, part.columns, rank, count, out);
    begin += count;
    out += count;
    n -= count;
  }
}

void add_products(const LowRankFactors& factors, const std::vector<RunHeader>& runs, float* out,
                  ThreadPool* pool) {
  size_t run = 0;
  for (size_t i = 0; i < factors.num_parts(); ++i) {
    for (; run < factors.part(i).run; ++run) out += runs[run].numel;
    for_each_stretch(runs[run].numel, pool, [&](int64_t begin, int64_t n) {
      float product[kLowRankStretch];
      factors.product(i, begin, n, product);
      for (int64_t j = 0; j < n; ++j) out[begin + j] += product[j];
    });
  }
}

}  // namespace gct
