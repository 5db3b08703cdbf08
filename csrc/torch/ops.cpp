#include "torch/ops.h"

#include <stdexcept>
#include <string>

#include "torch/float_ops.h"
#include "torch/require.h"

namespace gct {

namespace {

void check_plain(const at::Tensor& tensor, const std::string& what) {
  require(tensor.device().is_cpu(),
          what + " must be on the CPU in this version, got " + tensor.device().str());
  require(tensor.layout() == at::kStrided && tensor.is_contiguous(),
          what + " must be contiguous: pass .contiguous()");
}

void check_wire(const at::Tensor& wire) {
  require(wire.scalar_type() == at::kByte,
          std::string("the wire must be uint8, got ") + c10::toString(wire.scalar_type()));
  require(wire.dim() == 1, "the wire must have 1 dimension, got " + std::to_string(wire.dim()));
  check_plain(wire, "the wire");
}

[[noreturn]] void throw_status(Status status, const std::string& context) {
  throw std::invalid_argument("gct: " + context + ": " + status_message(status));
}

std::string describe(const at::Tensor& wire) {
  return "these " + std::to_string(wire.numel()) + " bytes are no segment that can be decoded";
}

}  // namespace

at::Tensor encode_tensor(const at::Tensor& values, const CodecParams& params, EncodeStats* stats) {
  check_plain(values, "the tensor");
  Run run;
  run.data = values.data_ptr();
  run.numel = values.numel();
  if (values.dim() >= 2 && run.numel > 0) run.columns = run.numel / values.size(0);
  EncodeInput input;
  input.dtype = codec_dtype(values.scalar_type(), "gct: the tensor");
  input.runs = &run;
  input.num_runs = 1;

  const auto capacity = static_cast<int64_t>(max_segment_bytes(params, input));
  at::Tensor wire = at::empty({capacity}, at::TensorOptions().dtype(at::kByte));
  size_t written = 0;
  Workspace workspace;
  const Status status = encode(params, input, wire.data_ptr<uint8_t>(),
                               static_cast<size_t>(capacity), &written, workspace, stats);
  if (status != Status::kOk) throw_status(status, "encoding failed");
  return wire.narrow(0, 0, static_cast<int64_t>(written)).clone();
}

SegmentInfo inspect_tensor(const at::Tensor& wire) {
  check_wire(wire);
  SegmentInfo info;
  const Status status = inspect(wire.data_ptr<uint8_t>(), static_cast<size_t>(wire.numel()), &info);
  if (status != Status::kOk) throw_status(status, describe(wire));
  return info;
}

at::Tensor decode_tensor(const at::Tensor& wire) {
  const SegmentInfo info = inspect_tensor(wire);
  at::Tensor values = at::empty({info.numel}, at::TensorOptions().dtype(at::kFloat));
  Workspace workspace;
  const Status status =
      decode(wire.data_ptr<uint8_t>(), static_cast<size_t>(wire.numel()), values.data_ptr<float>(),
             info.numel, /*accumulate=*/false, workspace);
  if (status != Status::kOk) throw_status(status, describe(wire));
  return values;
}

}  // namespace gct
