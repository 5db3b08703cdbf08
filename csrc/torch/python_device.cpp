// Python face of the kernels: names, docstrings, GIL. Types for callers: gct/_C.pyi.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <tuple>
#include <vector>

#include "torch/device_codec.h"
#include "torch/float_ops.h"
#include "torch/job.h"
#include "torch/layout.h"
#include "torch/python.h"

namespace gct {

namespace {

using RunTuple = std::tuple<int64_t, bool, int64_t>;  // numel, raw, columns
using SegmentTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;

RunTable run_table(const std::vector<RunTuple>& runs) {
  std::vector<RunShape> shapes;
  for (const auto& [numel, raw, columns] : runs) shapes.push_back({numel, raw, columns});
  return RunTable(shapes);
}

// The runs inside a part of the input.
std::vector<Run> cut(const RunTable& table, Range range) {
  std::vector<Run> runs;
  std::vector<int64_t> index;
  table.cut(range, nullptr, DType::kFloat32, &runs, &index);
  return runs;
}

std::unique_ptr<DeviceEncoder> make_encoder(const CodecParams& params, at::ScalarType dtype,
                                            const std::vector<RunTuple>& runs,
                                            const std::vector<std::pair<int64_t, int64_t>>& parts,
                                            int64_t origin, const at::Device& device) {
  const RunTable table = run_table(runs);
  std::vector<int64_t> offsets;
  std::vector<std::vector<Run>> segments;
  for (const auto& [begin, end] : parts) {
    if (begin < origin || end < begin || end > table.numel())
      throw std::invalid_argument("gct: parts must rise and lie inside the runs");
    offsets.push_back(begin - origin);
    segments.push_back(cut(table, {begin, end}));
  }
  return std::make_unique<DeviceEncoder>(params, dtype, offsets, segments, device);
}

std::unique_ptr<DeviceDecoder> make_decoder(const std::vector<SegmentTuple>& segments,
                                            const at::Device& device) {
  std::vector<gpu::ExpectedSegment> expected;
  for (const auto& [at, size, out, numel, max_runs] : segments)
    expected.push_back({at, size, out, numel, max_runs});
  return std::make_unique<DeviceDecoder>(expected, device);
}

std::vector<std::pair<int64_t, int64_t>> split(int64_t numel, int parts) {
  std::vector<std::pair<int64_t, int64_t>> result;
  for (const Range& range : split_range({0, numel}, parts))
    result.emplace_back(range.begin, range.end);
  return result;
}

// Slot and number of runs of a part of the input: what all ranks know of its segment.
std::pair<int64_t, int64_t> expect(const CodecParams& params, at::ScalarType dtype,
                                   const std::vector<RunTuple>& runs, int64_t begin, int64_t end) {
  const std::vector<Run> part = cut(run_table(runs), {begin, end});
  if (part.empty()) return {0, 0};
  EncodeInput input;
  input.dtype = codec_dtype(dtype, "gct: the tensor");
  input.runs = part.data();
  input.num_runs = static_cast<int64_t>(part.size());
  return {static_cast<int64_t>(slot_bytes(params, input)), input.num_runs};
}

bool chooses_two_shot(const CodecParams& params, at::ScalarType dtype, int64_t numel, int world,
                      const std::string& algorithm) {
  return choose_algorithm(parse_algorithm(algorithm), params, codec_dtype(dtype, "gct: the tensor"),
                          numel, world) == Algorithm::kTwoShot;
}

}  // namespace

void register_device(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();

  m.def("cuda_problem", &cuda_problem, "Why CUDA kernels can't run here; empty if they can.");
  m.def("split", &split, py::arg("numel"), py::arg("parts"),
        "The (begin, end) of each rank's part of a tensor.");
  m.def("expect", &expect, py::arg("params"), py::arg("dtype"), py::arg("runs"), py::arg("begin"),
        py::arg("end"), "Bytes of the slot and number of runs of a part's segment.");
  m.def("chooses_two_shot", &chooses_two_shot, py::arg("params"), py::arg("dtype"),
        py::arg("numel"), py::arg("world"), py::arg("algorithm"),
        "Whether an all_reduce takes two shots.");
  m.def(
      "status_message", [](int status) { return status_message(static_cast<Status>(status)); },
      py::arg("status"), "What a status of DeviceDecoder.statuses means.");

  py::class_<DeviceScratch>(m, "DeviceScratch", "Memory that layouts of one stream share.")
      .def(py::init<at::Device>(), py::arg("device"))
      .def("capacity_bytes", &DeviceScratch::capacity_bytes);

  py::class_<DeviceEncoder>(m, "DeviceEncoder", "See csrc/torch/device_codec.h.")
      .def(py::init(&make_encoder), py::arg("params"), py::arg("dtype"), py::arg("runs"),
           py::arg("parts"), py::arg("origin"), py::arg("device"), unlocked)
      .def_property_readonly("out_bytes", &DeviceEncoder::out_bytes)
      .def_property_readonly("statistics", &DeviceEncoder::statistics)
      .def("encode", &DeviceEncoder::encode, py::arg("data"), py::arg("out"), py::arg("seed"),
           py::arg("stream"), py::arg("scratch"), unlocked);

  py::class_<DeviceDecoder>(m, "DeviceDecoder", "See csrc/torch/device_codec.h.")
      .def(py::init(&make_decoder), py::arg("segments"), py::arg("device"), unlocked)
      .def_property_readonly("statuses", &DeviceDecoder::statuses)
      .def("decode", &DeviceDecoder::decode, py::arg("wire"), py::arg("out"), py::arg("accumulate"),
           py::arg("stream"), py::arg("scratch"), unlocked);
}

}  // namespace gct
