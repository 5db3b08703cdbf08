// From the sizes of a bucket's runs to a batch: made once for each layout, then used every step.
#pragma once

#include <vector>

#include "cuda/batch.h"

namespace gct::gpu {

// One segment to encode: its runs stand side by side in the input, from element `offset` on. Only
// their numel, position and raw are looked at.
struct SegmentRuns {
  int64_t offset = 0;
  std::vector<Run> runs;
};

class EncodeLayout {
 public:
  // Segments follow each other in the output, each in a slot of slot_bytes(). Empty ones are left
  // out. Throws std::invalid_argument for a codec or a dtype that GPUs don't encode.
  EncodeLayout(const CodecParams& params, DType dtype, const std::vector<SegmentRuns>& segments);

  int64_t out_bytes() const { return out_bytes_; }
  // What has to be in device memory as long as the layout is used.
  const std::vector<uint8_t>& descriptors() const { return descriptors_; }
  // Device memory that a batch needs while it is encoded; layouts may share it.
  int64_t scratch_bytes() const;

  // A batch with the device's copy of descriptors() and its scratch, both aligned to 256 bytes;
  // seed, data and out stay to be set.
  EncodeBatch bind(const uint8_t* descriptors, uint8_t* scratch, const CodingTables& tables) const;
  int64_t num_segments() const { return sizes_.num_segments; }
  int64_t num_runs() const { return sizes_.num_runs; }

 private:
  int64_t carve(uint8_t* scratch, EncodeBatch* batch) const;

  EncodeBatch sizes_ = {};
  std::vector<uint8_t> descriptors_;  // runs, then segments
  int64_t out_bytes_ = 0;
};

// One segment to decode, of which only this is known before.
struct ExpectedSegment {
  int64_t at = 0, size = 0;  // bytes of the input
  int64_t out = 0, numel = 0;
  int64_t max_runs = 0;  // more in the segment's header than this: refused
};

class DecodeLayout {
 public:
  explicit DecodeLayout(const std::vector<ExpectedSegment>& segments);

  int64_t num_segments() const { return sizes_.num_segments; }
  // As of EncodeLayout.
  const std::vector<uint8_t>& descriptors() const { return descriptors_; }
  int64_t scratch_bytes() const;
  DecodeBatch bind(const uint8_t* descriptors, uint8_t* scratch, const CodingTables& tables) const;

 private:
  int64_t carve(uint8_t* scratch, DecodeBatch* batch) const;

  DecodeBatch sizes_ = {};
  int64_t runs_ = 0, blocks_ = 0;
  std::vector<uint8_t> descriptors_;
};

}  // namespace gct::gpu
