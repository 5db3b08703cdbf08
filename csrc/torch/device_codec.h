// The codec's kernels on tensors: layouts made once, then encoding and decoding that only enqueue
// work on a stream. Everything lies on one device: a GPU, or the CPU, where the kernels' bodies run
// as loops (for tests).
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "cuda/executor.h"
#include "cuda/layout.h"

namespace gct {

// Empty where kernels can run, else why they can't.
std::string cuda_problem();

// Device memory that layouts of one stream take turns with; grows, never shrinks.
class DeviceScratch {
 public:
  explicit DeviceScratch(at::Device device);

  at::Device device() const { return device_; }
  uint8_t* reserve(int64_t bytes);
  int64_t capacity_bytes() const { return bytes_.defined() ? bytes_.numel() : 0; }

 private:
  at::Device device_;
  at::Tensor bytes_;
};

// What becomes of a batch of segments.
class DeviceEncoder {
 public:
  // Segment i holds `runs[i]`, side by side in the input from element offsets[i] on; empty ones are
  // left out. Throws std::invalid_argument for what GPUs don't encode, std::runtime_error where
  // kernels can't run. The first on a device copies tables there and waits for it.
  DeviceEncoder(const CodecParams& params, at::ScalarType dtype,
                const std::vector<int64_t>& offsets, const std::vector<std::vector<Run>>& runs,
                at::Device device);

  int64_t out_bytes() const { return layout_.out_bytes(); }

  // Enqueues on `stream` (a cudaStream_t as a number, which the device's current one is). Segment
  // after segment, each in its slot, padded with zeros, to out.
  void encode(const at::Tensor& data, const at::Tensor& out, uint64_t seed, int64_t stream,
              DeviceScratch& scratch);

  // Of the latest encode(), by run, in the first call's order: float32 [runs, 3] of scale, shape
  // and whether it held NaN or Inf. A copy on the device: valid once the stream has come that far.
  at::Tensor statistics() const { return statistics_; }

 private:
  gpu::EncodeLayout layout_;
  gpu::Executor* executor_;
  at::Device device_;
  at::ScalarType dtype_;
  int64_t data_numel_ = 0;
  at::Tensor descriptors_;
  at::Tensor statistics_;
};

class DeviceDecoder {
 public:
  DeviceDecoder(const std::vector<gpu::ExpectedSegment>& segments, at::Device device);

  // Enqueues on `stream`. Values that follow from unsound bytes are NaN.
  void decode(const at::Tensor& wire, const at::Tensor& out, bool accumulate, int64_t stream,
              DeviceScratch& scratch);

  // Of the latest decode(): int32, by segment, 0 if it was sound; on the device, as above.
  at::Tensor statuses() const { return statuses_; }

 private:
  gpu::DecodeLayout layout_;
  gpu::Executor* executor_;
  at::Device device_;
  int64_t wire_bytes_ = 0, out_numel_ = 0;
  at::Tensor descriptors_;
  at::Tensor statuses_;
};

}  // namespace gct
