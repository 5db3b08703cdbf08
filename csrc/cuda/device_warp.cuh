// A warp on the device, for the kernels' bodies: values by lane are registers, collectives are the
// hardware's. csrc/cuda/host_warp.h says what each does.
#pragma once

#include <cuda_runtime.h>

#include "core/common.h"

namespace gct::gpu {

class DeviceWarp {
 public:
  template <typename T>
  struct Lanes {
    T value = {};
    __device__ T& operator[](int) { return value; }
    __device__ const T& operator[](int) const { return value; }
  };

  template <typename F>
  __device__ void each(F f) {
    f(lane());
  }
  template <typename F>
  __device__ void leader(F f) {
    if (lane() == 0) f();
  }
  __device__ void sync() { __syncwarp(); }

  __device__ uint32_t ballot(const Lanes<bool>& flags) { return __ballot_sync(kAll, flags.value); }
  template <typename T>
  __device__ T broadcast(const Lanes<T>& values, int lane) {
    return __shfl_sync(kAll, values.value, lane);
  }
  template <typename T>
  __device__ Lanes<T> shuffle(const Lanes<T>& values, const Lanes<int>& from) {
    return {__shfl_sync(kAll, values.value, from.value)};
  }
  template <typename T, typename Op>
  __device__ T fold(Lanes<T> values, Op op) {
    T own = values.value;
    for (int width = kLanes / 2; width > 0; width /= 2)
      own = op(own, __shfl_down_sync(kAll, own, width));
    return __shfl_sync(kAll, own, 0);
  }
  template <typename T>
  __device__ T scan(Lanes<T>* values) {
    const T own = values->value;
    T sum = own;
    for (int distance = 1; distance < kLanes; distance *= 2) {
      const T before = __shfl_up_sync(kAll, sum, distance);
      if (lane() >= distance) sum += before;
    }
    values->value = sum - own;
    return __shfl_sync(kAll, sum, kLanes - 1);
  }
  __device__ void atomic_add(int64_t* sum, int64_t value) {
    atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
  }

 private:
  static constexpr unsigned kAll = 0xffffffffu;
  static __device__ int lane() { return static_cast<int>(threadIdx.x) % kLanes; }
};

constexpr int kWarpsPerBlock = 4;       // at most
constexpr int64_t kFewTasks = 1 << 10;  // up to here each task gets a block, and so a processor
constexpr int64_t kMaxGrid = 1 << 20;   // blocks; more tasks than that go round

template <typename Body, typename Batch>
__global__ void __launch_bounds__(kWarpsPerBlock* kLanes) run_tasks(Batch batch, int64_t tasks) {
  DeviceWarp warp;
  const int64_t warps = blockDim.x / kLanes, stride = gridDim.x * warps;
  for (int64_t task = blockIdx.x * warps + threadIdx.x / kLanes; task < tasks; task += stride)
    Body::run(warp, batch, task);
}

// Launches on a stream and remembers the first error.
class DeviceLauncher {
 public:
  explicit DeviceLauncher(cudaStream_t stream) : stream_(stream) {}

  template <typename Body, typename Batch>
  void run(const Batch& batch, int64_t tasks) {
    if (tasks == 0) return;
    const int warps = tasks <= kFewTasks ? 1 : kWarpsPerBlock;
    int64_t blocks = div_up(tasks, warps);
    if (blocks > kMaxGrid) blocks = kMaxGrid;
    run_tasks<Body><<<static_cast<unsigned>(blocks), warps * kLanes, 0, stream_>>>(batch, tasks);
    note(cudaGetLastError());
  }
  void zero(void* memory, size_t bytes) {
    if (bytes > 0) note(cudaMemsetAsync(memory, 0, bytes, stream_));
  }
  cudaError_t error() const { return error_; }

 private:
  void note(cudaError_t error) {
    if (error_ == cudaSuccess) error_ = error;
  }

  cudaStream_t stream_;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace gct::gpu
