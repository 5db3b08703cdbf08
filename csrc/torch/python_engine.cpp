// Python face of the engine: names, docstrings, GIL. Types for callers: gct/_C.pyi.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <thread>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <tuple>
#include <utility>

#include "torch/element_scales.h"
#include "torch/engine.h"
#include "torch/python.h"

namespace gct {

namespace {

// A Python callable that the engine's threads may copy, call and drop without holding the GIL.
class Callback {
 public:
  explicit Callback(py::function function)
      : function_(new py::function(std::move(function)), [](py::function* held) {
          const py::gil_scoped_acquire gil;
          delete held;
        }) {}

  void operator()(const std::string& error, bool fatal, const at::Tensor& run_stats) const {
    const py::gil_scoped_acquire gil;
    try {
      (*function_)(error, fatal, run_stats);
    } catch (py::error_already_set& exception) {
      exception.discard_as_unraisable("gct's on_done callback");
    }
  }

 private:
  std::shared_ptr<py::function> function_;
};

Collective parse_collective(const std::string& name) {
  if (name == "all_reduce") return Collective::kAllReduce;
  if (name == "reduce_scatter") return Collective::kReduceScatter;
  if (name == "all_gather") return Collective::kAllGather;
  throw std::invalid_argument("gct: no such collective: " + name);
}

void submit(Engine& engine, const std::string& collective, const at::Tensor& input,
            const std::optional<at::Tensor>& output, const std::optional<at::Tensor>& residual,
            const std::vector<std::tuple<int64_t, bool, int64_t>>& runs, const CodecParams& codec,
            bool mean, const std::string& algorithm, uint64_t seed, const std::string& name,
            const std::string& call, bool probe, bool checksum, py::function on_done) {
  JobSpec spec;
  spec.collective = parse_collective(collective);
  spec.algorithm = parse_algorithm(algorithm);
  spec.mean = mean;
  spec.input = input;
  if (output) spec.output = *output;
  if (residual) spec.residual = *residual;
  for (const auto& [numel, raw, columns] : runs) spec.runs.push_back({numel, raw, columns});
  spec.codec = codec;
  spec.seed = seed;
  spec.name = name;
  spec.probe = probe;
  spec.checksum = checksum;
  spec.call = call;
  spec.on_done = Callback(std::move(on_done));
  const py::gil_scoped_release nogil;
  engine.submit(std::move(spec));
}

py::dict stats(const Engine& engine) {
  constexpr double kSecond = 1e-9;
  const Counters& counters = engine.counters();
  py::dict result;
  result["jobs"] = counters.jobs.load();
  result["raw_bytes"] = counters.raw_bytes.load();
  result["wire_bytes"] = engine.wire_bytes();
  result["encoded_numel"] = counters.encoded_numel.load();
  result["encoded_bytes"] = counters.encoded_bytes.load();
  result["nonfinite_runs"] = counters.nonfinite_runs.load();
  result["encode_seconds"] = kSecond * static_cast<double>(counters.encode_ns.load());
  result["decode_seconds"] = kSecond * static_cast<double>(counters.decode_ns.load());
  result["wait_seconds"] = kSecond * static_cast<double>(counters.wait_ns.load());
  return result;
}

struct EngineDeleter {
  void operator()(Engine* engine) const {
    // A forked child keeps the memory: its locks may be held by threads that aren't there.
    if (engine->in_forked_child()) return;
    const py::gil_scoped_release nogil;  // the engine's threads may be waiting for the GIL
    // A callback that the engine drops can hold the last reference to it; no thread joins itself.
    if (engine->on_own_thread()) {
      std::thread([engine] { delete engine; }).detach();
    } else {
      delete engine;
    }
  }
};

void hang_up_group(const std::string& name) {
  const auto group = c10d::resolve_process_group(name);
  hang_up(*group->getBackend(c10::DeviceType::CPU));
}

}  // namespace

void register_engine(py::module_& m) {
  m.def("hang_up", &hang_up_group, py::arg("group_name"), py::call_guard<py::gil_scoped_release>(),
        "Close the connections of a Gloo group, by its ProcessGroup.group_name: what is on its way "
        "fails, here and on the other ranks.");
  using Scales = void (*)(const at::Tensor&, const at::Tensor&, double);  // not those on floats
  m.def("divide_by_scales", static_cast<Scales>(&divide_by_scales), py::arg("gradient"),
        py::arg("averages"), py::arg("factor"), py::call_guard<py::gil_scoped_release>(),
        "Divide by the elements' scales, in place.");
  m.def("multiply_by_scales", static_cast<Scales>(&multiply_by_scales), py::arg("gradient"),
        py::arg("averages"), py::arg("factor"), py::call_guard<py::gil_scoped_release>(),
        "Multiply by the elements' scales, in place.");
  m.def("learn_squares",
        static_cast<bool (*)(const at::Tensor&, const at::Tensor&, double)>(&learn_squares),
        py::arg("gradient"), py::arg("averages"), py::arg("decay"),
        py::call_guard<py::gil_scoped_release>(),
        "Let the gradient's squares enter the averages, in place; false where they tell nothing.");
  py::class_<Engine, std::unique_ptr<Engine, EngineDeleter>>(
      m, "Engine", "The compressed collectives of one process group; see csrc/torch/engine.h.")
      .def(py::init<const std::string&, const std::string&, int, bool>(), py::arg("first_group"),
           py::arg("second_group"), py::arg("threads"), py::arg("check_hashes"))
      .def("submit", &submit, py::kw_only(), py::arg("collective"), py::arg("input"),
           py::arg("output"), py::arg("residual"), py::arg("runs"), py::arg("codec"),
           py::arg("mean"), py::arg("algorithm"), py::arg("seed"), py::arg("name"), py::arg("call"),
           py::arg("probe"), py::arg("checksum"), py::arg("on_done"))
      .def("close", &Engine::close, py::call_guard<py::gil_scoped_release>())
      .def("stats", &stats)
      .def("scratch_bytes", &Engine::scratch_bytes)
      .def_property_readonly("rank", &Engine::rank)
      .def_property_readonly("size", &Engine::size)
      .def_property_readonly("threads", &Engine::threads);
}

}  // namespace gct
