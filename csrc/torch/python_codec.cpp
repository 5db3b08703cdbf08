// Python face of the codec: names, defaults, docstrings, GIL. Types for callers: gct/_C.pyi.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdio>
#include <stdexcept>

#include "codec.h"
#include "core/wire.h"
#include "cpu/crc32c.h"
#include "torch/ops.h"
#include "torch/python.h"

namespace gct {

namespace {

Kind parse_kind(const std::string& name) {
  if (name == "raw") return Kind::kRaw;
  if (name == "gg") return Kind::kGG;
  if (name == "eg") return Kind::kEG;
  if (name == "fixed") return Kind::kFixed;
  throw std::invalid_argument("gct: kind must be gg, eg, fixed or raw, got " + name);
}

Target parse_target(const std::string& name) {
  if (name == "bits") return Target::kBits;
  if (name == "snr_db") return Target::kSnrDb;
  if (name == "step") return Target::kStep;
  throw std::invalid_argument("gct: target must be bits, snr_db or step, got " + name);
}

CodecParams make_params(const std::string& kind, const std::string& target, double value,
                        int allocation8, bool stochastic, uint64_t seed, int max_rank,
                        bool high_effort, bool unit_gain) {
  CodecParams params;
  params.kind = parse_kind(kind);
  params.target = parse_target(target);
  params.value = value;
  params.allocation8 = allocation8;
  params.rounding = stochastic ? Rounding::kStochastic : Rounding::kDeterministic;
  params.seed = seed;
  params.max_rank = max_rank;
  params.effort = high_effort ? Effort::kHigh : Effort::kNormal;
  params.reconstruction = unit_gain ? Reconstruction::kUnitGain : Reconstruction::kCentroid;
  return params;
}

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::kRaw:
      return "raw";
    case Kind::kGG:
      return "gg";
    case Kind::kEG:
      return "eg";
    default:
      return "fixed";
  }
}

py::dict inspect_wire(const at::Tensor& wire) {
  const SegmentInfo info = inspect_tensor(wire);
  py::dict result;
  result["kind"] = kind_name(info.kind);
  result["numel"] = info.numel;
  result["num_runs"] = info.num_runs;
  result["size_bytes"] = info.size_bytes;
  return result;
}

uint32_t crc32c_of(const at::Tensor& wire) {
  TORCH_CHECK_VALUE(wire.scalar_type() == at::kByte && wire.is_contiguous() && wire.is_cpu(),
                    "gct: the wire must be contiguous uint8 on the CPU");
  return crc32c(wire.data_ptr<uint8_t>(), static_cast<size_t>(wire.numel()));
}

std::string wire_format() {
  char text[96];
  snprintf(text, sizeof text, "wire format %d, tables %08x; %d, %08x; %d, %08x", kWireVersion,
           tables::kTableId, kTrellisVersion, tables::kTrellisTableId, kUnitGainVersion,
           tables::kGainTableId);
  return text;
}

py::tuple encode_report(const at::Tensor& values, const CodecParams& params) {
  EncodeStats stats;
  stats.want_model_bits = true;
  const at::Tensor wire = encode_tensor(values, params, &stats);
  py::dict report;
  report["attempts"] = stats.attempts;
  report["model_bits"] = stats.model_bits;
  report["nonfinite_runs"] = stats.nonfinite_runs;
  return py::make_tuple(wire, report);
}

}  // namespace

void register_codec(py::module_& m) {
  implementation();  // a wrong GCT_FORCE_IMPL is refused at import, not in the middle of training

  py::class_<CodecParams>(m, "CodecParams", "Validated settings of the codec; see gct.Codec.")
      .def(py::init(&make_params), py::kw_only(), py::arg("kind"), py::arg("target"),
           py::arg("value"), py::arg("allocation8"), py::arg("stochastic"), py::arg("seed") = 0,
           py::arg("max_rank") = 0, py::arg("high_effort") = false, py::arg("unit_gain") = false);

  m.def(
      "encode",
      [](const at::Tensor& values, const CodecParams& params) {
        return encode_tensor(values, params);
      },
      py::arg("values"), py::arg("params"), py::call_guard<py::gil_scoped_release>(),
      "Encode a contiguous CPU tensor as one run; returns the segment, 1-D uint8.");
  m.def("encode_report", &encode_report, py::arg("values"), py::arg("params"),
        "Encode, and say what the encoder did: for tests and benchmarks.");
  m.def("decode", &decode_tensor, py::arg("wire"), py::call_guard<py::gil_scoped_release>(),
        "Decode a segment to 1-D float32.");
  m.def("inspect", &inspect_wire, py::arg("wire"), "What a segment's headers say.");

  m.def("wire_format", &wire_format, "What two ranks need in common to read each other's bytes.");

  m.def("crc32c", &crc32c_of, py::arg("wire"), py::call_guard<py::gil_scoped_release>(),
        "The checksum of a 1-D uint8 tensor, as it stands behind a segment.");

  m.def("implementations", &implementations, "Implementations usable here, best first.");
  m.def("implementation", &implementation, "The implementation in use.");
  m.def("set_implementation", &set_implementation, py::arg("name"),
        "Use this implementation; false if it isn't usable here.");
}

}  // namespace gct
