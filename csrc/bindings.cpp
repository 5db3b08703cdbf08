// The Python face of the extension: names, defaults, docstrings. No logic lives here.
#include <pybind11/pybind11.h>

#include "torch/python.h"

namespace py = pybind11;

namespace {

// gct/_build.py finds this in the file before it loads it, and learns which torch it is for.
constexpr char kTorchMarker[] = "gct-built-for-torch=" GCT_BUILD_TORCH_VERSION;
constexpr size_t kTorchPrefix = sizeof("gct-built-for-torch=") - 1;

py::dict build_info() {
  py::dict info;
  info["version"] = GCT_BUILD_VERSION;
  info["torch"] = kTorchMarker + kTorchPrefix;
  info["compiler"] = GCT_BUILD_COMPILER;
  info["build_type"] = GCT_BUILD_TYPE;
  info["sanitize"] = static_cast<bool>(GCT_BUILD_SANITIZE);
#ifdef GCT_BUILD_CUDA
  info["cuda"] = GCT_BUILD_CUDA;
  info["cuda_architectures"] = GCT_BUILD_CUDA_ARCHITECTURES;
#else
  info["cuda"] = py::none();
  info["cuda_architectures"] = py::none();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "gct's native extension; use it through the gct package";
  m.def("build_info", &build_info, "What this extension was compiled with and for.");
  gct::register_codec(m);
  gct::register_device(m);
  gct::register_engine(m);
}
