// Kernels for a GPU and what starts them.
#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device_warp.cuh"
#include "cuda/executor.h"
#include "cuda/host_tables.h"
#include "cuda/pipeline.h"

namespace gct::gpu {
namespace {

void check(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("gct: CUDA failed while ") + doing + ": " +
                           cudaGetErrorString(error));
}

// Device memory that lives as long as the process: a GPU's tables.
template <typename T>
const T* upload(const std::vector<T>& values) {
  void* memory = nullptr;
  const size_t bytes = values.size() * sizeof(T);
  check(cudaMalloc(&memory, bytes), "reserving memory for code tables");
  check(cudaMemcpy(memory, values.data(), bytes, cudaMemcpyHostToDevice), "copying code tables");
  return static_cast<const T*>(memory);
}

class CudaExecutor : public Executor {
 public:
  explicit CudaExecutor(int device) : device_(device) {
    select();
    const HostTables host;
    tables_ = {upload(host.encode),          upload(host.decode),       upload(host.levels),
               upload(host.class_encode),    upload(host.class_decode), upload(host.fixed_levels),
               upload(host.fixed_thresholds)};
  }

  void encode(const EncodeBatch& batch, void* stream) override {
    select();
    DeviceLauncher launcher(static_cast<cudaStream_t>(stream));
    run_encode(launcher, batch);
    check(launcher.error(), "encoding");
  }
  void decode(const DecodeBatch& batch, void* stream) override {
    select();
    DeviceLauncher launcher(static_cast<cudaStream_t>(stream));
    run_decode(launcher, batch);
    check(launcher.error(), "decoding");
  }
  const CodingTables& tables() const override { return tables_; }

 private:
  // This runtime is linked statically: it has a current device of its own beside torch's.
  void select() const { check(cudaSetDevice(device_), "choosing a device"); }

  int device_;
  CodingTables tables_ = {};
};

}  // namespace

std::string cuda_problem() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) return "no CUDA driver, or one that is too old";
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return count == 0 ? "no CUDA device" : "";
}

Executor& cuda_executor(int device) {
  static std::mutex mutex;
  static std::map<int, std::unique_ptr<CudaExecutor>> executors;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<CudaExecutor>& executor = executors[device];
  if (executor == nullptr) executor = std::make_unique<CudaExecutor>(device);
  return *executor;
}

}  // namespace gct::gpu
