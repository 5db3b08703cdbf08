// Encoding and decoding of a job's ranges: the codec's calls with the job's runs, parameters and
// messages.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "codec.h"
#include "torch/job.h"
#include "torch/probe.h"

namespace gct {

// One per pipeline thread: owns that thread's scratch.
class SegmentCoder {
 public:
  // `pool` may be shared with the other threads; `counters` outlives this.
  SegmentCoder(ThreadPool* pool, Counters* counters);

  // Bytes to reserve for the segment of `range` and its checksum; exactly what it takes where
  // job.slots_known. 0 for an empty range, which has no segment at all.
  int64_t slot_bytes(const Job& job, Range range, DType dtype);

  // Encodes elements `range` of the job, read from `data` (the address of range.begin), to out[0,
  // slot_bytes()). `stream` tells apart what is encoded with the same seed at the same positions.
  // Statistics of the runs are added to *averages. Returns the bytes to send. `own`, where it is
  // not null, gets what the segment decodes to, see codec.h.
  int64_t encode(const Job& job, Range range, const void* data, DType dtype, uint64_t stream,
                 uint8_t* out, RunAverages* averages, OwnValues* own = nullptr);

  // Decodes numel elements of a segment that came from rank `sender`; accumulate and factor as in
  // codec.h. Where the job has checksums and this one is wrong, leaves `out` alone, or clears it,
  // and notes that in *damage: no reason to stop, the other ranks wait for the rest of this one's
  // messages. Null: it isn't looked at.
  void decode(const Job& job, const uint8_t* wire, int64_t bytes, float* out, int64_t numel,
              bool accumulate, int sender, std::string* damage, float factor = 1);

  // Scratch of the codec after the latest call; may be asked from any thread.
  int64_t capacity_bytes() const { return capacity_bytes_.load(); }

 private:
  void note_capacity();
  EncodeInput cut(const Job& job, Range range, const void* data, DType dtype);

  Workspace workspace_;
  Probe probe_;
  Counters* counters_;
  std::vector<Run> runs_;
  std::vector<int64_t> run_index_;
  std::atomic<int64_t> capacity_bytes_{0};
};

// Adds the time from its making to its end to a counter.
class Stopwatch {
 public:
  explicit Stopwatch(std::atomic<int64_t>* nanoseconds);
  ~Stopwatch();
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  std::atomic<int64_t>* nanoseconds_;
  int64_t begin_;
};

}  // namespace gct
