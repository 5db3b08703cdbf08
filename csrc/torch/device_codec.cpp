#include "torch/device_codec.h"

#include <algorithm>
#include <utility>

#include "torch/float_ops.h"
#include "torch/require.h"

namespace gct {

namespace {

gpu::Executor& executor_of(at::Device device) {
  if (device.is_cpu()) return gpu::host_executor();
  require(device.is_cuda() && device.has_index(),
          "kernels run on a CUDA device with an index, or on the CPU; got " + device.str());
  const std::string problem = cuda_problem();
  require(problem.empty(), "CUDA kernels can't run here: " + problem);
#if defined(GCT_BUILD_CUDA)
  return gpu::cuda_executor(device.index());
#else
  throw std::logic_error("not reached");
#endif
}

at::Tensor empty_on(at::Device device, at::IntArrayRef sizes, at::ScalarType type) {
  return at::empty(sizes, at::TensorOptions().dtype(type).device(device));
}

// By torch, in the order of its current stream: what the memory held before may still be in use
// there. Done when it returns.
at::Tensor upload(const std::vector<uint8_t>& bytes, at::Device device) {
  at::Tensor copy = empty_on(at::kCPU, {static_cast<int64_t>(bytes.size())}, at::kByte);
  std::copy(bytes.begin(), bytes.end(), copy.data_ptr<uint8_t>());
  return copy.to(device);
}

void check(const at::Tensor& tensor, const char* what, at::Device device, at::ScalarType type,
           int64_t least) {
  require(tensor.device() == device,
          std::string(what) + " must be on " + device.str() + ", got " + tensor.device().str());
  require(tensor.scalar_type() == type, std::string(what) + " must be " + c10::toString(type) +
                                            ", got " + c10::toString(tensor.scalar_type()));
  require(tensor.is_contiguous(), std::string(what) + " must be contiguous");
  require(tensor.numel() >= least, std::string(what) + " must have " + std::to_string(least) +
                                       " elements, got " + std::to_string(tensor.numel()));
}

void* stream_handle(int64_t stream) { return reinterpret_cast<void*>(stream); }

std::vector<gpu::SegmentRuns> segments_of(const std::vector<int64_t>& offsets,
                                          const std::vector<std::vector<Run>>& runs) {
  require(offsets.size() == runs.size(), "as many offsets as segments are needed");
  std::vector<gpu::SegmentRuns> segments;
  for (size_t i = 0; i < runs.size(); ++i) segments.push_back({offsets[i], runs[i]});
  return segments;
}

}  // namespace

std::string cuda_problem() {
#if defined(GCT_BUILD_CUDA)
  return gpu::cuda_problem();
#else
  return "this build of gct has no CUDA kernels: install it where nvcc is on PATH, or with "
         "GCT_CUDA=1";
#endif
}

DeviceScratch::DeviceScratch(at::Device device) : device_(device) {}

uint8_t* DeviceScratch::reserve(int64_t bytes) {
  if (bytes > capacity_bytes()) {
    bytes_ = at::Tensor();  // first give back, then take
    bytes_ = empty_on(device_, {bytes}, at::kByte);
  }
  return bytes_.defined() ? bytes_.data_ptr<uint8_t>() : nullptr;
}

DeviceEncoder::DeviceEncoder(const CodecParams& params, at::ScalarType dtype,
                             const std::vector<int64_t>& offsets,
                             const std::vector<std::vector<Run>>& runs, at::Device device)
    : layout_(params, codec_dtype(dtype, "gct: the tensor"), segments_of(offsets, runs)),
      executor_(&executor_of(device)),
      device_(device),
      dtype_(dtype),
      descriptors_(upload(layout_.descriptors(), device)),
      statistics_(empty_on(device, {layout_.num_runs(), gpu::kStatistics}, at::kFloat)) {
  for (size_t i = 0; i < runs.size(); ++i) {
    int64_t end = offsets[i];
    for (const Run& run : runs[i]) end += run.numel;
    data_numel_ = std::max(data_numel_, end);
  }
}

void DeviceEncoder::encode(const at::Tensor& data, const at::Tensor& out, uint64_t seed,
                           int64_t stream, DeviceScratch& scratch) {
  check(data, "the input", device_, dtype_, data_numel_);
  check(out, "the output", device_, at::kByte, out_bytes());
  require(scratch.device() == device_, "scratch must be on " + device_.str());
  if (layout_.num_segments() == 0) return;
  gpu::EncodeBatch batch =
      layout_.bind(descriptors_.data_ptr<uint8_t>(), scratch.reserve(layout_.scratch_bytes()),
                   executor_->tables());
  batch.params.seed = seed;
  batch.data = data.data_ptr();
  batch.out = out.data_ptr<uint8_t>();
  batch.statistics = statistics_.data_ptr<float>();
  executor_->encode(batch, stream_handle(stream));
}

DeviceDecoder::DeviceDecoder(const std::vector<gpu::ExpectedSegment>& segments, at::Device device)
    : layout_(segments),
      executor_(&executor_of(device)),
      device_(device),
      descriptors_(upload(layout_.descriptors(), device)),
      statuses_(empty_on(device, {layout_.num_segments()}, at::kInt)) {
  for (const gpu::ExpectedSegment& s : segments) {
    require(s.at >= 0 && s.size >= 0 && s.out >= 0 && s.numel >= 0 && s.max_runs >= 0,
            "places and sizes of segments can't be negative");
    wire_bytes_ = std::max(wire_bytes_, s.at + s.size);
    out_numel_ = std::max(out_numel_, s.out + s.numel);
  }
}

void DeviceDecoder::decode(const at::Tensor& wire, const at::Tensor& out, bool accumulate,
                           int64_t stream, DeviceScratch& scratch) {
  check(wire, "the wire", device_, at::kByte, wire_bytes_);
  check(out, "the output", device_, at::kFloat, out_numel_);
  require(scratch.device() == device_, "scratch must be on " + device_.str());
  if (layout_.num_segments() == 0) return;
  gpu::DecodeBatch batch =
      layout_.bind(descriptors_.data_ptr<uint8_t>(), scratch.reserve(layout_.scratch_bytes()),
                   executor_->tables());
  batch.wire = wire.data_ptr<uint8_t>();
  batch.out = out.data_ptr<float>();
  batch.accumulate = accumulate;
  batch.statuses = statuses_.data_ptr<int32_t>();
  executor_->decode(batch, stream_handle(stream));
}

}  // namespace gct
