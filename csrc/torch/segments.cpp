#include "torch/segments.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>

#include "cpu/crc32c.h"

namespace gct {

namespace {

constexpr int64_t kChecksumBytes = 4;

// Whether the checksum behind wire[0, bytes) is that of these bytes.
bool checksum_fits(const uint8_t* wire, int64_t bytes) {
  return bytes > 0 && load_le<uint32_t>(wire + bytes) == crc32c(wire, static_cast<size_t>(bytes));
}

void note_damage(int sender, int64_t bytes, std::string* damage) {
  if (!damage->empty()) return;
  *damage = "the checksum of rank " + std::to_string(sender) + "'s segment of " +
            std::to_string(bytes) + " bytes is wrong: it was damaged on its way";
}

int64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

// splitmix64: neighbouring (seed, stream) give unrelated seeds.
uint64_t mix(uint64_t seed, uint64_t stream) {
  uint64_t z = seed + (stream + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace

Stopwatch::Stopwatch(std::atomic<int64_t>* nanoseconds)
    : nanoseconds_(nanoseconds), begin_(now_ns()) {}

Stopwatch::~Stopwatch() { nanoseconds_->fetch_add(now_ns() - begin_); }

SegmentCoder::SegmentCoder(ThreadPool* pool, Counters* counters)
    : probe_(pool), counters_(counters) {
  workspace_.pool = pool;
}

EncodeInput SegmentCoder::cut(const Job& job, Range range, const void* data, DType dtype) {
  job.runs.cut(range, data, dtype, &runs_, &run_index_);
  EncodeInput input;
  input.dtype = dtype;
  input.runs = runs_.data();
  input.num_runs = static_cast<int64_t>(runs_.size());
  return input;
}

int64_t SegmentCoder::slot_bytes(const Job& job, Range range, DType dtype) {
  if (range.numel() == 0) return 0;
  const EncodeInput input = cut(job, range, nullptr, dtype);
  const int64_t checksum = job.spec.checksum ? kChecksumBytes : 0;
  return static_cast<int64_t>(gct::slot_bytes(job.spec.codec, input)) + checksum;
}

int64_t SegmentCoder::encode(const Job& job, Range range, const void* data, DType dtype,
                             uint64_t stream, uint8_t* out, RunAverages* averages, OwnValues* own) {
  if (range.numel() == 0) return 0;
  auto stopwatch = std::make_optional<Stopwatch>(&counters_->encode_ns);
  CodecParams params = job.spec.codec;
  params.seed = mix(job.spec.seed, stream);
  const EncodeInput input = cut(job, range, data, dtype);
  const size_t slot = gct::slot_bytes(params, input);
  size_t written = 0;
  EncodeStats stats;
  const Status status = gct::encode(params, input, out, slot, &written, workspace_, &stats, own);
  if (status != Status::kOk) {
    throw std::runtime_error(std::string("encoding failed: ") + status_message(status));
  }
  averages->add(runs_, run_index_, workspace_.run_stats);
  if (job.spec.probe) {
    stopwatch.reset();
    probe_.measure(params, input, run_index_, out, written, averages);
  }
  note_capacity();
  if (job.slots_known) {
    memset(out + written, 0, slot - written);  // the same bytes every time, and nobody's memory
    written = slot;
  }
  if (job.spec.checksum) {
    store_le<uint32_t>(out + written, crc32c(out, written));
    written += size_t{kChecksumBytes};
  }
  counters_->encoded_numel.fetch_add(range.numel());
  counters_->encoded_bytes.fetch_add(static_cast<int64_t>(written));
  counters_->nonfinite_runs.fetch_add(stats.nonfinite_runs);
  return static_cast<int64_t>(written);
}

void SegmentCoder::decode(const Job& job, const uint8_t* wire, int64_t bytes, float* out,
                          int64_t numel, bool accumulate, int sender, std::string* damage,
                          float factor) {
  if (numel == 0) return;
  const Stopwatch stopwatch(&counters_->decode_ns);
  if (job.spec.checksum) {
    bytes -= std::min(bytes, kChecksumBytes);
    if (damage && !checksum_fits(wire, bytes)) {
      note_damage(sender, bytes, damage);
      if (!accumulate) std::fill(out, out + numel, 0.0f);
      return;
    }
  }
  const Status status =
      gct::decode(wire, static_cast<size_t>(bytes), out, numel, accumulate, workspace_, factor);
  note_capacity();
  if (status != Status::kOk) {
    throw std::runtime_error("the segment of rank " + std::to_string(sender) + " (" +
                             std::to_string(bytes) + " bytes for " + std::to_string(numel) +
                             " elements) can't be decoded: " + status_message(status));
  }
}

void SegmentCoder::note_capacity() {
  capacity_bytes_.store(static_cast<int64_t>(workspace_.capacity_bytes()) +
                        probe_.capacity_bytes());
}

}  // namespace gct
