#include "torch/probe.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "core/wire.h"
#include "torch/float_ops.h"

namespace gct {

namespace {

void check(Status status, const char* doing) {
  if (status == Status::kOk) return;
  throw std::runtime_error(std::string(doing) +
                           " a segment for the monitor failed: " + status_message(status));
}

struct Energies {
  double signal = 0, error = 0;
};

Energies energies(const Run& run, DType dtype, const float* decoded) {
  constexpr int64_t kPart = 1024;  // a cache's worth
  float values[kPart];
  Energies sum;
  for (int64_t begin = 0; begin < run.numel; begin += kPart) {
    const int64_t n = std::min(kPart, run.numel - begin);
    to_float(dtype, static_cast<const uint8_t*>(run.data) + begin * dtype_bytes(dtype), values, n);
    for (int64_t i = 0; i < n; ++i) {
      const double x = values[i];
      const double e = x - decoded[begin + i];
      sum.signal += x * x;
      sum.error += e * e;
    }
  }
  return sum;
}

}  // namespace

void Probe::measure(const CodecParams& params, const EncodeInput& input,
                    const std::vector<int64_t>& index, const uint8_t* wire, size_t bytes,
                    RunAverages* averages) {
  SegmentLayout layout;
  check(read_layout(wire, bytes, &layout), "reading");
  decoded_.resize(static_cast<size_t>(layout.header.numel));
  check(decode(wire, bytes, decoded_.data(), layout.header.numel, /*accumulate=*/false, workspace_),
        "decoding");

  const float* decoded = decoded_.data();
  for (size_t i = 0; i < layout.runs.size(); ++i) {
    const Run& run = input.runs[i];
    const RunHeader& header = layout.runs[i];
    const auto at = static_cast<size_t>(index[i]);
    const Energies sum = energies(run, input.dtype, decoded);
    averages->signal[at] += sum.signal;
    averages->error[at] += sum.error;
    if (header.mode == RunMode::kRaw) {
      averages->bits[at] += 8.0 * raw_type_bytes(layout.header.raw_type) * run.numel;
    } else if (header.mode == RunMode::kCoded) {
      averages->bits[at] += params.kind == Kind::kFixed
                                ? 8.0 * fixed_run_bytes(run.numel, layout.header.fixed_bits)
                                : coded_bits(params, input, run, header.code.step);
    }
    decoded += run.numel;
  }
  averages->probed = true;
}

double Probe::coded_bits(const CodecParams& params, const EncodeInput& input, const Run& run,
                         float step) {
  CodecParams alone = params;
  alone.target = Target::kStep;
  alone.value = step;
  EncodeInput one = input;
  one.runs = &run;
  one.num_runs = 1;
  segment_.resize(max_segment_bytes(alone, one));
  EncodeStats stats;
  stats.want_model_bits = true;
  size_t written = 0;
  check(encode(alone, one, segment_.data(), segment_.size(), &written, workspace_, &stats),
        "encoding");
  SegmentHeader header;
  check(read_segment_header(segment_.data(), written, &header), "reading");
  if (header.kind == WireKind::kGG) return stats.model_bits;
  return 8.0 * static_cast<double>(written - kSegmentHeaderBytes - kRunHeaderBytes);
}

int64_t Probe::capacity_bytes() const {
  return static_cast<int64_t>(workspace_.capacity_bytes() + decoded_.capacity() * sizeof(float) +
                              segment_.capacity());
}

}  // namespace gct
