// What encoding did to each run: bits and error, for monitoring.
#pragma once

#include <cstdint>
#include <vector>

#include "codec.h"
#include "torch/job.h"

namespace gct {

// Measures segments after they were encoded, about as slowly as encoding and decoding them once
// more. One per pipeline thread: owns its scratch, which is empty until first used.
class Probe {
 public:
  explicit Probe(ThreadPool* pool) { workspace_.pool = pool; }

  // Adds bits, error and signal of each run of `input` to *averages at `index` (its run in the
  // job). wire[0, bytes) is the segment that encode(params, input) wrote. Throws std::runtime_error
  // if that can't be decoded.
  void measure(const CodecParams& params, const EncodeInput& input,
               const std::vector<int64_t>& index, const uint8_t* wire, size_t bytes,
               RunAverages* averages);

  int64_t capacity_bytes() const;

 private:
  // The ideal code length of one run by itself at the step that its segment gave it.
  double coded_bits(const CodecParams& params, const EncodeInput& input, const Run& run,
                    float step);

  Workspace workspace_;
  std::vector<float> decoded_;
  std::vector<uint8_t> segment_;
};

}  // namespace gct
