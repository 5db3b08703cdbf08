// Low-rank parts as they are used: factors decoded from a segment's section, and their product.
#pragma once

#include <algorithm>
#include <vector>

#include "codec.h"
#include "core/wire.h"
#include "cpu/thread_pool.h"

namespace gct {

class LowRankFactors {
 public:
  // Decodes the factors of a section.
  Status decode(const LowRankSection& section, Workspace& workspace);

  void clear() { parts_.clear(); }
  size_t capacity_bytes() const {
    return parts_.capacity() * sizeof(Part) + (values_.capacity() + copy_.capacity()) * 4;
  }
  size_t num_parts() const { return parts_.size(); }
  const LowRankPart& part(size_t i) const { return parts_[i].part; }

  // Elements [begin, begin + n) of the run that part i belongs to, the product alone.
  void product(size_t i, int64_t begin, int64_t n, float* out) const;

 private:
  struct Part {
    LowRankPart part;
    size_t right;  // in values_: rank x columns, gains multiplied in
    size_t left;   // rows x rank
  };

  void transpose_with_gains(const LowRankPart& part, float* right);

  std::vector<Part> parts_;
  std::vector<float> values_;
  std::vector<float> copy_;  // of a right factor
};

// Elements that are multiplied at one go, and that one task of a thread pool takes.
constexpr int64_t kLowRankStretch = 1 << 10;
constexpr int64_t kLowRankTask = 1 << 15;

// Calls f(begin, n), n <= kLowRankStretch, for all of [0, numel), on the pool's threads if there is
// a pool.
template <typename F>
void for_each_stretch(int64_t numel, ThreadPool* pool, F f) {
  const auto body = [&](int64_t task, int) {
    const int64_t end = std::min(numel, (task + 1) * kLowRankTask);
    for (int64_t begin = task * kLowRankTask; begin < end; begin += kLowRankStretch)
      f(begin, std::min(kLowRankStretch, end - begin));
  };
  parallel_for(pool, div_up(numel, kLowRankTask), body);
}

// Adds each part's product to its run; out is the whole segment's output.
void add_products(const LowRankFactors& factors, const std::vector<RunHeader>& runs, float* out,
                  ThreadPool* pool);

}  // namespace gct
