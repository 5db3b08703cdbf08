#include "torch/job.h"

#include <limits>
#include <stdexcept>

#include "torch/float_ops.h"
#include "torch/require.h"

namespace gct {

namespace {

// Two shots wait for the wire twice. Where one shot sends no more than this in addition, it is done
// sooner even on a slow link: 16 KiB take 0.13 ms at 1 Gbit/s, about a message's way there and
// back.
constexpr double kLatencyBytes = 16 * 1024;

// Bits an element to reckon with before anything is encoded; the same on all ranks.
double expected_bits(const CodecParams& codec, DType dtype) {
  if (codec.kind == Kind::kRaw) return 8.0 * dtype_bytes(dtype);
  return codec.target == Target::kBits ? codec.value : 4.0;
}

void check_tensor(const at::Tensor& tensor, const std::string& what) {
  require(tensor.defined(), what + " must be a tensor, got none");
  require(tensor.device().is_cpu(),
          what + " must be on the CPU in this version, got " + tensor.device().str());
  require(tensor.layout() == at::kStrided && tensor.is_contiguous(),
          what + " must be contiguous, got strides " + c10::str(tensor.sizes()) + " / " +
              (tensor.layout() == at::kStrided ? c10::str(tensor.strides()) : "not strided") +
              ": pass tensor.contiguous()");
}

void check_sizes(const JobSpec& spec, int64_t runs_numel, int world) {
  const int64_t numel = spec.input.numel();
  require(runs_numel == numel, "the runs must cover the input's " + std::to_string(numel) +
                                   " elements, got " + std::to_string(runs_numel));
  if (spec.output.defined()) {
    const bool gather = spec.collective == Collective::kAllGather;
    const int64_t expected = gather ? numel * world : numel / world;
    require(gather || numel % world == 0, "reduce_scatter's input must divide evenly among " +
                                              std::to_string(world) + " ranks, got " +
                                              std::to_string(numel) + " elements");
    require(spec.output.numel() == expected,
            "the output must have " + std::to_string(expected) + " elements for an input of " +
                std::to_string(numel) + " on " + std::to_string(world) + " ranks, got " +
                std::to_string(spec.output.numel()));
    require(spec.output.scalar_type() == spec.input.scalar_type(),
            "input and output must have the same dtype");
  }
  if (spec.residual.defined()) {
    require(spec.residual.scalar_type() == at::kFloat && spec.residual.numel() == numel,
            "the residual must be float32 and as long as the input");
  }
}

}  // namespace

Algorithm parse_algorithm(const std::string& name) {
  if (name == "auto") return Algorithm::kAuto;
  if (name == "one_shot") return Algorithm::kOneShot;
  if (name == "two_shot") return Algorithm::kTwoShot;
  throw std::invalid_argument("gct: algorithm must be auto, one_shot or two_shot, got " + name);
}

Algorithm choose_algorithm(Algorithm asked, const CodecParams& codec, DType dtype, int64_t numel,
                           int world) {
  if (asked != Algorithm::kAuto) return asked;
  if (world <= 2) return Algorithm::kOneShot;
  const double segment_bytes = static_cast<double>(numel) * expected_bits(codec, dtype) / 8;
  const double more_bytes = segment_bytes * (world - 1) * (1 - 2.0 / world);
  return more_bytes <= kLatencyBytes ? Algorithm::kOneShot : Algorithm::kTwoShot;
}

RunAverages::RunAverages(int64_t runs)
    : weight(static_cast<size_t>(runs)),
      scale(static_cast<size_t>(runs)),
      shape(static_cast<size_t>(runs)),
      bits(static_cast<size_t>(runs)),
      error(static_cast<size_t>(runs)),
      signal(static_cast<size_t>(runs)) {}

void RunAverages::add(const std::vector<Run>& parts, const std::vector<int64_t>& index,
                      const std::vector<RunStats>& stats) {
  for (size_t i = 0; i < parts.size() && i < stats.size(); ++i) {
    const auto run = static_cast<size_t>(index[i]);
    const auto numel = static_cast<double>(parts[i].numel);
    weight[run] += numel;
    scale[run] += numel * stats[i].scale;
    shape[run] += numel * stats[i].shape;
  }
}

Job::Job(JobSpec job_spec, int world)
    : spec(std::move(job_spec)),
      runs(spec.runs),
      dtype(codec_dtype(spec.input.scalar_type(), "gct: the tensor")),
      numel(spec.input.numel()),
      extent(spec.collective == Collective::kReduceScatter ? numel / world : numel),
      in_place(dtype == DType::kFloat32),
      exact(spec.codec.kind == Kind::kRaw && in_place && !spec.checksum &&
            spec.collective != Collective::kAllReduce),
      slots_known(exact || spec.codec.target == Target::kBits),
      sent(runs.num_runs()),
      reduced(runs.num_runs()) {
  check_tensor(spec.input, "the tensor");
  require((spec.collective == Collective::kAllReduce) == !spec.output.defined(),
          "all_reduce works in place, the other collectives need an output");
  if (spec.output.defined()) check_tensor(spec.output, "the output");
  if (spec.residual.defined()) {
    check_tensor(spec.residual, "the residual");
    require(spec.collective == Collective::kAllReduce, "only all_reduce takes a residual");
  }
  check_sizes(spec, runs.numel(), world);
  if (spec.collective != Collective::kAllReduce) {
    const bool scatter = spec.collective == Collective::kReduceScatter;
    spec.algorithm = scatter ? Algorithm::kTwoShot : Algorithm::kOneShot;
  } else {
    spec.algorithm = choose_algorithm(spec.algorithm, spec.codec, dtype, numel, world);
  }
}

void* Job::at_element(const at::Tensor& tensor, int64_t element) {
  return static_cast<uint8_t*>(tensor.data_ptr()) + element * tensor.element_size();
}

void* Job::result_at(int64_t element) const {
  return at_element(spec.output.defined() ? spec.output : spec.input, element);
}

at::Tensor Job::run_stats() const {
  constexpr int64_t kColumns = 4;
  at::Tensor stats = at::zeros({runs.num_runs(), kColumns}, at::TensorOptions().dtype(at::kFloat));
  stats.narrow(1, 2, 2).fill_(std::numeric_limits<float>::quiet_NaN());
  float* out = stats.data_ptr<float>();
  for (size_t run = 0; run < sent.weight.size(); ++run) {
    const RunAverages& seen = sent.weight[run] > 0 ? sent : reduced;
    if (seen.weight[run] == 0) continue;
    float* row = out + kColumns * run;
    row[0] = static_cast<float>(seen.scale[run] / seen.weight[run]);
    row[1] = static_cast<float>(seen.shape[run] / seen.weight[run]);
    if (!seen.probed) continue;
    row[2] = static_cast<float>(seen.bits[run] / seen.weight[run]);
    row[3] = static_cast<float>(seen.error[run] == 0 ? 0 : seen.error[run] / seen.signal[run]);
  }
  return stats;
}

}  // namespace gct
